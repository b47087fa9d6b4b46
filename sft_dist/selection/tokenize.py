"""The training examples of one source -> its token store, shard by shard, rendered by a pool, rejects beside it."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count as count_from
from itertools import groupby, islice
from pathlib import Path

from sft_dist.core.files import atomic_path
from sft_dist.core.records import BadRecord, Drop, Example, Tokens
from sft_dist.render.renderer import Renderer
from sft_dist.selection.files import TRAIN, Selection, reject, selected_records
from sft_dist.selection.judge import body_of
from sft_dist.selection.workers import AHEAD, work_ahead
from sft_dist.shards import ShardWriter, finish_store, open_build, token_dtype
from sft_dist.sources import Source

CHUNK = 500  # examples that a worker renders at a time: large for batch encoding, small for a smooth bar
RENDERED = (
    "rendered"  # in what is noted of shards and stores: the renderer's own counts, beside drops by reason
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ExampleList:
    """Examples in memory, as one block."""

    members: list[Example]
    blocks: int = 1

    @property
    def count(self) -> int:
        """Return how many there are."""
        return len(self.members)

    def read(self, wanted: set[int]) -> Iterator[tuple[int, Iterator[Example]]]:
        """Yield (0, all of them) if that is wanted."""
        if 0 in wanted:
            yield 0, iter(self.members)


@dataclass(frozen=True)
class SelectedExamples:
    """The training examples of a source, in blocks of `size` records. A block is a shard."""

    source: Source
    selection: Selection
    size: int
    limit: int | None

    @property
    def blocks(self) -> int:
        """Return how many blocks its records make."""
        return max(1, -(-self.selection.read // self.size))

    @property
    def count(self) -> int:
        """Return how many examples are taken."""
        return min(self.selection.kept, self.limit or self.selection.kept)

    def read(self, wanted: set[int]) -> Iterator[tuple[int, Iterator[Example]]]:
        """Yield (block, its training examples) in order; of the source only those blocks are read in which they lie."""
        if not self.selection.read:
            yield from ((block, iter(())) for block in sorted(wanted))
            return

        def is_wanted(first: int, end: int) -> bool:
            return not wanted.isdisjoint(range(first // self.size, (end - 1) // self.size + 1))

        last = (max(wanted, default=-1) + 1) * self.size
        records = selected_records(self.source, self.selection, is_wanted, last)
        for block, members in groupby(records, key=lambda found: found[0] // self.size):
            if block in wanted:
                yield block, self._members(block, members)

    def _members(self, block: int, records: Iterable[tuple[int, Example | BadRecord]]) -> Iterator[Example]:
        codes = self.selection.codes
        share = min(1.0, (self.limit or math.inf) / max(1, self.selection.kept))
        numbers = count_from(int((codes[: block * self.size] == TRAIN).sum()))
        for number, record in records:
            if codes[number] == TRAIN and isinstance(record, Example):
                i = next(numbers)
                if share == 1 or int((i + 1) * share) > int(i * share):
                    yield record


@dataclass(frozen=True, kw_only=True)
class StoreBuild:
    """The build of one store: a block is a shard, rendered by a pool, written in order."""

    name: str
    examples: SelectedExamples | ExampleList
    tasks: tuple[str, ...]
    renderer: Renderer
    rejects: Path
    store: Path
    key: dict[str, str]
    processes: int | None
    progress: Progress

    def run(self, part: tuple[int, int]) -> None:
        """Build the missing shards of this part; close the store when no shard is missing any more."""
        everything = set(range(self.examples.blocks))
        missing = {b for b in everything - set(open_build(self.store, self.key)) if b % part[1] == part[0]}
        if missing:
            with ExitStack() as stack:
                pool = self._pool(stack)
                for block, members in self.examples.read(missing):
                    self.progress(f"rendering {self.name}: shard {block + 1} of {self.examples.blocks}")
                    self._shard(block, members, pool)
        done = open_build(self.store, self.key)
        if set(done) >= everything:
            dropped: Counter[str] = Counter()
            rendered: Counter[str] = Counter()
            for record in done.values():
                dropped.update({reason: n for reason, n in record.note.items() if reason != RENDERED})
                rendered.update(record.note.get(RENDERED, {}))
            for rejects in self.rejects.glob(f"{self.name}-render-*.jsonl"):
                number = rejects.stem.rpartition("-")[2]
                if number.isdecimal() and int(number) not in everything:
                    rejects.unlink(missing_ok=True)  # an earlier store had more shards
            finish_store(
                self.store,
                key=self.key,
                tasks=self.tasks,
                sources=[self.name],
                shards=everything,
                info={"dropped": dict(dropped), RENDERED: dict(rendered)},
            )

    @property
    def _processes(self) -> int:
        return self.processes or len(os.sched_getaffinity(0))

    def _pool(self, stack: ExitStack) -> Executor | None:
        """A pool of forked workers; None for small sources, which the tokenizer's own threads handle faster."""
        if self._processes == 1 or self.examples.count < 4 * CHUNK * self._processes:
            return None
        os.environ["TOKENIZERS_PARALLELISM"] = (
            "false"  # one thread a worker: the processes are the parallelism
        )
        context = multiprocessing.get_context("fork")
        return stack.enter_context(
            ProcessPoolExecutor(
                self._processes, context, initializer=_start_worker, initargs=(self.renderer,)
            )
        )

    def _shard(self, block: int, members: Iterator[Example], pool: Executor | None) -> None:
        dropped: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        code = {t: i for i, t in enumerate(self.tasks)}
        rejects = self.rejects / f"{self.name}-render-{block:05d}.jsonl"
        with ShardWriter(
            self.store, block, token_dtype(self.renderer.tokenizer.vocab_size), key=self.key
        ) as writer:
            # whole before the record of the shard that counts them
            with atomic_path(rejects) as aside, aside.open("w", encoding="utf-8") as file:
                chunks: Iterator[list[Example]] = iter(lambda: list(islice(members, CHUNK)), [])
                if pool:
                    rendered = work_ahead(pool, _work, chunks, ahead=AHEAD * self._processes)
                else:
                    rendered = ((c, _render(self.renderer, c)) for c in chunks)
                for chunk, (outcomes, counts) in rendered:
                    counted += counts
                    for example, tokens in zip(chunk, outcomes, strict=True):
                        if isinstance(tokens, Drop):
                            dropped[tokens.reason] += 1
                            reject(file, tokens, body_of(example))
                        else:
                            for k, document in enumerate(tokens):
                                writer.add(document_id(example.id, k), code[example.task], 0, document)
            writer.close(note={**dropped, RENDERED: dict(counted)})


def document_id(example_id: str, k: int) -> str:
    """Return the id of the k-th document of an example (`render.expand_turns`); the first has the example's own."""
    return example_id if k == 0 else hashlib.blake2b(f"{example_id} {k}".encode(), digest_size=16).hexdigest()


_renderer: Renderer | None = None  # of a worker process


def _start_worker(renderer: Renderer) -> None:
    global _renderer  # noqa: PLW0603  set once, by the pool's initializer
    _renderer = renderer


def _work(examples: list[Example]) -> tuple[list[list[Tokens] | Drop], Counter[str]]:
    assert _renderer is not None
    return _render(_renderer, examples)


def _render(renderer: Renderer, examples: list[Example]) -> tuple[list[list[Tokens] | Drop], Counter[str]]:
    """Return the outcomes, and what the renderer counted meanwhile."""
    renderer.counts.clear()
    outcomes = renderer.documents(examples)
    return outcomes, renderer.counts.copy()
