"""A budget of examples -> which training examples are kept: of each task its part, chosen to cover much and to score high.

Of a task the set S is sought that makes f(S) = sum over n-grams u of sqrt(sum of q_i over the examples i of S that hold u) large: a
feature-based submodular function (Kirchhoff and Bilmes 2014, "Submodularity for Data Selection in Statistical Machine
Translation"). Taking the largest gain each time reaches at least 1 - 1/e of the best value (Nemhauser, Wolsey and Fisher 1978); a
gain is counted again only when it leads (Minoux 1978). q_i, from 0 to 1, is the rank of the example's score in its task; 1 without scores.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop
from sft_dist.core.rng import derive
from sft_dist.pack.jit import jit
from sft_dist.selection.facts import GRAMS, BlockFacts
from sft_dist.selection.tables import read_rows

POOL = 20  # times its part: so many examples of a task are looked at, the best; bounds memory and time

Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def over_budget(
    blocks: Sequence[BlockFacts],
    trained: Bools,
    tasks: NDArray[np.int32],
    quality: Floats | None,
    *,
    examples: int,
    task_min: int,
    seed: int,
) -> tuple[Bools, Callable[[int], Drop]]:
    """Return which rows are beyond the budget, and why.

    Args:
        blocks: The facts, in order, with the column of n-grams.
        trained: [rows] Training examples so far.
        tasks: [rows] Code of the task.
        quality: [rows] The higher the better, NaN: no score; None: none has one.
        examples: How many are kept in all.
        task_min: How many of each task are kept at least, if it has as many.
        seed: Decides between equals.

    Raises:
        UserError: There are fewer examples in the budget than tasks.
    """
    rows = np.flatnonzero(trained)
    score = np.zeros(len(rows)) if quality is None else np.nan_to_num(quality[rows], nan=-np.inf)
    key = _keys(blocks, derive(seed, "budget"))[rows]
    rows = rows[np.lexsort((key, -score, tasks[rows]))]
    counts = np.bincount(tasks[rows])
    present = np.flatnonzero(counts)
    parts = np.zeros(len(counts), np.int64)
    parts[present] = quotas(counts[present], examples, task_min)
    ends = np.cumsum(counts)
    pools = {
        t: rows[ends[t] - counts[t] : ends[t]][: POOL * parts[t]]
        for t in present.tolist()
        if parts[t] < counts[t]
    }
    over = np.zeros(len(trained), np.bool_)
    first, grams, place = _grams_of(blocks, np.sort(np.concatenate([*pools.values(), rows[:0]])))
    for t, pool in pools.items():
        over[rows[ends[t] - counts[t] : ends[t]]] = True
        at = np.searchsorted(place, pool)
        lengths = first[at + 1] - first[at]
        own = np.concatenate([[0], np.cumsum(lengths)])
        flat = grams[np.repeat(first[at] - own[:-1], lengths) + np.arange(own[-1])]
        codes = np.unique(flat, return_inverse=True)[1].astype(np.int64)
        over[pool[chosen(own, codes, _ranks(quality, pool), int(parts[t]))]] = False

    def drop(place: int) -> Drop:
        task = tasks[place]
        return Drop("budget", f"{parts[task]:,} of {counts[task]:,} examples of its task are kept")

    return over, drop


def quotas(sizes: Ints, total: int, least: int) -> Ints:
    """Return how many of `total` examples each task gets: `least` if it has as many, the rest in proportion to what it has beyond.

    Args:
        sizes: Examples of each task, none 0.
        total: To be divided.
        least: Of each task; lowered for all alike where the total does not reach.

    Raises:
        UserError: Not every task would keep one.
    """
    if total >= sizes.sum():
        return sizes
    if total < len(sizes):
        raise UserError(
            f"data.filters.budget.examples={total:,} is less than the {len(sizes):,} tasks that have training examples, so some would "
            f"vanish; set it to {len(sizes):,} or more, or leave tasks out"
        )
    level = max(1, least)
    while (floors := np.minimum(sizes, level)).sum() > total:
        level -= 1
    rest, beyond = total - int(floors.sum()), sizes - floors
    whole, left = np.divmod(rest * beyond, max(1, int(beyond.sum())))
    up = rest - int(whole.sum())
    whole[np.argsort(-left, kind="stable")[:up]] += 1  # the largest remainders
    out: Ints = floors + whole
    return out


def chosen(first: Ints, grams: Ints, quality: Floats, wanted: int) -> Ints:
    """Return the numbers of the examples that are chosen, in that order.

    Args:
        first: [examples + 1] Where the n-grams of each begin in `grams`.
        grams: Codes from 0 up.
        quality: [examples] Above 0, to 1.
        wanted: How many are chosen.
    """
    return _chosen(first, grams, quality, int(grams.max(initial=-1)) + 1, wanted)


@jit
def _chosen(first: Ints, grams: Ints, quality: Floats, n_grams: int, wanted: int) -> Ints:
    held = np.zeros(n_grams, np.float64)
    heap = [(0.0, 0)]
    heap.pop()
    for i in range(len(quality)):
        gain = 0.0
        for _ in range(first[i], first[i + 1]):
            gain += np.sqrt(quality[i])
        heap.append((-gain, i))
    heapq.heapify(heap)
    out = np.empty(wanted, np.int64)
    n = 0
    while n < wanted:
        bound, i = heap[0]
        q, gain = quality[i], 0.0
        for u in grams[first[i] : first[i + 1]]:
            gain += np.sqrt(held[u] + q) - np.sqrt(held[u])
        if -gain > bound:
            heapq.heapreplace(heap, (-gain, i))
            continue
        heapq.heappop(heap)
        out[n] = i
        n += 1
        for u in grams[first[i] : first[i + 1]]:
            held[u] += q
    return out


def _ranks(quality: Floats | None, rows: Ints) -> Floats:
    """Return the rank of each row's score among the rows, above 0 to 1; equal scores have one rank, the least has what lacks one."""
    if quality is None:
        return np.ones(len(rows))
    values = np.nan_to_num(quality[rows], nan=-np.inf)
    ranks: Floats = np.searchsorted(np.sort(values), values, side="right") / len(values)
    return ranks


def _keys(blocks: Iterable[BlockFacts], seed: int) -> NDArray[np.uint64]:
    """Return for each row a number that depends on its id and the seed: the order of equals."""
    parts = [np.empty(0, np.uint64)]
    for facts in blocks:
        for batch in read_rows(facts.path, ["id_low"]):
            key = batch.column(0).fill_null(0).to_numpy(zero_copy_only=False) ^ np.uint64(seed)
            key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            parts.append(key ^ (key >> np.uint64(27)))
    return np.concatenate(parts)


def _grams_of(blocks: Iterable[BlockFacts], wanted: Ints) -> tuple[Ints, NDArray[np.uint64], Ints]:
    """Return where the n-grams of each wanted place begin, the n-grams, and the places: those that were asked for, ascending."""
    lengths, grams, start = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], 0
    for facts in blocks:
        for batch in read_rows(facts.path, [GRAMS]):
            own = np.searchsorted(wanted, [start, start + batch.num_rows])
            if own[0] < own[1]:
                lists = batch.column(0).take(wanted[own[0] : own[1]] - start)
                lengths.append(lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
                grams.append(lists.flatten().to_numpy(zero_copy_only=False))
            start += batch.num_rows
    return np.concatenate([[0], np.cumsum(np.concatenate(lengths))]), np.concatenate(grams), wanted
