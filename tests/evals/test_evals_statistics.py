"""Intervals and tests, each against an independent computation in plain Python."""

from __future__ import annotations

import itertools
import math
import random
from statistics import NormalDist, mean, stdev

import numpy as np
import pytest

from sft_dist.evals.statistics import (
    contrast,
    detectable_effect,
    gap,
    holm,
    mcnemar_p,
    mean_interval,
    resampled,
    sign_flip_p,
    wilson,
)


def tasks(n, items=20, seed=0):
    draw = random.Random(seed)
    out = []
    for _ in range(n):
        share = draw.random()
        out.append([float(draw.random() < share) for _ in range(items)])
    return out


def plain_bootstrap(groups, draws=3000, families=None, seed=1):
    """Two stages by loops: draw units, then the items of every drawn task."""
    draw = random.Random(seed)
    units = {}
    for i, group in enumerate(groups):
        units.setdefault(families[i] if families else i, []).append(group)
    units = list(units.values())
    means = []
    for _ in range(draws):
        drawn = [group for unit in draw.choices(units, k=len(units)) for group in unit]
        means.append(mean(mean(draw.choices(group, k=len(group))) for group in drawn))
    means.sort()
    return means[round(0.025 * draws)], means[round(0.975 * draws)]


@pytest.mark.parametrize("n", [5, 14, 40])
def test_interval_of_a_mean_equals_plain_resampling(n):
    values = tasks(n)
    found = mean_interval(values)
    assert found.mean == pytest.approx(mean(map(mean, values)))
    assert (found.units, found.items, found.few) == (n, 20 * n, n < 10)
    assert (found.low, found.high) == pytest.approx(plain_bootstrap(values), abs=0.02)


def test_scores_between_0_and_1_and_unequal_tasks():
    draw = random.Random(3)
    values = [[draw.betavariate(2, 3) for _ in range(draw.randint(3, 30))] for _ in range(12)]
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(plain_bootstrap(values), abs=0.02)


def test_siblings_count_as_one_unit():
    values = tasks(8) * 3  # every task three times: no more is known than of eight
    families = list(range(8)) * 3
    alone, together = mean_interval(values), mean_interval(values, families=families)
    assert together.units == 8
    assert together.high - together.low > 1.3 * (alone.high - alone.low)
    assert (together.low, together.high) == pytest.approx(
        plain_bootstrap(values, families=families), abs=0.02
    )


