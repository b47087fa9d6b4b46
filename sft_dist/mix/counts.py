"""Rates -> how many examples an epoch draws from each cell: shares, epochs, bounds, whole numbers.

C cells (the part of a task that one source holds).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sft_dist.config.sources import SourceMix
from sft_dist.core.errors import UserError
from sft_dist.mix.weights import Cells, Floats, Mixture, base_rates

Bools = NDArray[np.bool_]
UNITS = {"examples": "examples", "tokens": "tokens", "targets": "tokens with loss"}


def example_counts(mixture: Mixture, sources: Sequence[SourceMix], cells: Cells) -> NDArray[np.int64]:
    """Return the examples that one epoch draws from each cell, int64 [C].

    Without shares, temperature and a size of the epoch the rates are counts. Otherwise the epoch has E examples, or tokens
    (`mix.unit`; `epoch_examples` or `epoch_tokens`, else as many as there are under the caps): a source with a share gets its part of
    E, one with `epochs` its passes, the others divide the rest by rate. Task bounds, which count examples, are kept throughout; what they take from or
    give to a task is balanced by the other tasks of the same group, and a share that they make impossible is refused.

    Args:
        mixture: The settings.
        sources: Settings of each source, from `rates.resolve`.
        cells: What is drawn from.
    """
    rates, capped = base_rates(mixture, cells)
    rates = rates * np.array([s.weight for s in sources])[cells.sources]
    passes = np.array([s.epochs or 0.0 for s in sources])[cells.sources]
    rates = np.where(passes > 0, cells.sizes * passes, rates)

    part = rates / np.bincount(cells.tasks, rates, len(cells.task_names))[cells.tasks]
    low = mixture.task_min * part
    high = np.full_like(rates, np.inf) if mixture.task_max is None else mixture.task_max * part
    out = np.zeros(len(rates), np.int64)
    for group, total in _groups(mixture, sources, cells, capped, rates, (low, high)):
        if total is None:
            exact = np.clip(rates[group], low[group], high[group])
        else:
            exact = _scaled(rates[group], low[group], high[group], total, cells.units[group])
        out[group] = _rounded_by_task(exact, cells.tasks[group])
    return out


def _groups(
    mixture: Mixture,
    sources: Sequence[SourceMix],
    cells: Cells,
    capped: Floats,
    rates: Floats,
    bounds: tuple[Floats, Floats],
) -> list[tuple[Bools, float | None]]:
    """Divide the cells into groups, each with what it gets, in `mix.unit`; None: as its rates say."""
    shares = {k: s.share for k, s in enumerate(sources) if s.share is not None}
    with_epochs = [k for k, s in enumerate(sources) if s.epochs is not None]
    pinned = np.isin(cells.sources, with_epochs)
    free = ~pinned & ~np.isin(cells.sources, list(shares))
    units, size = cells.units, mixture.epoch_examples or mixture.epoch_tokens
    fixed = float(np.round((rates * units)[pinned].sum()))
    groups: list[tuple[Bools, float | None]] = [(cells.sources == k, None) for k in with_epochs]
    if not shares and size is None and mixture.rate != "temperature":
        return [*groups, (free, None)]

    _check_shares(shares, cells.source_names, others=bool(free.any() or with_epochs))
    if size is not None:
        total = float(size)
    elif with_epochs and not free.any():
        total = fixed / (1.0 - sum(shares.values()))
    else:
        total = fixed + float(np.round((capped * units)[~pinned].sum()))
    parts = [float(np.round(share * total)) for share in shares.values()]
    groups += [(cells.sources == k, part) for k, part in zip(shares, parts, strict=True)]
    for k, part in zip(shares, parts, strict=True):
        _check_bounds(mixture, cells, k, part, *bounds)
    rest = total - fixed - sum(parts)
    rounding = (1.0 + len(shares)) * float(units.max())
    if rest < -rounding or (rest > rounding and not free.any()):
        raise UserError(
            f"an epoch of {total:,.0f} {UNITS[mixture.unit]} does not add up: sources with `share` bring {sum(parts):,.0f}, sources "
            f"with `epochs` {fixed:,.0f}, which leaves {rest:,.0f} for {int(free.sum())} other tasks; change "
            f"mix.{'epoch_examples' if mixture.unit == 'examples' else 'epoch_tokens'}, or the shares or epochs"
        )
    return [*groups, (free, max(rest, 0.0))]


def _check_bounds(
    mixture: Mixture, cells: Cells, source: int, part: float, low: Floats, high: Floats
) -> None:
    """Refuse a share that the bounds of the source's tasks do not allow: one of the two would be ignored."""
    own = cells.sources == source
    units = cells.units
    least, most = float((low * units)[own].sum()), float((high * units)[own].sum())
    name, tasks = cells.source_names[source], len(np.unique(cells.tasks[own]))
    asked = f"the share of {name} is {part:,.0f} {UNITS[mixture.unit]} of an epoch"
    slack = float(units[own].max())
    if least > part + slack:
        raise UserError(
            f"{asked}, but mix.task_min={mixture.task_min} asks for {least:,.0f} of its {tasks} tasks, so one of the two would be ignored; "
            "raise the share, give the source weight or epochs instead of a share, or lower mix.task_min"
        )
    if most < part - slack:
        raise UserError(
            f"{asked}, but mix.task_max={mixture.task_max} allows {most:,.0f} of its {tasks} tasks, so one of the two would be ignored; "
            "lower the share, or raise mix.task_max"
        )


