"""A block of a source -> a table of what can be said of each record without knowing the others, without its text.

<facts>/<source>/<key>.parquet, .json     one a block; the key covers content, reader, rules on one record, near-duplicate options

Whoever prepares, scores or constructs reads the same tables; a new source, hold-out or score makes none of them anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_dist.config.data import DataConfig
from sft_dist.core.files import fingerprint
from sft_dist.core.records import BadRecord, Drop, Example
from sft_dist.filters import Filter, build_filters, duplicate_key, filters_fingerprint
from sft_dist.filters.near_duplicates import Codes, Sketcher
from sft_dist.filters.ngrams import shingles
from sft_dist.filters.rules import Licences, answers_of
from sft_dist.holdout import Asked, InstructionSample
from sft_dist.selection.tables import TableWriter, lists_of, path_of, read_about, read_rows
from sft_dist.sources import Source
from sft_dist.sources.base import Read, block_fingerprint, read_block
from sft_dist.sources.files.blocks import LEAST_BYTES, MOST_BYTES, Block
from sft_dist.sources.files.data_files import BINARY, file_kind

VERSION = 1  # raised when other facts are written of the same records
FOLDER = "facts"  # in data.dir
CHUNK = 500  # records that are sketched together
BAD, EXAMPLE, PROMPT = range(3)

_NAMES = pa.dictionary(pa.int32(), pa.string())
COLUMNS: dict[str, pa.DataType] = {
    "number": pa.uint32(),  # of the record in its block: several examples may come of one
    "part": pa.uint16(),  # of the block
    "line": pa.uint32(),  # counted from the beginning of the part
    "kind": pa.uint8(),
    "chat": pa.bool_(),
    "task": _NAMES,
    "id_high": pa.uint64(),
    "id_low": pa.uint64(),
    "input_key": pa.uint64(),
    "answer_key": pa.uint64(),
    "origin": pa.list_(pa.string()),
    "short": pa.bool_(),
    "generated": pa.bool_(),
    "shows": pa.bool_(),
    "turns": pa.list_(pa.uint64()),
    "equal_high": pa.uint64(),
    "equal_low": pa.uint64(),
    "reason": _NAMES,
    "detail": pa.string(),
    "prompt_chars": pa.uint32(),
    "answer_chars": pa.uint32(),
    "messages": pa.uint16(),
    "license": _NAMES,
    "has_input": pa.bool_(),
}
"""Column -> type. Band codes of near duplicates come behind them: own_0, …, whole_0, … (whole: null without an INPUT); then `GRAMS`."""
GRAMS = "grams"  # the n-grams of words of prompt and answers that have the smallest codes, for a budget (budget.py)
GRAM_WORDS, KEPT_GRAMS = 2, 32


class BlockFacts(NamedTuple):
    """The facts of one block.

    Attributes:
        source: Name of the source.
        block: With the numbers of its lines, once the blocks before it are known.
        path: Of the table.
        rows: How many.
        about: What was noted of the block as a whole: `lines` of each part, `skipped`, `instructions`.
    """

    source: str
    block: Block
    path: Path
    rows: int
    about: Mapping[str, Any]


def sketcher_of(data: DataConfig) -> Sketcher | None:
    """Return what makes that which near duplicates are found by; None: they are kept."""
    rule = data.filters.near_duplicates
    return Sketcher(**rule.model_dump(exclude={"across_sources"})) if rule else None


def licence_rule(data: DataConfig, source: str) -> list[Licences]:
    """Return the rule on licences of a source, nothing where it is off."""
    allow, stated = data.filters.licenses, data.sources[source].license
    return [Licences(allow=allow, stated=None if stated and "{" in stated else stated)] if allow else []


@dataclass(frozen=True, kw_only=True)
class FactMaker:
    """Blocks -> facts. Holds what every block needs, and changes nothing.

    Attributes:
        rules: Rules that judge one example alone, by source.
        sketcher: Makes what near duplicates are found by; None: they are kept.
        seed: Of the samples of instructions.
        grams: Whether n-grams are noted, for a budget.
        keys: Source -> what facts depend on beside the content.
    """

    rules: Mapping[str, Sequence[Filter]]
    sketcher: Sketcher | None
    seed: int
    grams: bool
    keys: Mapping[str, str]

    @classmethod
    def of(cls, data: DataConfig, *, seed: int) -> FactMaker:
        """Return what a config asks for."""
        rule = data.filters.near_duplicates
        options = rule.model_dump(exclude={"across_sources"}) if rule else None
        alone = {
            name: data.filters_of(name).model_copy(
                update={
                    "near_duplicates": None,
                    "leakage": None,
                    "drop_ids": None,
                    "scores": {},
                    "budget": None,
                }
            )
            for name in data.sources
        }
        with_grams = [[GRAM_WORDS, KEPT_GRAMS]] if data.filters.budget else []
        licences = {name: licence_rule(data, name) for name in data.sources}
        return cls(
            grams=bool(with_grams),
            rules={name: [*licences[name], *build_filters(filters)] for name, filters in alone.items()},
            sketcher=sketcher_of(data),
            seed=seed,
            keys={
                name: fingerprint(
                    [
                        VERSION,
                        filters_fingerprint(filters),
                        options,
                        seed,
                        *(r.stated for r in licences[name]),
                        *with_grams,
                    ]
                )
                for name, filters in alone.items()
            },
        )

    def path(self, folder: Path, source: Source, block: Block) -> Path:
        """Return where the facts of a block lie."""
        key = fingerprint([self.keys[source.name], block_fingerprint(source, block)])
        return folder / source.name / key

    @property
    def schema(self) -> pa.Schema:
        """The columns of the tables."""
        bands = self.sketcher.bands if self.sketcher else 0
        codes = [(f"{name}_{i}", pa.uint64()) for name in ("own", "whole") for i in range(bands)]
        grams = [(GRAMS, pa.list_(pa.uint64()))] if self.grams else []
        return pa.schema([*COLUMNS.items(), *codes, *grams])

    def make(self, source: Source, block: Block, path: Path) -> None:
        """Write the facts of a block."""
        instructions: dict[str, InstructionSample] = defaultdict(lambda: InstructionSample(self.seed))
        parts = {str(part.path): i for i, part in enumerate(block)}
        rules = self.rules.get(source.name, ())
        with TableWriter(path, self.schema) as table:
            records = read_block(source, block)
            while chunk := list(islice(records, CHUNK)):
                table.add(self._rows(chunk, parts, rules, instructions))
            table.close(
                {
                    "parts": [[part.path.name, part.start, part.end] for part in block],
                    "lines": [_lines_in(part.path, part.start, part.end) for part in block],
                    "skipped": {reason: dict(tasks) for reason, tasks in source.skipped.items()},
                    "instructions": {task: sample.to_lists() for task, sample in instructions.items()},
                }
            )

    def _rows(
        self,
        chunk: Sequence[Read],
        parts: Mapping[str, int],
        rules: Sequence[Filter],
        instructions: Mapping[str, InstructionSample],
    ) -> list[list[Any]]:
        rows: list[list[Any]] = []
        sketched: list[tuple[int, Example]] = []
        bands = [None] * (2 * self.sketcher.bands if self.sketcher else 0)
        none = [None] * self.grams
        for read in chunk:
            for record in read.made:
                if isinstance(record, BadRecord):
                    rest = [None] * (len(COLUMNS) - 4)
                    rows.append(
                        [read.number, parts.get(record.file, 0), record.line, BAD, *rest, *bands, *none]
                    )
                    continue
                instructions[record.task].add(record)
                drop = next((d for rule in rules if (d := rule(record))), None)
                if drop is None and self.sketcher:
                    sketched.append((len(rows), record))
                grams = [_grams(record)] if self.grams and drop is None else none
                rows.append([*_row(read, parts, record, drop), *bands, *grams])
        if self.sketcher:
            for (at, _), sketch in zip(sketched, self.sketcher([e for _, e in sketched]), strict=True):
                whole = sketch.whole_bands.tolist() if sketch.has_input else bands[: self.sketcher.bands]
                end = len(COLUMNS) + len(bands)
                rows[at][len(COLUMNS) - 1 : end] = [sketch.has_input, *sketch.bands.tolist(), *whole]
        return rows


def _row(read: Read, parts: Mapping[str, int], example: Example, drop: Drop | None) -> list[Any]:
    asked, equal = Asked.of(example), duplicate_key(example)
    return [
        read.number,
        parts.get(read.raw.file, 0) if read.raw else 0,
        read.raw.line if read.raw else None,
        PROMPT if asked.is_prompt else EXAMPLE,
        asked.is_chat,
        asked.task,
        int(asked.id[:16], 16),
        int(asked.id[16:], 16),
        int(asked.key, 16),
        int(asked.answered, 16),
        asked.origin,
        asked.short,
        asked.generated,
        asked.shows,
        [int(key, 16) for key in asked.turns],
        equal >> 64,
        equal & 0xFFFFFFFFFFFFFFFF,
        drop.reason if drop else None,
        drop.detail.encode("utf-8", "backslashreplace").decode() if drop else None,
        sum(len(m.content) for m in example.messages if m.role == "user"),
        sum(map(len, answers_of(example))),
        min(len(example.messages), 0xFFFF),
        example.license,
        None,
    ]


def _grams(example: Example) -> list[int]:
    """Return the distinct n-grams of what is asked and answered that have the smallest codes: a sample that equal texts share."""
    text = "\n".join(m.content for m in example.messages if m.role != "system")
    found: list[int] = shingles(text, GRAM_WORDS)[:KEPT_GRAMS].tolist()
    return found


def _lines_in(path: Path, start: int, end: int | None) -> int:
    """Return how many lines begin in a part of a file; 0 where nobody asks: no part follows, or it is no text."""
    if end is None or file_kind(path)[0] in BINARY or not path.is_file():
        return 0
    lines = 0
    with path.open("rb") as stream:
        stream.seek(start)
        while (left := end - stream.tell()) > 0 and (read := stream.read(min(left, 1 << 22))):
            lines += read.count(b"\n")
    return lines


def read_block_facts(source: str, block: Block, path: Path) -> BlockFacts | None:
    """Return the facts of a block; None where they are not made, or damaged."""
    about = read_about(path)
    return None if about is None else BlockFacts(source, block, path, about["rows"], about)


def number_lines(found: Iterable[BlockFacts]) -> list[BlockFacts]:
    """Return the facts of one source, whose blocks know by which number their first lines are called."""
    out = []
    lines: Counter[Path] = Counter()
    for facts in found:
        parts = []
        for part, count in zip(facts.block, facts.about["lines"], strict=True):
            parts.append(part._replace(line=lines[part.path] + 1) if count else part)
            lines[part.path] += count
        out.append(facts._replace(block=tuple(parts)))
    return out


def hexes(high: NDArray[np.uint64], low: NDArray[np.uint64] | None = None) -> list[str]:
    """Return the 16 (of two arrays 32) hex digits of each number."""
    columns = [high] if low is None else [high, low]
    text = np.stack(columns, axis=1).astype(">u8").tobytes().hex()
    width = 16 * len(columns)
    return [text[i : i + width] for i in range(0, len(text), width)]


class FactRow(NamedTuple):
    """The facts of one record, as the stages that follow use them.

    Attributes:
        number: Of the record in its block.
        asked: What holding out goes by; None: it cannot be read.
        drop: Why a rule on one record drops it.
    """

    number: int
    asked: Asked | None
    drop: Drop | None


_READ = [
    "number", "kind", "chat", "task", "id_high", "id_low", "input_key", "answer_key", "origin", "short", "generated", "shows", "turns",
    "reason", "detail",
]  # fmt: skip


def fact_rows(facts: BlockFacts) -> Iterator[FactRow]:
    """Yield the facts of each record of a block, in order."""
    for batch in read_rows(facts.path, _READ):
        yield from _fact_rows(batch, facts.source)


def _fact_rows(batch: pa.RecordBatch, source: str) -> Iterator[FactRow]:
    numbers, kinds, chats, shorts, made, shown, details = (
        batch.column(name).to_pylist()
        for name in ("number", "kind", "chat", "short", "generated", "shows", "detail")
    )
    origins, turns = lists_of(batch.column("origin")), lists_of(batch.column("turns"))
    tasks, reasons = (batch.column(n).cast(pa.string()).to_pylist() for n in ("task", "reason"))
    ids = hexes(_ints(batch, "id_high"), _ints(batch, "id_low"))
    keys, answered = hexes(_ints(batch, "input_key")), hexes(_ints(batch, "answer_key"))
    for i, kind in enumerate(kinds):
        if kind == BAD:
            yield FactRow(numbers[i], None, None)
            continue
        asked = Asked(
            ids[i],
            tasks[i],
            source,
            keys[i],
            answered[i],
            tuple(origins[i]),
            kind == PROMPT,
            chats[i],
            shorts[i],
            made[i],
            tuple([f"{key:016x}" for key in turns[i]]) if turns[i] else (),
            shown[i],
        )
        drop = None if reasons[i] is None else Drop(reasons[i], details[i])
        yield FactRow(numbers[i], asked, drop)


def _ints(batch: pa.RecordBatch, name: str) -> NDArray[np.uint64]:
    filled: NDArray[np.uint64] = batch.column(name).fill_null(0).to_numpy(zero_copy_only=False)
    return filled


def facts_file(facts: BlockFacts) -> str:
    """Return the Parquet file of a block's facts."""
    return str(path_of(facts.path, ".parquet"))


