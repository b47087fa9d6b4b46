"""What becomes of every record, and how it lies on disk: selection.json, selection-<source>.npy.

selection.json is written last and removed first, so that what it says and what lies beside it are of one pass.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from json.encoder import encode_basestring
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sft_dist.core.errors import UserError
from sft_dist.core.files import atomic_path, checksum, fingerprint, read_object, write_checked
from sft_dist.core.records import BadRecord, Drop, Example
from sft_dist.core.sets import NEAR, SETS
from sft_dist.holdout import Holdout
from sft_dist.selection.across_records import Contaminated
from sft_dist.selection.id_files import IdFile
from sft_dist.sources import Source
from sft_dist.sources.base import blocks_of, read_block

TRAIN, EVALUATE, DROPPED, UNREADABLE, PROMPT = range(5)
STATE = "selection.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """What becomes of the records of one source.

    Attributes:
        codes: uint8, one a record in reading order: TRAIN, EVALUATE, DROPPED, UNREADABLE or PROMPT.
        tasks: Tasks of the training examples, sorted.
        read: Records.
        evaluation: Records that are evaluated.
        unreadable: Records that could not be read.
        prompts: Records that only ask: `construct` may start from them, nothing is trained on them.
        dropped: Records that are not kept, by reason.
        skipped: Reason -> task -> what the reader made no record of, by design: not among `read`.
        blocks: (name of its facts, records) of each block of the source, in reading order.
        fingerprint: 32 hex digits over codes and tasks.
    """

    codes: NDArray[np.uint8]
    tasks: tuple[str, ...]
    read: int
    evaluation: int
    unreadable: int
    prompts: int
    dropped: dict[str, int]
    skipped: dict[str, dict[str, int]]
    blocks: tuple[tuple[str, int], ...]
    fingerprint: str

    @property
    def kept(self) -> int:
        """Training examples."""
        return self.read - self.evaluation - self.unreadable - self.prompts - sum(self.dropped.values())

    def scaled(self, factor: float) -> Selection:
        """Return the numbers of a source that is `factor` times as large."""
        names = ("read", "evaluation", "unreadable", "prompts")
        dropped = {reason: round(n * factor) for reason, n in self.dropped.items()}
        return replace(self, **{n: round(getattr(self, n) * factor) for n in names}, dropped=dropped)


@dataclass(frozen=True, kw_only=True, slots=True)
class Selected:
    """The decision.

    Attributes:
        holdout: What is never trained on.
        sources: The selection of every source.
        contaminated: Evaluation examples that were found in training data.
        id_files: What was found in each file by id, by key of data.filters.
    """

    holdout: Holdout
    sources: dict[str, Selection]
    contaminated: tuple[Contaminated, ...] = ()
    id_files: Mapping[str, IdFile] = field(default_factory=dict)

    def scaled(self, shares: Mapping[str, float]) -> Selected:
        """Return what becomes of whole sources, as far as a share of each tells: numbers only, codes stay those of the samples."""
        sources = {n: s if shares[n] == 1 else s.scaled(1 / shares[n]) for n, s in self.sources.items()}
        return replace(self, sources=sources)


def selection_fingerprint(codes: NDArray[np.uint8], tasks: Collection[str]) -> str:
    """Return 32 hex digits over codes and tasks."""
    return fingerprint([xxhash.xxh3_128_hexdigest(codes.tobytes()), sorted(tasks)])


def write_codes(folder: Path, name: str, codes: NDArray[np.uint8]) -> None:
    """Write the codes of one source."""
    with atomic_path(folder / f"selection-{name}.npy") as aside, aside.open("wb") as file:
        np.save(file, codes)


def write_selected(folder: Path, key: str, selected: Selected) -> None:
    """Write everything but the codes, which must be there: with this file the selection counts as whole."""
    sources = {n: {k: v for k, v in asdict(s).items() if k != "codes"} for n, s in selected.sources.items()}
    state = {
        "key": key,
        "holdout": selected.holdout.to_dict(),
        "sources": sources,
        "contaminated": [asdict(c) for c in selected.contaminated],
        "evaluation": _evaluation(folder),
    }
    if selected.id_files:
        state["id_files"] = {key: asdict(file) for key, file in selected.id_files.items()}
    write_checked(folder / STATE, state)


def _evaluation(folder: Path) -> dict[str, str]:
    """Return the checksums of the evaluation sets that stand in a data folder."""
    files = [folder / "eval" / name for name in (NEAR, *(f"{name}.jsonl" for name in SETS))]
    return {file.name: checksum(file) for file in files if file.is_file()}


def read_selected(folder: Path, key: str) -> Selected | None:
    """Return what an earlier pass of this key wrote; None when there is none, or it is damaged."""
    state = _state(folder)
    if state.get("key") != key or state.get("evaluation", _evaluation(folder)) != _evaluation(folder):
        return None
    try:
        sources = {name: _selection(folder, name, fields) for name, fields in state["sources"].items()}
        contaminated = tuple(Contaminated(**c) for c in state["contaminated"])
        return Selected(
            holdout=Holdout.from_dict(state["holdout"]),
            sources=sources,
            contaminated=contaminated,
            id_files={key: IdFile(**file) for key, file in state.get("id_files", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def facts_of_selection(folder: Path) -> dict[str, set[str]]:
    """Return the names of the facts that the selection of a folder was made of, by source; empty where there is none."""
    try:
        sources = _state(folder)["sources"].items()
        return {name: {str(key) for key, _ in fields["blocks"]} for name, fields in sources}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def stored_sources(folder: Path, names: Iterable[str]) -> list[str] | None:
    """Return which of the sources have training examples, and so a store; None: not all of them were selected from yet."""
    try:
        return [name for name in names if TRAIN in _codes(folder, name)] if _state(folder) else None
    except (OSError, ValueError):
        return None


def _state(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / STATE, "")
    except (UserError, OSError):
        return {}


def _codes(folder: Path, name: str) -> NDArray[np.uint8]:
    """Return the codes of a source. Raises OSError or ValueError when they are absent or damaged."""
    try:
        codes: NDArray[np.uint8] = np.load(folder / f"selection-{name}.npy", allow_pickle=False)
    except EOFError as error:  # an empty file
        raise ValueError(str(error)) from None
    return codes


def _selection(folder: Path, name: str, fields: dict[str, Any]) -> Selection:
    """Return a source's selection. Raises ValueError when the codes are not those that it was written with."""
    lists = {"tasks": tuple(fields["tasks"]), "blocks": tuple((n, int(rows)) for n, rows in fields["blocks"])}
    selection = Selection(**{**fields, **lists}, codes=_codes(folder, name))
    if selection_fingerprint(selection.codes, selection.tasks) != selection.fingerprint:
        raise ValueError(f"selection-{name}.npy is damaged")
    return selection


