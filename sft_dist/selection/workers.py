"""Jobs on blocks: by this process, or by several of them that open the sources for themselves; results come in order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sft_dist.config.data import DataConfig
from sft_dist.config.sources import SourceConfig
from sft_dist.sources import Source, open_source

AHEAD = 3  # jobs a worker that are handed out before their turn: bounds memory, keeps the workers busy
POOL_BYTES = 1 << 25  # of input; less is done before workers have started

Item = TypeVar("Item")
Result = TypeVar("Result")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Job(Protocol[Item_contra, Result_co]):
    """What is done with one item; it can be pickled, and changes nothing that is in memory."""

    def __call__(self, sources: Mapping[str, Source], item: Item_contra) -> Result_co:
        """Return the result for an item."""


class Workers(ExitStack):
    """This process, or a pool, for the length of a `with`.

    Args:
        data: What the workers open their sources from.
        sources: The sources as this process has them.
    """

    def __init__(self, data: DataConfig, sources: Mapping[str, Source]) -> None:
        super().__init__()
        self._configs = {name: data.sources[name] for name in sources if name in data.sources}
        self._sources = sources
        self._processes = data.processes or len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None
        self._folder = ""
        self._jobs = 0

    def __call__(
        self, job: Job[Item, Result], items: Sequence[Item] | Iterator[Item], *, size: int
    ) -> Iterator[tuple[Item, Result]]:
        """Yield (item, its result), in order.

        Args:
            job: What is done.
            items: Of an iterator, a few are taken before their turn.
            size: Bytes of input, which decide whether a pool is worth it.
        """
        few = isinstance(items, Sequence) and len(items) < 2
        if self._processes == 1 or size < POOL_BYTES or few or set(self._configs) < set(self._sources):
            yield from ((item, job(self._sources, item)) for item in items)
            return
        pool = self._started()
        self._jobs += 1
        path = Path(self._folder) / f"job-{self._jobs}"
        path.write_bytes(pickle.dumps(job))
        run: Callable[[Item], Result] = _Run(str(path))
        yield from work_ahead(pool, run, items, ahead=AHEAD * self._processes)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._folder = self.enter_context(tempfile.TemporaryDirectory(prefix="sft-jobs-"))
            # Not forked: the threads of the MinHash library, once used, would hang in a copy of this process.
            context = multiprocessing.get_context("spawn")
            self._pool = self.enter_context(
                ProcessPoolExecutor(self._processes, context, initializer=_start, initargs=(self._configs,))
            )
        return self._pool


def work_ahead(
    pool: Executor, work: Callable[[Item], Result], items: Iterable[Item], *, ahead: int
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, work(item)) in order; `ahead` items are taken before their turn, and no more."""
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(work, item)))
        if len(waiting) >= ahead:
            first, done = waiting.popleft()
            yield first, done.result()
    for last, done in waiting:
        yield last, done.result()


class _Sources(dict[str, Source]):
    """The sources of a worker process, opened when they are asked for."""

    def __init__(self, configs: Mapping[str, SourceConfig]) -> None:
        super().__init__()
        self._configs = configs

    def __missing__(self, name: str) -> Source:
        self[name] = open_source(name, self._configs[name])
        return self[name]


_sources: Mapping[str, Source] = {}  # of a worker process


def _start(configs: Mapping[str, SourceConfig]) -> None:
    global _sources  # noqa: PLW0603  set once, by the pool's initializer
    os.environ["RAYON_NUM_THREADS"] = "1"  # the processes are the parallelism
    _sources = _Sources(configs)


class _Run:
    """Runs a job that lies in a file: it may be large, and each worker reads it once."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, item: Any) -> Any:
        return _job(self.path)(_sources, item)


@lru_cache(maxsize=1)
def _job(path: str) -> Job[Any, Any]:
    job: Job[Any, Any] = pickle.loads(Path(path).read_bytes())  # noqa: S301  written by the process that started this one
    return job
