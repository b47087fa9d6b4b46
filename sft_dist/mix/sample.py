"""Corpus -> the indices that one epoch draws, in shuffled order.

The pool (what is drawn from at all) and the counts of each cell depend on the seed alone; which examples fill a count that is
no whole number of passes is drawn afresh every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft_dist.config.sources import SourceMix
from sft_dist.core.errors import UserError
from sft_dist.core.rng import derive
from sft_dist.mix.corpus import Corpus
from sft_dist.mix.counts import example_counts
from sft_dist.mix.weights import PRESETS, Cells, Mixture, resolve
from sft_dist.pack.jit import jit
from sft_dist.pack.shuffle import sample_segments, shuffle


@dataclass(frozen=True, kw_only=True, slots=True)
class Pool:
    """What every epoch draws from. P examples in C cells (the part of a task that one source holds).

    Attributes:
        examples: int64 [P] indices into the corpus, cell by cell.
        first: int64 [C+1] where each cell begins in `examples`, then P.
        counts: int64 [C] examples that an epoch draws from each cell.
        sources: int64 [C] source code of each cell.
        tasks: int64 [C] task code of each cell.
        duplicates: Examples left out because an earlier source holds them.
    """

    examples: NDArray[np.int64]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]
    sources: NDArray[np.int64]
    tasks: NDArray[np.int64]
    duplicates: int


def make_pool(corpus: Corpus, mixture: Mixture, seed: int) -> Pool:
    """Decide what is drawn from and how often, for all epochs. Raises UserError for settings that contradict."""
    sources = resolve(mixture, corpus.source_names)
    kept = _taken(corpus, sources, seed)
    duplicates = _drop_duplicates(corpus, kept) if mixture.drop_duplicates and len(corpus.stores) > 1 else 0
    n_tasks = len(corpus.task_names)
    n_cells = n_tasks * len(corpus.stores)
    examples, first = _by_cell(kept, corpus.source_of, corpus.task_of, n_tasks, n_cells)
    if mixture.preset is not None and (limit := PRESETS[mixture.preset].task_pool) is not None:
        examples, first = _limit_cells(examples, first, limit, derive(seed, "task_pool"))
    sizes = np.diff(first)
    cells = np.flatnonzero(sizes)
    if not len(cells):
        raise UserError(
            "no example is left to draw from, so there is nothing to train on; look at take_examples and take_share of the sources"
        )
    held = Cells(
        sizes=sizes[cells].astype(np.float64),
        tasks=cells % n_tasks,
        sources=cells // n_tasks,
        units=_units(corpus, mixture, examples, first)[cells],
        task_names=corpus.task_names,
        source_names=corpus.source_names,
    )
    drawn = example_counts(mixture, sources, held)
    if not drawn.any():
        raise UserError(
            f"an epoch of the mixture draws none of {len(examples):,} examples, because all weights and epochs of its sources "
            "are close to 0; raise them, or set mix.epoch_examples"
        )
    return Pool(
        examples=examples,
        first=np.append(first[cells], first[-1]),
        counts=drawn,
        sources=held.sources,
        tasks=held.tasks,
        duplicates=duplicates,
    )


def _units(
    corpus: Corpus, mixture: Mixture, examples: NDArray[np.int64], first: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return what an example of each cell counts on the average, in `mix.unit`, before anything is cut to a row."""
    sizes = np.diff(first)
    if mixture.unit == "examples":
        return np.ones(len(sizes))
    counted = corpus.lengths[examples] if mixture.unit == "tokens" else corpus.target_tokens(examples)
    totals = np.diff(np.concatenate(([0], np.cumsum(counted, dtype=np.int64)))[first])
    return np.maximum(totals, 1) / np.maximum(sizes, 1)


def draw(
    corpus: Corpus, mixture: Mixture, *, seed: int, epoch: int, pool: Pool | None = None
) -> NDArray[np.int64]:
    """Return the indices of one epoch, int64, in shuffled order; one that is drawn k times occurs k times.

    From a cell of n examples and quota q every example is drawn q // n times and q % n of them once more, chosen
    afresh each epoch: nothing is repeated before everything was drawn.

    Args:
        corpus: The stores.
        mixture: How they are mixed.
        seed: The run's seed.
        epoch: Zero-based.
        pool: `make_pool` of the same arguments, when the caller keeps it between epochs.
    """
    pool = pool or make_pool(corpus, mixture, seed)
    sizes = np.diff(pool.first)
    passes, rest = pool.counts // sizes, pool.counts % sizes
    out = np.empty(int(pool.counts.sum()), np.int64)
    examples = pool.examples
    if rest.any():
        examples = examples.copy()
        sample_segments(examples, pool.first, rest, derive(seed, "draw", epoch))
    _fill(examples, pool.first, passes, rest, out)
    shuffle(out, derive(seed, "order", epoch))
    return out