class Wanted(NamedTuple):
    """A block whose facts are wanted, and where they belong."""

    source: str
    block: Block
    path: Path
    number: int


@dataclass(frozen=True)
class MakeFacts:
    """Wanted blocks -> their facts."""

    maker: FactMaker

    def __call__(self, sources: Mapping[str, Source], item: Wanted) -> BlockFacts:
        """Write the facts of a block."""
        self.maker.make(sources[item.source], item.block, item.path)
        facts = read_block_facts(item.source, item.block, item.path)
        assert facts is not None
        return facts


def bytes_of(block: Block) -> int:
    """Return about how many bytes of input a block is; a source that is not made of files counts as one block."""
    sizes = (
        p.path.stat().st_size
        if p.whole and p.path.is_file()
        else LEAST_BYTES
        if p.end is None
        else min(p.end - p.start, MOST_BYTES)
        for p in block
    )
    return sum(sizes) or LEAST_BYTES


class Ranked(NamedTuple):
    """A record in reading order, as its neighbours see it.

    Attributes:
        id: Its id.
        task: Its task.
        is_prompt: Whether it has no answer.
        equal: The same for examples that say the same; None: no other one of its source does.
        bands: Of near duplicates: own and whole (`Sketch`); None: no other one shares a band.
    """

    id: str
    task: str
    is_prompt: bool
    equal: int | None
    bands: tuple[Codes, Codes] | None


