"""Figures of a sweep that matplotlib would draw too heavily: parallel axes, and a parameter against the metric. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sft_dist.report.formatting import esc, join
from sft_dist.report.sweep_facts import Axis

TOP, BOTTOM = 30, 14  # pixels above and below the axes, for titles and the lowest labels


def parallel(axes: Sequence[Axis], names: Sequence[str], *, width: int = 960, height: int = 300) -> str:
    """Return parallel coordinates: one vertical axis a parameter, one line a trial, the first (the best) on top.

    Args:
        axes: The last one is the metric. All have a place for every trial.
        names: Of the trials, the best first.
        width: Of the view box; the page scales it.
        height: Of the view box.
    """
    inner, left, right = height - TOP - BOTTOM, 70.0, 90.0
    step = (width - left - right) / max(1, len(axes) - 1)
    xs = [left + i * step for i in range(len(axes))]

    def y(place: float) -> float:
        return TOP + (1 - place) * inner

    lines = []
    for i in reversed(range(len(names))):
        places = [a.places[i] for a in axes]
        points = " ".join(f"{x:.1f},{y(p):.1f}" for x, p in zip(xs, places, strict=True) if math.isfinite(p))
        css = "best" if i == 0 else "good" if i < max(1, len(names) // 4) else ""
        lines.append(f'<polyline class="{css}" points="{points}"><title>{esc(names[i])}</title></polyline>')
    marks = join(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + inner}"/>'
        f'<text class="title" x="{x:.1f}" y="{TOP - 14}" text-anchor="middle">{esc(a.title)}</text>'
        + join(
            f'<text x="{x + 6:.1f}" y="{y(place) + 3.5:.1f}">{esc(_clipped(label))}</text>'
            for place, label in a.ticks
        )
        for x, a in zip(xs, axes, strict=True)
    )
    said = f"Parallel axes of {len(names)} trials: {', '.join(a.title for a in axes)}"
    return f'<svg class="chart parallel" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(said)}">{join(lines)}{marks}</svg>'


def scatter(
    x: Axis, y: Axis, names: Sequence[str], best: int | None, *, width: int = 340, height: int = 190
) -> str:
    """Return one parameter against the metric, a dot a trial, the best filled in the other colour."""
    left, right, top, bottom = 50.0, 14.0, 10.0, 24.0
    across, down = width - left - right, height - top - bottom
    rules = join(
        f'<line x1="{left}" x2="{width - right}" y1="{top + (1 - p) * down:.1f}" y2="{top + (1 - p) * down:.1f}"/>'
        f'<text x="{left - 6}" y="{top + (1 - p) * down + 3.5:.1f}" text-anchor="end">{esc(label)}</text>'
        for p, label in y.ticks
    )
    rules += join(
        f'<text x="{left + p * across:.1f}" y="{height - 6}" text-anchor="{_anchor(p)}">{esc(_clipped(label))}</text>'
        for p, label in x.ticks
    )
    dots = join(
        f'<circle cx="{left + x.places[i] * across:.1f}" cy="{top + (1 - y.places[i]) * down:.1f}" r="4"'
        f"{' class=' + chr(34) + 'best' + chr(34) if i == best else ''}><title>{esc(name)}</title></circle>"
        for i, name in enumerate(names)
        if math.isfinite(x.places[i]) and math.isfinite(y.places[i])
    )
    said = f"{y.title} against {x.title}"
    return f'<svg class="chart scatter" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(said)}">{rules}{dots}</svg>'


def _anchor(place: float) -> str:
    return "start" if place < 0.05 else "end" if place > 0.95 else "middle"


def _clipped(label: str) -> str:
    """Keep the end of long values: paths differ there."""
    return label if len(label) <= 18 else f"…{label[-17:]}"
