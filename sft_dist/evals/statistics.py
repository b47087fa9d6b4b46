"""Scores of examples, grouped by task -> means with intervals, paired contrasts, tests. numpy only, seeded.

The task is the unit: a claim about "held-out tasks" is a claim about tasks that were not evaluated either, so its
uncertainty is the spread over tasks, and more examples of the same tasks do not reduce it. Tasks of one family
count as one unit where `families` are given. Every interval covers 95 %.

Methods: two-stage bootstrap (units with replacement, then the items of each drawn task), percentile interval;
sign flips over units (exact up to 12) for paired differences; Holm's correction over several contrasts; Wilson's
interval for the share of one task (Wilson, 1927; Holm, 1979; Miller, 2024, arXiv 2411.00640).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.rng import generator

Floats: TypeAlias = NDArray[np.float64]
Groups: TypeAlias = Sequence[Sequence[float]]
"""Values of the items of each task."""

DRAWS = 2000
EXACT_UNITS = 12  # 4,096 sign patterns
FLIPS = 20_000  # above that, random patterns
FEW_UNITS = 10
"""Below this number of units no interval is a general claim, and the page says so."""

Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # power of 80 %


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A mean over tasks and its 95 % interval.

    Attributes:
        mean: Unweighted mean of the task means.
        low: Lower end.
        high: Upper end.
        units: Tasks, or families of tasks.
        items: Examples.
    """

    mean: float
    low: float
    high: float
    units: int
    items: int

    @property
    def few(self) -> bool:
        """Whether there are too few units for a general claim."""
        return self.units < FEW_UNITS


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """A difference between two answerers on the same items, or between two samples of the same tasks.

    Attributes:
        difference: Mean over tasks of the task differences.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided, by sign flips over units.
        win: Tasks in which the first is better.
        tie: Tasks in which both are equal.
        loss: Tasks in which the second is better.
        units: Tasks, or families of tasks.
        detectable: Smallest true difference that this many units find with 80 % power at 5 %; NaN of one unit.
    """

    difference: float
    low: float
    high: float
    p: float
    win: int
    tie: int
    loss: int
    units: int
    detectable: float

    @property
    def few(self) -> bool:
        """Whether there are too few units for a general claim."""
        return self.units < FEW_UNITS


def mean_interval(
    values: Groups, *, families: Sequence[Hashable] | None = None, seed: int = 0, draws: int = DRAWS
) -> Interval:
    """Return the mean over tasks with its interval by the two-stage bootstrap.

    Where every task has the same mean of 0 or 1, resampling shows no spread; the interval is then Wilson's over units.

    Args:
        values: Of each task, the values of its items; no task is empty.
        families: Family of each task: tasks of one family are drawn together. None: every task is its own.
        seed: Of the draws.
        draws: Bootstrap draws.
    """
    groups = [np.asarray(v, dtype=np.float64) for v in values]
    means = np.array([g.mean() for g in groups])
    codes = _codes(families, len(groups))
    units, items = int(codes.max()) + 1, sum(len(g) for g in groups)
    if np.ptp(means) == 0 and means[0] in (0.0, 1.0):
        low, high = wilson(units * means[0], units)
    else:
        low, high = percentiles(bootstrap_means(groups, codes, seed=seed, draws=draws))
    return Interval(mean=float(means.mean()), low=low, high=high, units=units, items=items)


