"""What can be said of a record without knowing the others, in chunks: by this process, or by a pool in the same order."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, TypeAlias, TypeVar

from sft_dist.core.records import BadRecord, Drop, Example
from sft_dist.filters import Filter, duplicate_key
from sft_dist.filters.decontamination import ContaminationIndex, Overlap
from sft_dist.filters.near_duplicates import Sketch, Sketcher
from sft_dist.holdout import Holdout, Side, split

CHUNK = 500  # records that a worker filters at a time: large for batched signatures, small enough to keep memory low
AHEAD = 3  # chunks a worker that are read before their turn: bounds memory, keeps the workers busy
POOL_RECORDS = 20_000  # fewer are judged faster than workers start

Record: TypeAlias = Example | BadRecord
Chunk = TypeVar("Chunk")
Result = TypeVar("Result")


class Verdict(NamedTuple):
    """What is known of one record by itself. What the others decide (duplicates, thresholds) comes later."""

    side: Side | Drop | None  # None: it cannot be read
    key: int = 0  # equal for equal content
    leaks: tuple[Overlap, ...] = ()
    sketch: Sketch | None = None


@dataclass(frozen=True, kw_only=True)
class RecordFilter:
    """Records -> verdicts. Holds what every chunk needs, and changes nothing.

    Attributes:
        holdout: What is never trained on.
        drop_eval_inputs: See `holdout.holdout`.
        rules: Rules that judge one example alone, by source.
        leaks: The evaluation examples' n-grams; None: leakage is not looked for.
        sketcher: Makes what near duplicates are found by; None: they are kept.
    """

    holdout: Holdout
    drop_eval_inputs: bool
    rules: Mapping[str, Sequence[Filter]]
    leaks: ContaminationIndex | None
    sketcher: Sketcher | None

    def __call__(self, records: Sequence[Record]) -> list[Verdict]:
        """Return a verdict for each record."""
        out: list[Verdict] = []
        candidates: list[int] = []
        for record in records:
            if isinstance(record, BadRecord):
                out.append(Verdict(None))
                continue
            side = split(record, self.holdout, drop_eval_inputs=self.drop_eval_inputs)
            if side == "train":
                side = next(
                    (drop for rule in self.rules.get(record.source, ()) if (drop := rule(record))), side
                )
            if side != "train":
                out.append(Verdict(side))
                continue
            leaks = tuple(self.leaks(record)) if self.leaks else ()
            if not leaks:
                candidates.append(len(out))
            out.append(Verdict(side, duplicate_key(record), leaks))
        if self.sketcher:
            examples = [r for i in candidates if isinstance(r := records[i], Example)]
            for i, sketch in zip(candidates, self.sketcher(examples), strict=True):
                out[i] = out[i]._replace(sketch=sketch)
        return out

    @property
    def heavy(self) -> bool:
        """True when judging costs more than handing a record to another process."""
        return (
            self.leaks is not None
            or self.sketcher is not None
            or any(len(rules) > 2 for rules in self.rules.values())
        )


class FilterPool(ExitStack):
    """A record_filter, or several processes of it, for the length of a `with`."""

    def __init__(self, record_filter: RecordFilter, *, records: int, processes: int | None) -> None:
        super().__init__()
        self._check_source = record_filter
        self._processes = processes or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None
        if self._processes > 1 and record_filter.heavy and records >= POOL_RECORDS:
            # Not forked: the threads of the MinHash library, once used, would hang in a copy of this process.
            context = multiprocessing.get_context("spawn")
            self._pool = self.enter_context(
                ProcessPoolExecutor(self._processes, context, initializer=_start, initargs=(record_filter,))
            )

    def __call__(self, records: Iterable[Record]) -> Iterator[tuple[Record, Verdict]]:
        """Yield each record with its verdict, in order."""
        stream = iter(records)
        chunks: Iterator[list[Record]] = iter(lambda: list(islice(stream, CHUNK)), [])
        if self._pool is None:
            for chunk in chunks:
                yield from zip(chunk, self._check_source(chunk), strict=True)
            return
        for chunk, verdicts in work_ahead(self._pool, _work, chunks, ahead=AHEAD * self._processes):
            yield from zip(chunk, verdicts, strict=True)


def work_ahead(
    pool: Executor, work: Callable[[Chunk], Result], chunks: Iterable[Chunk], *, ahead: int
) -> Iterator[tuple[Chunk, Result]]:
    """Yield (chunk, work(chunk)) in order; `ahead` chunks are read before their turn, and no more."""
    waiting: deque[tuple[Chunk, Future[Result]]] = deque()
    for chunk in chunks:
        waiting.append((chunk, pool.submit(work, chunk)))
        if len(waiting) >= ahead:
            first, done = waiting.popleft()
            yield first, done.result()
    for last, done in waiting:
        yield last, done.result()


_check_source: Callable[[Sequence[Record]], list[Verdict]] | None = None  # of a worker process


def _start(record_filter: RecordFilter) -> None:
    global _check_source  # noqa: PLW0603  set once, by the pool's initializer
    os.environ["RAYON_NUM_THREADS"] = "1"  # the processes are the parallelism
    _check_source = record_filter


def _work(records: list[Record]) -> list[Verdict]:
    assert _check_source is not None
    return _check_source(records)