def _check_shares(shares: Mapping[int, float], names: Sequence[str], *, others: bool) -> None:
    """Refuse shares that are more than the whole, leave nothing for other sources, or part of it for nobody."""
    if not shares:
        return
    total = sum(shares.values())
    listed = ", ".join(f"{names[k]} {share:g}" for k, share in shares.items())
    if total > 1.0 + 1e-9:
        raise UserError(
            f"the shares of the sources sum to {total:g}, more than the whole ({listed}); lower them"
        )
    if others and total > 1.0 - 1e-9:
        raise UserError(
            f"the shares of the sources sum to 1 ({listed}), so nothing is left for the sources without a share; "
            "lower the shares, or give every source one"
        )
    if not others and total < 1.0 - 1e-9:
        raise UserError(
            f"every source has a share and they sum to {total:g} ({listed}), so part of the epoch would come from "
            "nowhere; let them sum to 1, or leave one source without a share"
        )


def _scaled(rates: Floats, low: Floats, high: Floats, total: float, units: Floats) -> Floats:
    """Scale rates by one factor so that, kept within their bounds, their units sum to `total` or as near as bounds let."""
    if not len(rates) or total >= (high * units).sum():
        return high
    if total <= (low * units).sum():
        return low
    lower, upper = 0.0, float(total / (rates * units).sum())
    while (np.clip(upper * rates, low, high) * units).sum() < total:
        lower, upper = upper, 2.0 * upper
    for _ in range(60):  # more halvings than a float has digits
        middle = 0.5 * (lower + upper)
        if (np.clip(middle * rates, low, high) * units).sum() < total:
            lower = middle
        else:
            upper = middle
    scaled: Floats = np.clip(upper * rates, low, high)
    return scaled


def _rounded_by_task(exact: Floats, tasks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Round the total of each task, then the cells inside it, so that a task keeps within its bounds."""
    place = np.unique(tasks, return_inverse=True)[1]
    totals = _rounded(np.bincount(place, exact).astype(np.float64))
    out = totals[place]
    for t in np.flatnonzero(np.bincount(place) > 1).tolist():
        cells = np.flatnonzero(place == t)
        part = exact[cells]
        out[cells] = _rounded(part * (totals[t] / part.sum())) if totals[t] else 0
    return out


def _rounded(exact: Floats) -> NDArray[np.int64]:
    """Round to integers that keep the (rounded) sum: the largest remainders go up, ties by order."""
    down = np.floor(exact + 1e-9)
    up = int(np.round(exact.sum()) - down.sum())
    out = down.astype(np.int64)
    out[np.argsort(-(exact - down), kind="stable")[:up]] += 1
    return out
