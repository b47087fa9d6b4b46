"""Facts and the hold-out -> the side of each record of a block; texts are read again where they decide, or are kept.

A verdict depends on no other record, so any process may judge any block. Duplicates and thresholds come later
(across_records).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_dist.core.records import BadRecord, Drop, Example, example_to_dict
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.core.sets import SETS
from sft_dist.filters.decontamination import ContaminationIndex, Overlap
from sft_dist.filters.near_duplicates import Sketcher
from sft_dist.holdout import Holdout, Side, split_asked
from sft_dist.selection.facts import CHUNK, BlockFacts, FactRow, fact_rows
from sft_dist.selection.tables import TableWriter, lists_of, read_about, read_rows
from sft_dist.sources import Source
from sft_dist.sources.base import read_block

Record: TypeAlias = Example | BadRecord

SAMPLED = 2000  # training examples of each source that show what is template
SMALL_ROWS = (
    1 << 16
)  # a source of one block of at most as many is read once for all that is evaluated and sampled of it
SIDES: tuple[str, ...] = ("train", *SETS)
_DROP, _BAD = 254, 255
_JSON = json.JSONEncoder(ensure_ascii=False)
SCHEMA = pa.schema(
    {
        "side": pa.uint8(),
        "reason": pa.dictionary(pa.int32(), pa.string()),
        "detail": pa.string(),
        "body": pa.string(),  # the record as JSON, of those that are not trained on
        "leaks": pa.list_(
            pa.struct({"item": pa.int64(), "coverage": pa.float64(), "how": pa.string(), "span": pa.string()})
        ),
        "shingles": pa.binary(),  # of those that may be near duplicates
    }
)


class Verdict(NamedTuple):
    """What is known of one record by itself.

    Attributes:
        side: None: it cannot be read.
        body: The record as JSON, where it is at hand.
        leaks: What it gives away.
        shingles: What is compared with those of candidates for near duplicates (`Sketcher.shingles`).
    """

    side: Side | Drop | None
    body: str | None = None
    leaks: tuple[Overlap, ...] = ()
    shingles: bytes | None = None


class Judged(NamedTuple):
    """A block, and which of its rows share a band with another record; None: none of them."""

    facts: BlockFacts
    rows: NDArray[np.bool_] | None


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Blocks -> tables of verdicts.

    Attributes:
        holdout: What is never trained on.
        drop_eval_inputs: See `holdout.holdout`.
        leaks: The evaluation examples' n-grams; None: leakage is not looked for.
        sketcher: Makes what candidates are compared by; None: near duplicates are kept.
        folder: Of the tables.
    """

    holdout: Holdout
    drop_eval_inputs: bool
    leaks: ContaminationIndex | None
    sketcher: Sketcher | None
    folder: Path

    def path(self, facts: BlockFacts) -> Path:
        """Return where the verdicts on a block lie."""
        return self.folder / facts.source / facts.path.name

    def __call__(self, sources: Mapping[str, Source], item: Judged) -> Path:
        """Judge a block, unless it was before."""
        path = self.path(item.facts)
        if read_about(path) is None:
            with TableWriter(path, SCHEMA) as table:
                verdicts = self._verdicts(sources[item.facts.source], item)
                while chunk := list(islice(verdicts, CHUNK)):
                    table.add([_to_row(verdict) for verdict in chunk])
                table.close({})
        return path

    def _verdicts(self, source: Source, item: Judged) -> Iterator[Verdict]:
        sides: list[Side | Drop | None] = []

        def is_read(at: int, row: FactRow) -> bool:
            sides.append(self._side(row))
            shared = item.rows is not None and bool(item.rows[at])
            return sides[at] != "train" or self.leaks is not None or (self.sketcher is not None and shared)

        found = with_records(source, item.facts, is_read)
        for at, (row, record) in enumerate(found):
            side = sides[at]
            if isinstance(record, BadRecord):
                yield Verdict(None, body_of(record))
                continue
            if side is None and record is not None:
                side = self._side(row, record)
            leaks: tuple[Overlap, ...] = ()
            shingles = None
            if side == "train" and record is not None:
                leaks = tuple(self.leaks(record)) if self.leaks else ()
                if self.sketcher and item.rows is not None and item.rows[at] and not leaks:
                    shingles = self.sketcher.shingles(record)
            kept = record is None or (side == "train" and not leaks)
            yield Verdict(side, None if kept or record is None else body_of(record), leaks, shingles)

    def _side(self, row: FactRow, example: Example | None = None) -> Side | Drop | None:
        """Return the side of a record as far as it is known without its neighbours; None: it must be read."""
        if row.asked is None:
            return None
        side = split_asked(row.asked, self.holdout, example, drop_eval_inputs=self.drop_eval_inputs)
        return (row.drop or side) if side == "train" else side


class Found(NamedTuple):
    """What of a block is evaluated, and a sample of what is trained on, for the index of what is evaluated.

    Attributes:
        evaluated: The examples, in order.
        sampled: (id, row) of those with the smallest hashes.
        examples: The sampled ones, where the block is the whole source; else empty.
    """

    evaluated: list[Example]
    sampled: list[tuple[str, int]]
    examples: list[Example]