def _taken(corpus: Corpus, sources: Sequence[SourceMix], seed: int) -> NDArray[np.bool_]:
    kept = np.ones(len(corpus), np.bool_)
    for k, (name, source) in enumerate(zip(corpus.source_names, sources, strict=True)):
        n = corpus.first[k + 1] - corpus.first[k]
        if source.take_share is not None:
            number = max(round(source.take_share * n), 1)
        elif source.take_examples is not None:
            number = min(source.take_examples, n)
        else:
            continue
        order = np.arange(n)
        shuffle(order, derive(seed, "take", name))
        kept[corpus.first[k] + order[number:]] = False
    return kept


def _drop_duplicates(corpus: Corpus, kept: NDArray[np.bool_]) -> int:
    """Clear `kept` for each example that an earlier source holds (and keeps); return how many."""
    slots = 1 << (2 * len(corpus)).bit_length()  # at most half full
    table = np.zeros(slots, np.uint64)
    used = np.zeros(slots, np.bool_)
    dropped = 0
    for k, store in enumerate(corpus.stores):
        part = kept[corpus.first[k] : corpus.first[k + 1]]
        # The first half of an id is the content; the second tells tasks apart, and a task may be named after its source.
        content = np.ascontiguousarray(store.ids[:, :8]).view(np.uint64)[:, 0]
        dropped += _mark_seen(content, part, table, used)
    return dropped


@jit
def _mark_seen(
    content: NDArray[np.uint64], kept: NDArray[np.bool_], table: NDArray[np.uint64], used: NDArray[np.bool_]
) -> int:
    """Drop what lies in the table, then put the rest in: duplicates inside one source are its own affair."""
    mask = np.uint64(len(table) - 1)
    dropped = 0
    for inserting in (False, True):
        for i in range(len(content)):
            if not kept[i]:
                continue
            slot = content[i] & mask  # hashes: their bits need no further mixing
            while used[slot] and table[slot] != content[i]:
                slot = (slot + np.uint64(1)) & mask
            if inserting:
                used[slot] = True
                table[slot] = content[i]
            elif used[slot]:
                kept[i] = False
                dropped += 1
    return dropped


@jit
def _by_cell(
    kept: NDArray[np.bool_],
    source_of: NDArray[np.int32],
    task_of: NDArray[np.int32],
    n_tasks: int,
    n_cells: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counting sort of the kept examples by (source, task)."""
    first = np.zeros(n_cells + 1, np.int64)
    for i in range(len(kept)):
        if kept[i]:
            first[np.int64(source_of[i]) * n_tasks + task_of[i] + 1] += 1
    for c in range(n_cells):
        first[c + 1] += first[c]
    place = first[:-1].copy()
    examples = np.empty(first[-1], np.int64)
    for i in range(len(kept)):
        if kept[i]:
            c = np.int64(source_of[i]) * n_tasks + task_of[i]
            examples[place[c]] = i
            place[c] += 1
    return examples, first


def _limit_cells(
    examples: NDArray[np.int64], first: NDArray[np.int64], limit: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep `limit` examples of each cell at most, chosen by seed."""
    parts = []
    for c in range(len(first) - 1):
        part = examples[first[c] : first[c + 1]].copy()
        if len(part) > limit:
            shuffle(part, derive(seed, c))
            part = np.sort(part[:limit])
        parts.append(part)
    return np.concatenate(parts), np.concatenate(([0], np.cumsum([len(p) for p in parts]))).astype(np.int64)


@jit
def _fill(
    examples: NDArray[np.int64],
    first: NDArray[np.int64],
    passes: NDArray[np.int64],
    rest: NDArray[np.int64],
    out: NDArray[np.int64],
) -> None:
    """Write each cell's whole passes, then the first `rest` of its examples."""
    at = 0
    for c in range(len(passes)):
        for _ in range(passes[c]):
            for i in range(first[c], first[c + 1]):
                out[at] = examples[i]
                at += 1
        for i in range(first[c], first[c] + rest[c]):
            out[at] = examples[i]
            at += 1
