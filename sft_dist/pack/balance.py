"""Rows -> global batches -> micro-steps whose ranks finish together.

ZeRO-3 waits for the slowest rank in every micro-step, so what counts is that rows which run side by side cost the
same. Which rows form a global batch never depends on the number of ranks; only their dealing does.

R rows in the epoch, B rows in a global batch, W ranks, M rows that a rank runs side by side.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.rng import derive
from sft_dist.pack.shuffle import shuffle

# Cost has a long tail: within a window of 16 batches the costliest sixteenth is of mixed cost, and alone makes most
# of the imbalance that is left (8 of 11 % at 32k rows of a 0.6B model). Over an epoch its rows find their equals.
HEAVY_SHARE = 1 / 8

Dealing = list[list[list[int]]]  # [micro-step][rank] -> rows of the batch


def order_rows(costs: NDArray[np.float64], rows_per_step: int, window: int, seed: int) -> NDArray[np.int64]:
    """Return the order of an epoch's rows, int64 [R]; consecutive runs of `rows_per_step` are its global batches.

    With `window` 1 the order is a random permutation. With more, rows are grouped so that every batch is of one
    cost, at the price that lengths within a batch correlate: the costliest eighth of the rows, of which few are
    alike, is ordered by cost over the whole epoch, the others within `window` batches; the order is cut into whole
    batches, and these are shuffled. Rows beyond the last whole batch stay a random choice, at the end.

    Args:
        costs: [R] cost of each row.
        rows_per_step: B.
        window: Global batches whose rows are ordered by cost together.
        seed: Of the permutation.
    """
    order = np.arange(len(costs))
    shuffle(order, derive(seed, "rows"))
    if window == 1:
        return order
    whole = len(costs) // rows_per_step * rows_per_step
    rows = order[:whole]
    heavy = int(whole * HEAVY_SHARE) // rows_per_step * rows_per_step
    # Ranks by cost, ties by their place in the permutation; the rest keeps that order until its window is sorted.
    by_cost = np.argsort(-costs[rows], kind="stable")
    light = rows[np.sort(by_cost[heavy:])]
    parts = [rows[by_cost[:heavy]]]
    for start in range(0, len(light), window * rows_per_step):
        part = light[start : start + window * rows_per_step]
        parts.append(part[np.argsort(-costs[part], kind="stable")])
    batches = np.concatenate(parts).reshape(-1, rows_per_step)
    places = np.arange(len(batches))
    shuffle(places, derive(seed, "batches"))
    order[:whole] = batches[places].ravel()
    return order


def deal(costs: Sequence[float], world_size: int, micro_rows: int, seed: int) -> Dealing:
    """Deal the rows of one global batch to micro-steps and ranks.

    Rows are ordered by cost and each micro-step takes W x M neighbours; if they do not divide, the cheapest rows
    form the short one, where ranks without a row get an empty list. Inside a micro-step each rank gets at most M
    rows, the next costliest always to the rank with least so far. Micro-steps come in shuffled order, and ranks
    too, so that no rank always has the costliest row.

    Args:
        costs: [B] cost of each row of the batch.
        world_size: W.
        micro_rows: M.
        seed: Of the two shuffles.
    """
    by_cost = np.argsort(-np.asarray(costs, np.float64), kind="stable").tolist()
    side_by_side = world_size * micro_rows
    steps = [by_cost[i : i + side_by_side] for i in range(0, len(by_cost), side_by_side)]
    order, ranks = np.arange(len(steps)), np.arange(world_size)
    shuffle(order, derive(seed, "micro-steps"))
    shuffle(ranks, derive(seed, "ranks"))
    return [_deal_ranks(steps[m], costs, ranks.tolist(), micro_rows) for m in order.tolist()]


def imbalance(costs: Sequence[float], dealing: Dealing) -> float:
    """Return how much longer a batch takes than with perfect balance: sum of maxima over sum of means, 1.0 or more."""
    slowest = mean = 0.0
    for step in dealing:
        loads = [sum(costs[row] for row in rows) for rows in step]
        slowest += max(loads)
        mean += sum(loads) / len(loads)
    return slowest / mean if mean else 1.0


def _deal_ranks(
    rows: list[int], costs: Sequence[float], ranks: list[int], micro_rows: int
) -> list[list[int]]:
    if micro_rows == 1:
        dealt = dict(zip(ranks, ([row] for row in rows), strict=False))
        return [dealt.get(rank, []) for rank in range(len(ranks))]
    out: list[list[int]] = [[] for _ in ranks]
    least = [(0.0, place, rank) for place, rank in enumerate(ranks)]
    for row in rows:
        load, place, rank = heapq.heappop(least)
        out[rank].append(row)
        if len(out[rank]) < micro_rows:
            heapq.heappush(least, (load + costs[row], place, rank))
    return out
