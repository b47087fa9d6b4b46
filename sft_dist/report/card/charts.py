"""Counts -> inline SVG in the colours of the page: columns of a histogram, two rings of verbs and their nouns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sft_dist.report.formatting import count, esc, join, percent

RING_VERBS, RING_NOUNS = 20, 4  # as many as Self-Instruct shows
SIZE = 760
CENTRE = SIZE / 2
HOLE, MIDDLE, RIM = 92.0, 218.0, 366.0  # radii
COLOURS = ("a", "b", "c")
MIN_ANGLE = 0.042  # radians below which a label would touch its neighbours


def columns(
    series: Mapping[str, Sequence[float]],
    labels: Sequence[str],
    *,
    description: str,
    width: int = 520,
    height: int = 200,
    every: int = 1,
) -> str:
    """Return a histogram as SVG.

    Args:
        series: CSS colour variable -> heights, of one or two series; each series is scaled to its own sum, in percent.
        labels: One under each column.
        description: For readers who do not see the figure.
        width: Of the view box; the page scales it.
        height: Of the view box.
        every: Labels shown: every n-th.
    """
    left, bottom, top = 34, 22, 10
    shares = {c: [v / max(1e-12, sum(values)) for v in values] for c, values in series.items()}
    highest = max((max(v, default=0.0) for v in shares.values()), default=0.0)
    step = _step(highest)
    high = max(step, math.ceil(highest / step - 1e-9) * step)
    across, down = (width - left) / max(1, len(labels)), height - bottom - top
    parts = []
    for tick in range(round(high / step) + 1):
        y = top + down * (1 - tick * step / high)
        parts.append(f'<line x1="{left}" x2="{width}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(_label(left - 6, y + 3.5, f"{100 * tick * step:.4g} %", "end"))
    one = across * 0.84 / max(1, len(shares))
    for number, (colour, values) in enumerate(shares.items()):
        for i, value in enumerate(values):
            if value:
                x = left + i * across + across * 0.08 + number * one
                tall = down * value / high
                title = f"<title>{esc(labels[i])}: {percent(value)} %</title>"
                parts.append(
                    f'<rect x="{x:.1f}" y="{top + down - tall:.1f}" width="{one:.1f}" height="{tall:.1f}" '
                    f'fill="var(--{colour})">{title}</rect>'
                )
    parts += [
        _label(left + (i + 0.5) * across, height - 6, text, "middle")
        for i, text in enumerate(labels)
        if i % every == 0
    ]
    return f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(description)}">{join(parts)}</svg>'


def rings(verbs: Sequence[tuple[str, str, int]]) -> str:
    """Return the most frequent root verbs (inner ring), and of each its most frequent nouns (outer ring), as SVG.

    A slice is as wide as the instructions of the nouns that are shown; verbs without a noun are left to the table.
    """
    by_verb: dict[str, list[tuple[str, int]]] = {}
    for verb, noun, n in sorted(verbs, key=lambda v: (-v[2], v[0], v[1])):
        if noun and len(by_verb.setdefault(verb, [])) < RING_NOUNS:
            by_verb[verb].append((noun, n))
    ranked = sorted(by_verb.items(), key=lambda v: (-sum(n for _, n in v[1]), v[0]))[:RING_VERBS]
    everything = sum(n for _, nouns in ranked for _, n in nouns)
    if not everything:
        return ""
    parts, turn = [], 2 * math.pi / everything
    start = -math.pi / 2
    for rank, (verb, nouns) in enumerate(ranked):
        size = sum(n for _, n in nouns)
        end = start + size * turn
        colour = COLOURS[rank % len(COLOURS)] if rank + 1 < len(ranked) or rank % len(COLOURS) else COLOURS[1]
        parts.append(_arc(start, end, HOLE, MIDDLE, colour, 0.9, f"{verb}: {count(size)} with these nouns"))
        parts.append(_radial(start, end, (HOLE + MIDDLE) / 2, verb, "var(--paper)", 14))
        for place, (noun, n) in enumerate(nouns):
            stop = start + n * turn
            opacity = 0.34 - 0.08 * (place % 2)
            parts.append(_arc(start, stop, MIDDLE + 1, RIM, colour, opacity, f"{verb} {noun}: {count(n)}"))
            parts.append(_radial(start, stop, (MIDDLE + RIM) / 2, noun, "var(--ink)", 13))
            start = stop
    label = f"{len(ranked)} root verbs and their most frequent nouns"
    return f'<svg class="chart" viewBox="0 0 {SIZE} {SIZE}" role="img" aria-label="{esc(label)}">{join(parts)}</svg>'


def _arc(
    start: float, end: float, inner: float, outer: float, colour: str, opacity: float, title: str
) -> str:
    end = min(end, start + 2 * math.pi - 1e-4)  # a whole turn would end where it starts: nothing is drawn
    large = int(end - start > math.pi)
    x = [CENTRE + r * math.cos(t) for r, t in ((inner, start), (outer, start), (outer, end), (inner, end))]
    y = [CENTRE + r * math.sin(t) for r, t in ((inner, start), (outer, start), (outer, end), (inner, end))]
    path = (
        f"M{x[0]:.1f} {y[0]:.1f}L{x[1]:.1f} {y[1]:.1f}A{outer} {outer} 0 {large} 1 {x[2]:.1f} {y[2]:.1f}"
        f"L{x[3]:.1f} {y[3]:.1f}A{inner} {inner} 0 {large} 0 {x[0]:.1f} {y[0]:.1f}Z"
    )
    return (
        f'<path d="{path}" fill="var(--{colour})" fill-opacity="{opacity:.2f}" stroke="var(--paper)" stroke-width="1">'
        f"<title>{esc(title)}</title></path>"
    )


def _radial(start: float, end: float, radius: float, text: str, colour: str, size: int) -> str:
    """Return a label along the radius, never upside down; none where the slice is too narrow."""
    if end - start < MIN_ANGLE * 300 / radius * size / 14:
        return ""
    middle = (start + end) / 2
    x, y = CENTRE + radius * math.cos(middle), CENTRE + radius * math.sin(middle)
    degrees = math.degrees(middle)
    turned = degrees + 180 if math.cos(middle) < 0 else degrees
    shown = text if len(text) <= 15 else text[:14] + "\u2026"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" transform="rotate({turned:.1f} {x:.1f} {y:.1f})" text-anchor="middle" '
        f'dominant-baseline="central" font-size="{size}" fill="{colour}">{esc(shown)}</text>'
    )


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="10" fill="var(--muted)">{esc(text)}</text>'


def _step(highest: float) -> float:
    """Return a round distance of ticks, so that there are two to five."""
    for step in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25):
        if highest <= 4 * step:
            return step
    return 0.25