def ranked(
    facts: BlockFacts, *, bands: int, banded: NDArray[np.bool_] | None, equal: NDArray[np.bool_] | None
) -> Iterator[Ranked | None]:
    """Yield the records of a block as their neighbours see them; None: it cannot be read.

    Args:
        facts: The block.
        bands: Of a sketch; 0: none were made.
        banded: [rows] Which rows share a band with another; None: no duplicates are looked for by bands.
        equal: [rows] Which rows say what another of the source says; None: any may.
    """
    names = [f"{name}_{i}" for name in ("own", "whole") for i in range(bands)] if banded is not None else []
    columns = ["kind", "task", "id_high", "id_low", "equal_high", "equal_low", "has_input", *names]
    first = 0
    for batch in read_rows(facts.path, columns):
        n = batch.num_rows
        kinds = batch.column("kind").to_pylist()
        tasks = batch.column("task").cast(pa.string()).to_pylist()
        ids = hexes(_ints(batch, "id_high"), _ints(batch, "id_low"))
        high, low = _ints(batch, "equal_high").tolist(), _ints(batch, "equal_low").tolist()
        shared = set(np.flatnonzero(banded[first : first + n]).tolist()) if banded is not None else set()
        codes = (
            np.stack([_ints(batch, name) for name in names], axis=1)
            if shared
            else np.empty((0, 0), np.uint64)
        )
        has_input = batch.column("has_input").to_pylist()
        for i, kind in enumerate(kinds):
            if kind == BAD:
                yield None
                continue
            key = high[i] << 64 | low[i] if equal is None or equal[first + i] else None
            own: tuple[Codes, Codes] | None = None
            if i in shared:
                own = codes[i, :bands], codes[i, bands:] if has_input[i] else codes[i, :bands]
            yield Ranked(ids[i], tasks[i], kind == PROMPT, key, own)
        first += n