def test_nothing_right_is_not_certainty():
    found = mean_interval([[0.0] * 30] * 5)
    assert (found.mean, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(wilson(0, 5)[1])
    assert mean_interval([[1.0] * 30] * 20).low == pytest.approx(wilson(20, 20)[0])


def test_the_interval_covers_the_truth():
    """Tasks from a population of mean 0.5: about 95 of 100 intervals hold it."""
    held = 0
    for seed in range(100):
        found = mean_interval(tasks(30, items=10, seed=seed), seed=seed, draws=400)
        held += found.low <= 0.5 <= found.high
    assert 88 <= held <= 100


def test_contrast_is_paired():
    first, second = tasks(15, seed=1), tasks(15, seed=2)
    found = contrast(first, second)
    differences = [mean(a) - mean(b) for a, b in zip(first, second, strict=True)]
    assert found.difference == pytest.approx(mean(differences))
    pairs = [[x - y for x, y in zip(a, b, strict=True)] for a, b in zip(first, second, strict=True)]
    assert (found.low, found.high) == pytest.approx(plain_bootstrap(pairs), abs=0.025)
    assert (found.win, found.tie, found.loss) == (
        sum(d > 0 for d in differences),
        sum(d == 0 for d in differences),
        sum(d < 0 for d in differences),
    )
    same = contrast(first, first)
    assert (same.difference, same.low, same.high, same.p, same.tie) == (0.0, 0.0, 0.0, 1.0, 15)


def test_sign_flips_are_exact_for_few_units():
    values = [0.3, -0.1, 0.25, 0.4, 0.05, 0.2]
    patterns = list(itertools.product((1, -1), repeat=6))
    as_far = sum(
        abs(sum(s * v for s, v in zip(p, values, strict=True))) >= abs(sum(values)) - 1e-9 for p in patterns
    )
    assert sign_flip_p(values) == as_far / 64
    assert sign_flip_p([0.0] * 4) == 1.0
    many = [0.02 * (i % 7) - 0.03 for i in range(40)]
    z = mean(many) * math.sqrt(40) / math.sqrt(mean(v * v for v in many))
    assert sign_flip_p(many) == pytest.approx(2 * (1 - NormalDist().cdf(abs(z))), abs=0.02)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({}) == {}


def test_wilson_by_the_roots_of_its_equation():
    """The ends are the shares p at which the observed share is 1.96 standard errors away."""
    for k, n in ((0, 30), (15, 30), (30, 30), (7, 50)):
        low, high = wilson(k, n)
        for end in (low, high):
            if 0 < end < 1:
                assert abs(k / n - end) == pytest.approx(
                    1.959964 * math.sqrt(end * (1 - end) / n), rel=1e-5, abs=1e-7
                )
    assert wilson(30, 30) == pytest.approx((0.8865, 1.0), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_detectable_effect_has_the_power_that_it_says():
    values = np.random.default_rng(0).normal(0, 0.4, 62)
    effect = detectable_effect(values)
    assert effect == pytest.approx(2.8016 * stdev(values) / math.sqrt(62), rel=1e-3)
    found = 0
    for seed in range(300):
        sample = np.random.default_rng(seed + 1).normal(effect, values.std(ddof=1), 62)
        found += abs(sample.mean()) > 1.96 * sample.std(ddof=1) / math.sqrt(62)
    assert 0.72 <= found / 300 <= 0.88
    assert math.isnan(detectable_effect([0.1]))


def test_mcnemar_is_the_binomial_sum():
    assert mcnemar_p(1, 4) == pytest.approx(2 * (1 + 5) / 32)
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1.0


def test_ratio_of_two_columns():
    groups = [np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])] * 12
    middle, low, high = resampled(groups, lambda m: m[:, 1] / m.sum(axis=1), draws=300)
    assert middle == 0.75
    assert 0.5 < low < 0.75 < high < 0.95


def test_a_ratio_over_families_is_wider_than_over_tasks_that_go_together():
    rng = np.random.default_rng(1)
    kinds = [rng.random() for _ in range(5)]
    groups = [
        np.stack([rng.random(20) < k, np.ones(20)], axis=1).astype(float) for k in kinds for _ in range(8)
    ]
    families = [f for f in range(5) for _ in range(8)]
    alone, together = (resampled(groups, lambda m: m[:, 0] / m[:, 1], families=f) for f in (None, families))
    assert alone[0] == together[0]
    assert together[2] - together[1] > 1.5 * (alone[2] - alone[1])


def test_the_gap_of_two_samples_covers_the_truth_as_often_as_it_says():
    """Items of both samples are drawn anew for each experiment; the true gap is 0.5."""
    inside = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        level = rng.normal(0, 2, 15)  # of the task, in both samples
        true = rng.normal(0.5, 0.2, 15)
        first = [(level[t] + true[t] + rng.normal(0, 1, 10)).tolist() for t in range(15)]
        second = [(level[t] + rng.normal(0, 1, 6)).tolist() for t in range(15)]
        found = gap(first, second, seed=seed, draws=400)
        assert found.difference == pytest.approx(
            np.mean([np.mean(a) - np.mean(b) for a, b in zip(first, second, strict=True)])
        )
        inside += found.low < 0.5 < found.high
    assert 0.88 <= inside / 120 <= 1.0


def test_equal_seeds_give_equal_intervals():
    values = tasks(12)
    assert mean_interval(values, seed=5) == mean_interval(values, seed=5)
    assert mean_interval(values, seed=5) != mean_interval(values, seed=6)