def selected_records(
    source: Source, selection: Selection, is_wanted: Callable[[int, int], bool], last: int | None = None
) -> Iterator[tuple[int, Example | BadRecord]]:
    """Yield (number, record) of every record of the blocks that are wanted, in order.

    Args:
        source: The source.
        selection: Its selection.
        is_wanted: Asked of each block: its first record, and the first one behind it.
        last: Reading ends before this record.

    Raises:
        ValueError: A block holds another number of records than when they were selected.
    """
    first = 0
    for block, (_, rows) in zip(blocks_of(source), selection.blocks, strict=True):
        number, end = first, first + rows
        first = end
        if not rows or not is_wanted(number, end):
            continue
        for read in read_block(source, block):
            for record in read.made:
                yield number, record
                number += 1
                if number == last:
                    return
        if number != end:
            raise ValueError(f"{source.name}: a block holds {number - end + rows} records, not {rows}")


def training_examples(source: Source, selection: Selection) -> Iterator[Example]:
    """Yield the training examples of a source."""
    yield from _with_codes(source, selection, (TRAIN,))


def seed_examples(source: Source, selection: Selection) -> Iterator[Example]:
    """Yield what generation may start from: the training examples and the prompts of a source."""
    yield from _with_codes(source, selection, (TRAIN, PROMPT))


def _with_codes(source: Source, selection: Selection, wanted: tuple[int, ...]) -> Iterator[Example]:
    chosen = np.isin(selection.codes, wanted)
    for number, record in selected_records(
        source, selection, lambda first, end: bool(chosen[first:end].any())
    ):
        if chosen[number]:
            assert isinstance(record, Example)
            yield record


def make_folder(folder: Path) -> None:
    """Make the folder that everything goes into.

    Raises:
        UserError: It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"the folder {folder} cannot be made or written ({error.strerror}), so there is no place for what is written; set data.dir (or --out) to another"
        ) from None


def reject(file: IO[str], drop: Drop, body: str) -> None:
    """Keep a record (as JSON) that is not trained on, with its reason."""
    reason, detail = encode_basestring(drop.reason), encode_basestring(drop.detail)
    line = f'{{"reason": {reason}, "detail": {detail}, "record": {body}}}\n'
    file.write(line if line.isascii() else line.encode("utf-8", "backslashreplace").decode())
