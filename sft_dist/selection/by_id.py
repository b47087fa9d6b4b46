"""Training examples that every other rule keeps, and files by id -> which of them are left out: listed ids, scores, a budget.

These rules come last: `sft-dist score` and other tools measure what the others keep, and a share of a task is a share of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_dist.config.data import DataConfig
from sft_dist.config.filters import ScoreRule
from sft_dist.core.errors import UserError
from sft_dist.core.process import logger
from sft_dist.core.records import Drop
from sft_dist.selection.budget import over_budget
from sft_dist.selection.facts import BlockFacts
from sft_dist.selection.id_files import LIST_IDS, IdFile, files_by_id, join_ids
from sft_dist.selection.joins import open_facts
from sft_dist.selection.tables import read_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]


class LeftOut(NamedTuple):
    """What one rule leaves out.

    Attributes:
        places: int64, ascending: rows of all blocks laid end to end.
        drop: Place -> why.
    """

    places: NDArray[np.int64]
    drop: Callable[[int], Drop]


class ByIdRules:
    """The rules that are on, each asked once, in the order of the config. False: none is on.

    Args:
        data: The config's section.
        blocks: The facts of every source, in order.
        folder: For what does not fit into memory.
        threads: Of the engine.
        seed: The run's seed.
        share: Of the records that the facts are of: below 1 for a sample, which has not all of the ids.

    Attributes:
        files: What was found in each file, by key of data.filters.
    """

    def __init__(
        self,
        data: DataConfig,
        blocks: Mapping[str, Sequence[BlockFacts]],
        folder: Path,
        *,
        threads: int,
        seed: int,
        share: float,
    ) -> None:
        self.files: dict[str, IdFile] = {}
        self._data, self._blocks, self._folder, self._threads = data, blocks, folder, threads
        self._seed, self._share = seed, share

    def __bool__(self) -> bool:
        filters = self._data.filters
        return bool(filters.drop_ids or filters.scores or filters.budget)

    def __call__(
        self, trained: Bools, cells: NDArray[np.int32], names: Sequence[tuple[str, str]]
    ) -> Iterator[LeftOut]:
        """Yield what each rule leaves out.

        Args:
            trained: [rows] Which rows of all blocks are training examples so far; it follows what is left out.
            cells: [rows] Code of the task in its source.
            names: (source, task) by that code.
        """
        quality: Floats | None = None
        filters, found = self._data.filters, files_by_id(self._data)
        budget = filters.budget
        self._trained = trained
        every = [facts for blocks in self._blocks.values() for facts in blocks]
        with ExitStack() as stack:
            engine = stack.enter_context(
                open_facts(every, memory_gb=self._data.memory_gb, threads=self._threads, folder=self._folder)
            )
            if filters.drop_ids:
                listed = ~np.isnan(
                    self._values(engine, "drop_ids", filters.drop_ids, found["drop_ids"], None)
                )
                path = filters.drop_ids
                yield self._left_out(listed, lambda _: Drop("listed", f"its id stands in {path}"))
            for name, rule in filters.scores.items():
                key = f"scores.{name}"
                path = rule.file or str(found[key][0].parent)
                values = self._values(engine, key, path, found[key], rule.column or name)
                self._check(name, path)
                if budget and budget.score == name:
                    quality = values if rule.best == "high" else -values
                for dropped, drop in judged(name, rule, values, self._trained, cells):
                    yield self._left_out(dropped, drop)
        if budget:
            tasks = sorted({task for _, task in names})
            task_of = np.array([tasks.index(task) for _, task in names], np.int32)
            yield self._left_out(
                *over_budget(
                    every,
                    trained,
                    task_of[cells],
                    quality,
                    examples=budget.examples
                    if self._share == 1
                    else max(len(tasks), round(budget.examples * self._share)),
                    task_min=budget.task_min,
                    seed=self._seed,
                )
            )

    def _values(
        self, engine: DuckDBPyConnection, key: str, path: str, files: list[Path], column: str | None
    ) -> Floats:
        values, ids, unknown = join_ids(engine, key, files, column, len(self._trained))
        missing = int((self._trained & np.isnan(values)).sum())
        self.files[key] = IdFile(
            file=path, ids=ids, unknown=unknown, examples=int(self._trained.sum()), missing=missing
        )
        if unknown and self._share == 1:
            logger().warning(
                "data.filters.%s: %s of the %s ids in %s are of no record of these sources",
                key,
                f"{unknown:,}",
                f"{ids:,}",
                path,
            )
        return values

    def _check(self, name: str, path: str) -> None:
        file, rule = self.files[f"scores.{name}"], self._data.filters.scores[name]
        if file.missing and file.missing == file.examples:
            raise UserError(
                f"data.filters.scores.{name}: none of the {file.examples:,} training examples has a score in {path}, so none can be judged; "
                f"its ids are of other records; {LIST_IDS}, or score the examples again"
            )
        if file.missing:
            logger().warning(
                "data.filters.scores.%s: %s of %s training examples have no score in %s; %s", name, f"{file.missing:,}",
                f"{file.examples:,}", path, "they are dropped" if rule.missing == "drop" else "they are kept (missing=drop drops them)",
            )  # fmt: skip

    def _left_out(self, dropped: Bools, drop: Callable[[int], Drop]) -> LeftOut:
        places = np.flatnonzero(dropped & self._trained)
        self._trained[places] = False
        return LeftOut(places, drop)


def cells_of(blocks: Mapping[str, Sequence[BlockFacts]]) -> tuple[NDArray[np.int32], list[tuple[str, str]]]:
    """Return for each row of all blocks the code of its task in its source, and (source, task) by code."""
    codes: dict[tuple[str, str], int] = {}
    columns = []
    for source, found in blocks.items():
        for facts in found:
            for batch in read_rows(facts.path, ["task"]):
                column = batch.column(0)
                own = [codes.setdefault((source, task), len(codes)) for task in column.dictionary.to_pylist()]
                places = pa.compute.fill_null(column.indices, 0).to_numpy()
                columns.append(np.array(own or [0], np.int32)[places])
    return np.concatenate(columns) if columns else np.empty(0, np.int32), list(codes)


def judged(
    name: str, rule: ScoreRule, values: Floats, trained: Bools, cells: NDArray[np.int32]
) -> Iterator[tuple[Bools, Callable[[int], Drop]]]:
    """Yield (which rows a limit drops, why) for each limit of a score; `trained` may lose rows meanwhile.

    Args:
        name: Of the score.
        rule: Its limits.
        values: [rows] NaN: no score.
        trained: [rows] Training examples so far.
        cells: [rows] Code of the task in its source.
    """
    if rule.missing == "drop":
        yield np.isnan(values), lambda _: Drop("score_missing", f"it has no score {name}")
    if rule.min is not None:
        least = rule.min
        yield values < least, lambda i: Drop("score_low", f"{name} {values[i]:.3f} < {least:g}")
    if rule.max is not None:
        most = rule.max
        yield values > most, lambda i: Drop("score_high", f"{name} {values[i]:.3f} > {most:g}")
    if rule.keep_top is not None:
        sign = 1.0 if rule.best == "high" else -1.0
        limits = _limits(sign * values, trained & ~np.isnan(values), cells, rule.keep_top)[cells]
        how, top = "<" if sign > 0 else ">", f"{rule.keep_top:.0%}"
        yield (
            sign * values < limits,
            lambda i: Drop(
                "score_rank",
                f"{name} {values[i]:.3f} {how} {sign * limits[i]:.3f}, of the task's best {top} the last",
            ),
        )


def _limits(values: Floats, judged_rows: Bools, cells: NDArray[np.int32], keep_top: float) -> Floats:
    """Return of each cell the lowest value that is kept: rounded so that a task of one example keeps it; ties are all kept."""
    rows = np.flatnonzero(judged_rows)
    rows = rows[np.lexsort((values[rows], cells[rows]))]
    limits = np.full(int(cells.max(initial=-1)) + 1, -np.inf)
    first = np.flatnonzero(np.diff(cells[rows], prepend=-1))
    for start, end in zip(first.tolist(), [*first[1:].tolist(), len(rows)], strict=True):
        if end > start:
            kept = math.ceil(round(keep_top * (end - start), 9))
            limits[cells[rows[start]]] = values[rows[end - kept]]
    return limits
