"""Any dataset that `datasets` opens (hub name, local folder of data files, or saved by `save_to_disk`) -> Example."""

from __future__ import annotations

import os
import sys
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded, fingerprint
from sft_dist.core.records import BadRecord, Example
from sft_dist.sources.alpaca import AlpacaFields
from sft_dist.sources.base import READER_VERSION, FileSource
from sft_dist.sources.chat import conversation, conversation_format
from sft_dist.sources.files.blocks import Block, Part, part_bytes
from sft_dist.sources.files.data_files import TEXT_CHARS, RawRecord
from sft_dist.sources.files.json_record import as_object
from sft_dist.sources.text import text_document

OUR_FIELDS = {
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "messages": ("messages", "system", "tools", "template_kwargs"),
    "sharegpt": ("conversations", "system", "tools", "template_kwargs"),
    "text": ("text",),
}


class HubReader(FileSource):
    """Reads one split of a dataset; `fields` says which column holds which of our fields."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        subset: str | None = None,
        split: str = "train",
        revision: str | None = None,
        data_files: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        format: str = "messages",  # noqa: A002  the config's name
        fields: Mapping[str, str] | None = None,
        prompts: bool = False,
        task: str | None = None,
        dataset: str | None = None,
        **turns: Any,
    ) -> None:
        """See `config.sources.HubSource` for the meaning of the fields.

        Raises:
            UserError: When the dataset cannot be opened or lacks a column that `fields` names.
        """
        self._format = (
            conversation_format(format=format, prompts=prompts, **turns)
            if format in ("messages", "sharegpt")
            else None
        )
        self._is_text = format == "text"
        self._columns = dict(fields or {})
        self._alpaca = AlpacaFields(output=None if prompts else "output", system="system", history="history")
        for ours in self._columns:
            if ours not in OUR_FIELDS[format]:
                raise UserError(
                    f"data.sources.{name}.fields names {ours!r}, which the format {format!r} does not have; "
                    f"it has {', '.join(OUR_FIELDS[format])}.{nearest(ours, OUR_FIELDS[format])}"
                )
        self._where = f"{path}{f'/{subset}' if subset else ''}:{split}"
        self._rows = _load(path, subset, split, revision, data_files)
        present = list(self._rows.column_names)
        for ours, column in self._columns.items():
            if column not in present:
                raise UserError(
                    f"data.sources.{name}.fields.{ours} names column {column!r}, which {self._where} does not have, "
                    f"so no record could be read; it has {', '.join(present)}.{nearest(column, present)}"
                )
        files = sorted(Path(f["filename"]) for f in self._rows.cache_files)
        options: dict[str, Any] = {"path": path, "subset": subset, "split": split, "revision": revision}
        options |= {
            "prompts": prompts,
            **turns,
            **({"data_files": data_files} if data_files is not None else {}),
        }
        super().__init__(
            name, files, task=task, dataset=dataset, format=format, fields=self._columns, **options
        )

    def fingerprint(self) -> str:
        """Return 32 hex digits over the options and the dataset's own fingerprint, which covers its content."""
        # `datasets` derives it from the hashes of the input files and the builder; reading gigabytes of its cache
        # again would tell us the same.
        content = self._rows._fingerprint  # noqa: SLF001  the library offers no public name for it
        return fingerprint(
            {"version": READER_VERSION, "name": self.name, "options": self._options, "content": content}
        )

    def blocks(self) -> list[Block]:
        """Return ranges of rows."""
        size = sum(file.stat().st_size for file in self._files if file.is_file())
        step = max(1, len(self._rows) * part_bytes(size) // size) if size else max(1, len(self._rows))
        where = Path(self._where)
        ends = [*range(step, len(self._rows), step), len(self._rows)]
        return [(Part(where, start, end),) for start, end in zip([0, *ends], ends, strict=False)]

    def block_fingerprint(self, block: Block) -> str:
        """Return 32 hex digits over the options, the dataset's fingerprint and which rows these are."""
        return fingerprint([self.fingerprint(), [(part.start, part.end) for part in block]])

    def records(
        self, parts: Sequence[Part] | None = None, wanted: Container[int] | None = None
    ) -> Iterator[RawRecord | BadRecord]:
        """Yield the rows, our fields first; the line is the number of the row, from 1."""
        del wanted  # a row of a table costs as much to pass over
        for part in [Part(Path(self._where))] if parts is None else parts:
            rows = self._rows if part.whole else self._rows.select(range(part.start, part.end or 0))
            yield from self._of(rows, part.start)

    def _of(self, rows: Any, before: int) -> Iterator[RawRecord | BadRecord]:
        for number, row in enumerate(rows, before + 1):
            fields = {
                **{ours: row[column] for ours, column in self._columns.items()},
                **_others(row, self._columns),
            }
            found = as_object(fields, table=True)
            if isinstance(found, str):
                yield BadRecord(file=self._where, line=number, reason=found, text=repr(fields)[:TEXT_CHARS])
            else:
                yield RawRecord(self._where, number, found)

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the example of a row."""
        task, origin = self.task_of(fields), self.origin_of(fields)
        if self._is_text:
            yield text_document(self, fields)
        elif self._format is None:
            yield self._alpaca.example(fields, task=task, source=self.name, origin=origin)
        else:
            yield conversation(fields, self._format, task=task, source=self.name, origin=origin)


def import_datasets() -> Any:
    """Import `datasets` so that nothing it does pulls in torch, as its `map` and streaming else do where it is installed."""
    before = os.environ.get("USE_TORCH")
    if "torch" not in sys.modules:
        os.environ["USE_TORCH"] = "0"
    try:
        import datasets
    finally:
        if before is None:
            os.environ.pop("USE_TORCH", None)
        else:
            os.environ["USE_TORCH"] = before
    datasets.disable_progress_bars()
    return datasets


def _others(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the columns that were not renamed, so that `task: "{column}"` can name them."""
    return {k: v for k, v in row.items() if k not in columns}


def _load(path: str, subset: str | None, split: str, revision: str | None, data_files: Any) -> Any:
    datasets = import_datasets()
    place = expanded(path)
    saved = place.is_dir() and any((place / f).is_file() for f in ("state.json", "dataset_dict.json"))
    if saved and data_files is not None:
        raise UserError(
            f"{path} was written by save_to_disk, of which single files cannot be read; remove data_files, or name the folder of the "
            "original files"
        )
    if isinstance(data_files, Mapping):
        data_files = {k: v if isinstance(v, str) else list(v) for k, v in data_files.items()}
    elif data_files is not None and not isinstance(data_files, str):
        data_files = list(data_files)
    try:
        if not saved:
            return datasets.load_dataset(
                str(place) if place.exists() else path,
                subset,
                split=split,
                revision=revision,
                data_files=data_files,
            )
        found = datasets.load_from_disk(str(place))
    except Exception as error:  # the library raises a dozen kinds, each for a mistake in path, name or split
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"`datasets` cannot open {path!r} (subset {subset}, split {split}, revision {revision}, files {data_files}): {reason}; "
            "check the names, and that the hub or its cache can be reached"
        ) from error
    if not isinstance(found, datasets.DatasetDict):
        return found
    if split not in found:
        raise UserError(
            f"{path} has no split {split!r}, so nothing would be read; it has {', '.join(found)}.{nearest(split, found)}"
        )
    return found[split]