@dataclass(frozen=True, kw_only=True)
class FindEvaluated:
    """Blocks -> their evaluated examples."""

    holdout: Holdout
    seed: int

    def __call__(self, sources: Mapping[str, Source], item: tuple[BlockFacts, bool]) -> Found:
        """Return what is evaluated of a block; the second of `item` says that it is all of its source."""
        facts, alone = item
        source = sources[facts.source]
        sides: list[Side | Drop | Literal[""] | None] = []
        whole = alone and facts.rows <= SMALL_ROWS
        evaluated: list[Example] = []
        kept: dict[int, Example] = {}
        sample: Sample[int] = Sample(SAMPLED, derive(self.seed, "leakage", facts.source))

        def is_read(at: int, row: FactRow) -> bool:
            sides.append(split_asked(row.asked, self.holdout, None) if row.asked else "")
            side = sides[at]
            return side is None or side in SETS or (whole and side == "train")

        found = with_records(source, facts, is_read)
        for at, (row, record) in enumerate(found):
            side = sides[at]
            if row.asked is None:
                continue
            if side is None and isinstance(record, Example):
                side = split_asked(row.asked, self.holdout, record)
            if side == "train":
                sample.add(row.asked.id, at)
                if whole and isinstance(record, Example):
                    kept[at] = record
            elif side in SETS and isinstance(record, Example):
                evaluated.append(record)
        rows = sample.items()
        ids = dict(zip(rows, _ids(facts, set(rows)), strict=True)) if rows and not whole else {}
        return Found(
            evaluated,
            [(ids[at], at) for at in rows] if ids else [],
            [kept[at] for at in rows] if whole else [],
        )


def _ids(facts: BlockFacts, rows: Collection[int]) -> list[str]:
    """Return the ids of rows of a block, by rising row."""
    return [row.asked.id for at, row in enumerate(fact_rows(facts)) if at in rows and row.asked]


@dataclass(frozen=True)
class ReadExamples:
    """Rows of a block -> the examples that lie there, in that order."""

    def __call__(
        self, sources: Mapping[str, Source], item: tuple[BlockFacts, Sequence[int]]
    ) -> list[Example]:
        """Return the examples."""
        facts, rows = item
        found = dict(
            enumerate(record for _, record in with_records(sources[facts.source], facts, _among(rows)))
        )
        return [e for at in rows if isinstance(e := found[at], Example)]


@dataclass(frozen=True)
class ReadBodies:
    """Rows of a block -> the records that lie there, as JSON."""

    def __call__(
        self, sources: Mapping[str, Source], item: tuple[BlockFacts, Collection[int]]
    ) -> dict[int, str]:
        """Return the records by row."""
        facts, rows = item
        if not rows:
            return {}
        found = enumerate(record for _, record in with_records(sources[facts.source], facts, _among(rows)))
        return {at: body_of(record) for at, record in found if record is not None}


def with_records(
    source: Source, facts: BlockFacts, is_wanted: Callable[[int, FactRow], bool]
) -> Iterator[tuple[FactRow, Record | None]]:
    """Yield each row of a block with its record, None where row `at` is not wanted: those are not read."""
    few = (
        list(fact_rows(facts)) if facts.rows <= SMALL_ROWS else None
    )  # else they are read twice: memory is bounded
    wanted_rows = np.zeros(facts.rows, np.bool_)
    wanted: set[int] = set()
    for at, row in enumerate(few or fact_rows(facts)):
        if is_wanted(at, row):
            wanted_rows[at] = True
            wanted.add(row.number)
    reads = read_block(source, facts.block, wanted) if wanted else iter(())
    first, number, made = 0, -1, None
    for at, row in enumerate(few or fact_rows(facts)):
        if row.number != number:
            first, number = at, row.number
            made = next(reads).made if number in wanted else None
        yield row, made[at - first] if made is not None and wanted_rows[at] else None


def _among(rows: Collection[int]) -> Callable[[int, FactRow], bool]:
    wanted = set(rows)
    return lambda at, _: at in wanted


def body_of(record: Record) -> str:
    """Return a record as JSON, in characters that every file can hold."""
    body = example_to_dict(record) if isinstance(record, Example) else asdict(record)
    text = _JSON.encode(body)
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _to_row(verdict: Verdict) -> list[Any]:
    side = verdict.side
    drop = side if isinstance(side, Drop) else None
    code = _BAD if side is None else _DROP if drop else SIDES.index(str(side))
    return [
        code,
        drop.reason if drop else None,
        drop.detail if drop else None,
        verdict.body,
        [leak._asdict() for leak in verdict.leaks] or None,
        verdict.shingles,
    ]


def read_verdicts(path: Path) -> Iterator[Verdict]:
    """Yield the verdicts of a table, in order."""
    for batch in read_rows(path):
        values = {name: batch.column(name).to_pylist() for name in ("side", "detail", "body", "shingles")}
        reasons = batch.column("reason").cast(pa.string()).to_pylist()
        leaks = lists_of(batch.column("leaks"))
        for i, code in enumerate(values["side"]):
            side: Any = (
                Drop(reasons[i], values["detail"][i])
                if code == _DROP
                else None
                if code == _BAD
                else SIDES[code]
            )
            found = tuple(Overlap(**leak) for leak in leaks[i]) if leaks[i] else ()
            yield Verdict(side, values["body"][i], found, values["shingles"][i])