def contrast(
    first: Groups,
    second: Groups,
    *,
    families: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Contrast:
    """Return the paired difference `first` minus `second`.

    Args:
        first: Of each task, the values of its items.
        second: The same items in the same order.
        families: As in `mean_interval`.
        seed: Of the draws.
        draws: Bootstrap draws.
    """
    groups = [
        np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
        for a, b in zip(first, second, strict=True)
    ]
    codes = _codes(families, len(groups))
    drawn = bootstrap_means(groups, codes, seed=seed, draws=draws)
    return _contrast(np.array([g.mean() for g in groups]), codes, drawn, seed)


def gap(
    first: Groups,
    second: Groups,
    *,
    families: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Contrast:
    """Return the difference `first` minus `second` of two samples of different items of the same tasks.

    Units are drawn together, the items of each sample by themselves.

    Args:
        first: Of each task, the values of its items in one sample.
        second: Of the same tasks in the same order, the values of other items.
        families: As in `mean_interval`.
        seed: Of the draws.
        draws: Bootstrap draws.
    """
    one, other = ([np.asarray(v, dtype=np.float64) for v in groups] for groups in (first, second))
    means = np.array([a.mean() - b.mean() for a, b in zip(one, other, strict=True)])
    codes = _codes(families, len(one))
    drawn = bootstrap_means(one, codes, seed=seed, draws=draws)
    drawn = drawn - bootstrap_means(other, codes, seed=seed, draws=draws, sample="second")
    return _contrast(means, codes, drawn, seed)


def _codes(families: Sequence[Hashable] | None, tasks: int) -> NDArray[np.int64]:
    """Return the unit of each task: its family, or itself."""
    return unit_codes(families if families is not None else range(tasks))


def _contrast(means: Floats, codes: NDArray[np.int64], drawn: Floats, seed: int) -> Contrast:
    """Return the contrast of the differences of each task, given the resampled ones."""
    by_unit = np.bincount(codes, weights=means) / np.bincount(codes)
    low, high = percentiles(drawn)
    return Contrast(
        difference=float(means.mean()),
        low=low,
        high=high,
        p=sign_flip_p(by_unit, seed=seed),
        win=int((means > 0).sum()),
        tie=int((means == 0).sum()),
        loss=int((means < 0).sum()),
        units=len(by_unit),
        detectable=detectable_effect(by_unit),
    )


def bootstrap_means(
    groups: Sequence[Floats], codes: NDArray[np.int64], *, seed: int, draws: int, sample: str = ""
) -> Floats:
    """Return resampled means over tasks, [draws] or [draws, K]: units with replacement, then items within each drawn task.

    Args:
        groups: Of each task, the values of its items, [items] or [items, K].
        codes: Unit of each task, from 0.
        seed: Of the draws.
        draws: Number of draws.
        sample: Names a further sample of the same tasks: the same units, its own draws of items.
    """
    rng = generator(seed, "bootstrap")
    units = int(codes.max()) + 1
    chosen = rng.multinomial(
        units, np.full(units, 1 / units), size=draws
    )  # [draws, units]: how often each is drawn
    if sample:
        rng = generator(seed, "bootstrap", sample)
    total, tasks = np.zeros((draws, *groups[0].shape[1:])), np.zeros(draws)
    for group, unit in zip(groups, codes, strict=True):
        times = chosen[:, unit]
        levels, counts = np.unique(group, axis=0, return_counts=True)
        # every occurrence of a task draws its items anew; equal values are drawn together
        drawn = rng.multinomial(len(group), counts / len(group), size=int(times.sum())) @ levels / len(group)
        np.add.at(total, np.repeat(np.arange(draws), times), drawn)
        tasks += times
    return np.asarray((total.T / tasks).T, dtype=np.float64)


def resampled(
    groups: Sequence[Floats],
    statistic: Callable[[Floats], Floats],
    *,
    families: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[float, float, float]:
    """Return a statistic of the mean over tasks of several columns, and its 95 % interval by the two-stage bootstrap.

    Args:
        groups: Of each task, [items, K] values.
        statistic: [draws, K] means -> [draws], such as a ratio of two columns.
        families: As in `mean_interval`.
        seed: Of the draws.
        draws: Bootstrap draws.
    """
    means = np.array([g.mean(axis=0) for g in groups])
    codes = unit_codes(families if families is not None else range(len(groups)))
    drawn = bootstrap_means(groups, codes, seed=seed, draws=draws)
    with np.errstate(invalid="ignore", divide="ignore"):
        low, high = percentiles(statistic(drawn))
        return float(statistic(means.mean(axis=0)[None])[0]), low, high


def sign_flip_p(differences: Sequence[float] | Floats, *, seed: int = 0) -> float:
    """Return the two-sided p of paired differences: how often random signs give a mean as far from 0."""
    values = np.asarray(differences, dtype=np.float64)
    observed = abs(values.sum()) - 1e-12 * max(1.0, float(np.abs(values).sum()))
    if len(values) <= EXACT_UNITS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(values))))
        return float((np.abs(signs @ values) >= observed).mean())
    signs = generator(seed, "sign-flips").choice((1.0, -1.0), size=(FLIPS, len(values)))
    return float((1 + (np.abs(signs @ values) >= observed).sum()) / (1 + FLIPS))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return p-values corrected for the number of contrasts, by Holm's step-down method."""
    out: dict[str, float] = {}
    worst = 0.0
    ranked = sorted(p.items(), key=lambda item: item[1])
    for rank, (name, value) in enumerate(ranked):
        worst = max(worst, min(1.0, (len(ranked) - rank) * value))
        out[name] = worst
    return {name: out[name] for name in p}


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share: `successes` of `n`; `successes` may be a sum of scores from 0 to 1."""
    if n <= 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def detectable_effect(differences: Sequence[float] | Floats) -> float:
    """Return the smallest true mean difference that these units find with 80 % power at the 5 % level; NaN below two."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return math.nan
    return float((Z95 + Z80) * values.std(ddof=1) / math.sqrt(len(values)))


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p of McNemar's test on discordant pairs."""
    n = only_first + only_second
    if not n:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1)) / 2**n
    return min(1.0, 2 * tail)


def unit_codes(families: Iterable[Hashable]) -> NDArray[np.int64]:
    """Return the number of the unit of each task, from 0: equal families are one unit."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(f, len(numbers)) for f in families], dtype=np.int64)


def percentiles(draws: Floats) -> tuple[float, float]:
    """Return the ends of the 95 % interval of draws, those that are not finite left out; NaN of none."""
    known = draws[np.isfinite(draws)]
    if not len(known):
        return math.nan, math.nan
    low, high = np.percentile(known, (2.5, 97.5))
    return float(low), float(high)
