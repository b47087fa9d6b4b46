"""Rows that run side by side cost the same; which rows form a batch never depends on the ranks."""

import numpy as np
import pytest

from sft_dist.pack import deal, imbalance, order_rows


def heavy_tailed(n, seed=0):
    return np.random.default_rng(seed).lognormal(0, 1, n)


def test_micro_steps_take_neighbours_by_cost():
    costs = [1, 10, 2, 20, 1, 11, 2, 22]
    dealing = deal(costs, world_size=2, micro_rows=1, seed=0)
    side_by_side = sorted(sorted(costs[rank[0]] for rank in micro) for micro in dealing)
    assert side_by_side == [[1, 1], [2, 2], [10, 11], [20, 22]]
    assert imbalance(costs, dealing) == pytest.approx((1 + 2 + 11 + 22) / (1 + 2 + 10.5 + 21))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_rows", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 7, 24, 64])
def test_every_row_once_and_equal_counts_of_micro_steps(world_size, micro_rows, rows):
    dealing = deal(heavy_tailed(rows).tolist(), world_size, micro_rows, seed=3)
    assert len(dealing) == -(-rows // (world_size * micro_rows))
    assert all(len(micro) == world_size for micro in dealing)
    assert all(len(rank) <= micro_rows for micro in dealing for rank in micro)
    assert sorted(row for micro in dealing for rank in micro for row in rank) == list(range(rows))


def test_rows_that_do_not_divide_leave_the_cheapest_short():
    dealing = deal([5, 4, 3, 2, 1], world_size=2, micro_rows=1, seed=0)
    assert [[4], []] in [sorted(micro, reverse=True) for micro in dealing]


def test_inside_a_micro_step_ranks_get_equal_loads():
    # Eight rows for two ranks of four rows: costliest to the lighter rank.
    costs = [8, 7, 6, 5, 4, 3, 2, 1]
    dealing = deal(costs, world_size=2, micro_rows=4, seed=0)
    assert [sum(costs[r] for r in rank) for rank in dealing[0]] == [18, 18]
    assert imbalance(costs, dealing) == 1.0


def test_micro_steps_and_ranks_are_shuffled_by_seed():
    costs = list(range(64, 0, -1))
    first = [deal(costs, 2, 1, seed)[0] for seed in range(50)]
    assert len({micro[0][0] // 2 for micro in first}) > 10  # the costliest pair does not always come first
    assert {micro[0][0] % 2 for micro in first} == {0, 1}  # nor does rank 0 always have the costlier row
    assert deal(costs, 2, 1, 5) == deal(costs, 2, 1, 5)


def test_ordered_by_cost_beats_random_dealing():
    costs = heavy_tailed(512).tolist()
    random = [[[r] for r in range(i, i + 8)] for i in range(0, 512, 8)]
    assert imbalance(costs, random) > 1.5
    assert imbalance(costs, deal(costs, 8, 1, 0)) < 1.15


def test_rows_in_random_order_by_default():
    order = order_rows(np.arange(100.0), rows_per_step=10, window=1, seed=0)
    assert sorted(order.tolist()) == list(range(100))
    assert abs(np.corrcoef(order, np.arange(100))[0, 1]) < 0.3
    assert order.tolist() != order_rows(np.arange(100.0), 10, 1, seed=1).tolist()


def batches_by_cost(costs, order, rows_per_step):
    """Whole batches, each as its sorted costs, the cheapest batch first."""
    whole = len(order) // rows_per_step * rows_per_step
    return sorted(sorted(batch) for batch in costs[order[:whole]].reshape(-1, rows_per_step).tolist())


def test_a_window_over_the_epoch_cuts_batches_from_one_order_and_shuffles_them():
    costs = heavy_tailed(103)
    order = order_rows(costs, rows_per_step=10, window=10, seed=0)
    plain = order_rows(costs, rows_per_step=10, window=1, seed=0)
    assert sorted(order.tolist()) == list(range(103))
    assert order[100:].tolist() == plain[100:].tolist()  # beyond the last whole batch: a random choice
    batches = batches_by_cost(costs, order, 10)
    assert [cost for batch in batches for cost in batch] == sorted(costs[order[:100]].tolist())
    assert (np.diff(costs[order[:100:10]]) > 0).any()  # not the costliest first
    assert (np.diff(costs[order[:100:10]]) < 0).any()


def test_the_costliest_eighth_is_grouped_over_the_epoch_the_rest_by_window():
    costs = np.arange(160.0)
    order = order_rows(costs, rows_per_step=10, window=2, seed=0)
    batches = batches_by_cost(costs, order, 10)
    assert batches[-2:] == [list(range(140, 150)), list(range(150, 160))]
    spans = [batch[-1] - batch[0] for batch in batches[:-2]]
    assert 40 < np.mean(spans) < 100  # halves of a random 20 of 140 rows
    random = batches_by_cost(costs, order_rows(costs, 10, 1, 0), 10)
    assert np.mean([batch[-1] - batch[0] for batch in random]) > 110


@pytest.mark.parametrize("rows", [1, 9, 10, 70, 75])
@pytest.mark.parametrize("window", [1, 2, 16])
def test_every_row_once_in_short_epochs(rows, window):
    assert sorted(order_rows(heavy_tailed(rows), 10, window, 0).tolist()) == list(range(rows))
