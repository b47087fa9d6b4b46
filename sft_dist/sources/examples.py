"""Examples as the pipeline writes them (generated sets, evaluation sets): task, origin and references are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sft_dist.core.records import BadRecord, Example, make_example
from sft_dist.sources.base import FileSource, RecordError, kind_of, text_field
from sft_dist.sources.files.data_files import RawRecord, data_files, read_records
from sft_dist.sources.messages import check_conversation, read_turns


class ExamplesReader(FileSource):
    """Reads what `core.records.example_to_dict` wrote."""

    def __init__(self, name: str, *, path: str, task: str | None = None, dataset: str | None = None) -> None:
        """See `config.sources.ExamplesSource`; `task` takes the place of the records' own.

        Raises:
            UserError: When `path` names no data file.
        """
        super().__init__(name, data_files(path), task=task, dataset=dataset)

    def records(self) -> Iterator[RawRecord | BadRecord]:
        """Yield the records of the files."""
        return read_records(self._files)

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the one example of a record."""
        messages = read_turns(fields.get("messages"), (("role", "content"),))
        check_conversation(messages)
        start = fields.get("input_start")
        kwargs = fields.get("template_kwargs")
        if not isinstance(start, int | None) or not isinstance(kwargs, str | None):
            raise RecordError("'input_start' is not a number, or 'template_kwargs' not text")
        return [
            make_example(
                task=text_field(fields, "task") if self._task is None else self.task_of(fields),
                source=self.name,
                messages=messages,
                tools=_texts(fields, "tools"),
                template_kwargs=kwargs,
                references=_texts(fields, "references"),
                origin=tuple(dict.fromkeys((*_texts(fields, "origin"), *self.origin_of(fields)))),
                input_start=start,
            )
        ]


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise RecordError(f"field {name!r} holds {kind_of(value)}, not a list of texts")
    return tuple(value)
