"""The shuffle is uniform, and its order is pinned: a resumed run must plan what the first one planned."""

import numpy as np

from sft_dist.pack.shuffle import sample_segments, shuffle


def shuffled(n, seed):
    values = np.arange(n)
    shuffle(values, seed)
    return values.tolist()


def test_the_order_is_pinned():
    assert shuffled(10, 0) == [4, 9, 2, 5, 1, 7, 6, 0, 3, 8]
    assert shuffled(10, 2**63 - 1) == [3, 2, 5, 4, 6, 9, 0, 7, 8, 1]


def test_every_order_is_equally_likely():
    counts = {}
    for seed in range(24_000):
        order = tuple(shuffled(4, seed))
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    # 1,000 expected each; five standard deviations.
    assert max(abs(c - 1000) for c in counts.values()) < 5 * 31


def test_neighbours_do_not_stay_together():
    order = np.array(shuffled(100_000, 7))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert (order == np.arange(100_000)).sum() < 10


def test_sample_segments_samples_each_segment_uniformly():
    counts = np.zeros(7, int)
    for seed in range(6000):
        values = np.arange(7)
        sample_segments(values, np.array([0, 4, 7]), np.array([2, 0]), seed)
        assert sorted(values[:4].tolist()) == [0, 1, 2, 3]
        assert values[4:].tolist() == [4, 5, 6]  # nothing was asked of it
        counts[values[:2]] += 1
    assert abs(counts[:4] - 3000).max() < 5 * 39
