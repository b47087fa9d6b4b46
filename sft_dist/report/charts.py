"""Series of numbers -> inline SVG in the colours of the page, light and dark; values under the pointer come from page.js.

The plot box and the ends of both axes stand in data attributes of the SVG, so a script turns the points of a line back into values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_dist.report.formatting import esc, join, percent, short
from sft_dist.report.run_summary import thin

MAX_POINTS = 400
"""Of a curve. More cannot be told apart at this width and make the page heavy."""

LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 8.0, 34.0  # margins around the plot box, in pixels of the view box
ROW = 24.0  # height of a row of a dot plot or of stacked bars
CHARACTER = 7.0  # pixels of a character of a label, of a wide font


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One series of a chart. `title` is what the pointer shows; without one it shows nothing."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: str = "a"
    style: Literal["line", "faint", "dots"] = "line"
    title: str = ""


class Estimate(NamedTuple):
    """A mark of a dot plot: CSS class, mean, ends of its interval (equal to the mean without one)."""

    css: str
    mean: float
    low: float
    high: float


def chart(
    lines: Sequence[Line],
    *,
    name: str,
    description: str,
    width: int = 340,
    height: int = 190,
    low: float | None = None,
    high: float | None = None,
    right: float | None = None,
    marks: Sequence[float] = (),
    x_label: str = "step",
    y_format: str = "short",
    log: bool = False,
) -> str:
    """Return a line chart as SVG.

    Args:
        lines: In drawing order; the first lies lowest.
        name: Unique in the page: the id of the clip path.
        description: For readers who do not see the figure.
        width: Of the view box; the page scales it.
        height: Of the view box.
        low: Lower end of the y axis; None follows the data.
        high: Upper end likewise.
        right: Right end of the x axis; charts that share it and `high` can be compared.
        marks: Steps with a vertical line (a resume, a skipped step).
        x_label: Under the x axis.
        y_format: "short" (12 k) or "percent".
        log: Logarithmic y axis; values that are not positive are left out.
    """
    drawn = [(line, *thin(line.x, line.y, MAX_POINTS)) for line in lines]
    if log:
        drawn = [(line, x[y > 0], y[y > 0]) for line, x, y in drawn]
    xs, ys = (np.concatenate([d[i] for d in drawn] or [np.zeros(0)]) for i in (1, 2))
    x0, x1 = (float(xs.min()), float(xs.max())) if len(xs) else (0.0, 1.0)
    x1 = max(right if right is not None else x1, x0 + 1e-9)
    y0, y1 = _range(ys, low, high, log=log)
    box = (LEFT, TOP, width - RIGHT, height - BOTTOM)
    down = _scale(y0, y1, box[3], box[1], log=log)
    across = _scale(x0, x1, box[0], box[2])
    parts = [
        f'<line class="grid" x1="{box[0]:g}" x2="{box[2]:g}" y1="{down(v):.1f}" y2="{down(v):.1f}"/>'
        f'<text x="{box[0] - 6:g}" y="{down(v) + 3.5:.1f}" text-anchor="end">{_tick(v, y_format)}</text>'
        for v in _ticks(y0, y1, 4, log=log)
    ]
    parts += [
        f'<text x="{across(v):.1f}" y="{box[3] + 14:g}" text-anchor="{_anchor(across(v), box)}">{esc(short(v) if v >= 10_000 else f"{v:g}")}</text>'
        for v in _ticks(x0, x1, 5, whole=True)
    ]
    parts.append(
        f'<text x="{(box[0] + box[2]) / 2:g}" y="{height - 4}" text-anchor="middle">{esc(x_label)}</text>'
    )
    parts += [
        f'<line class="mark" x1="{across(m):.1f}" x2="{across(m):.1f}" y1="{box[1]:g}" y2="{box[3]:g}"/>'
        for m in marks
        if x0 <= m <= x1
    ]
    curves = join(_curve(line, x, y, across, down) for line, x, y in drawn if len(x))
    clip = f'<clipPath id="{name}"><rect x="{box[0] - 5:g}" y="{box[1] - 5:g}" width="{box[2] - box[0] + 10:g}" height="{box[3] - box[1] + 10:g}"/></clipPath>'
    data = f'data-box="{box[0]:g} {box[1]:g} {box[2]:g} {box[3]:g}" data-axes="{x0:.6g} {x1:.6g} {y0:.6g} {y1:.6g}"'
    options = ' data-log="1"' if log else ""
    return (
        f'<svg class="chart hover" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(description)}" {data}{options} '
        f'data-format="{y_format}">{clip}{join(parts)}<g clip-path="url(#{name})">{curves}</g></svg>'
    )


def sparkline(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    *,
    top: float,
    right: float,
    width: int = 120,
    height: int = 28,
    points: int = 40,
) -> str:
    """Return a bare curve from (0, 0) to (right, top) as SVG; curves that share `top` and `right` can be compared."""
    x, y = thin(x, y, points)
    if len(x) < 2:
        return ""
    across = 1 + (width - 2) * x / max(right, 1e-12)
    down = height - 1 - (height - 2) * np.clip(y / max(top, 1e-12), 0, 1)
    path = " ".join(f"{a:.0f},{b:.1f}" for a, b in zip(across, down, strict=True))
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="loss from {y[0]:.2f} to {y[-1]:.2f}">'
        f'<polyline points="{path}"/></svg>'
    )


def dot_plot(
    rows: Sequence[tuple[str, Sequence[Estimate]]],
    *,
    description: str,
    width: int = 460,
    labels: float = 186,
    low: float = 0.0,
    high: float = 1.0,
) -> str:
    """Return a row a label, with a dot and a bar for the interval of each estimate.

    Args:
        rows: (label, estimates), from the top.
        description: For readers who do not see the figure.
        width: Of the view box.
        labels: Pixels for the labels, at least.
        low: Left end of the axis, a share.
        high: Right end.
    """
    labels = _label_room([label for label, _ in rows], labels, width)
    height = ROW * len(rows) + 26
    across = _scale(low, high, labels, width - 14)
    parts = []
    for v in _ticks(low, high, 5):
        parts.append(
            f'<line class="grid" x1="{across(v):.1f}" x2="{across(v):.1f}" y1="4" y2="{height - 20:g}"/>'
        )
        parts.append(
            f'<text x="{across(v):.1f}" y="{height - 6:g}" text-anchor="middle">{100 * v:.4g}</text>'
        )
    for i, (label, estimates) in enumerate(rows):
        y = 4 + ROW * (i + 0.5)
        parts.append(_label(label, labels, y))
        for e in estimates:
            if not math.isfinite(e.mean):
                continue
            said = f"{label}: {percent(e.mean)} [{percent(e.low)}, {percent(e.high)}]"
            a, b, c = (across(min(high, max(low, v))) for v in (e.low, e.high, e.mean))
            bar = f'<line x1="{a:.1f}" x2="{b:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>' if e.high > e.low else ""
            parts.append(
                f'<g class="dot {e.css}">{bar}<circle cx="{c:.1f}" cy="{y:.1f}" r="4.5"/><title>{esc(said)}</title></g>'
            )
    return f'<svg class="chart dots" viewBox="0 0 {width} {height:g}" role="img" aria-label="{esc(description)}">{join(parts)}</svg>'


def stacked(
    rows: Sequence[tuple[str, Sequence[tuple[str, str, float]]]],
    *,
    description: str,
    width: int = 460,
    labels: float = 170,
) -> str:
    """Return a bar a label that is divided into shares.

    Args:
        rows: (label, [(CSS class, title, share)]), from the top; the shares of a row add up to 1.
        description: For readers who do not see the figure.
        width: Of the view box.
        labels: Pixels for the labels, at least.
    """
    labels = _label_room([label for label, _ in rows], labels, width)
    height, across = ROW * len(rows) + 8, width - labels - 14
    parts = []
    for i, (label, shares) in enumerate(rows):
        y, x = 4 + ROW * i, labels
        parts.append(_label(label, labels, y + ROW / 2))
        for css, title, share in shares:
            wide = across * share
            parts.append(
                f'<rect class="part {css}" x="{x:.1f}" y="{y + 4:.1f}" width="{wide:.1f}" height="{ROW - 8:g}"><title>{esc(title)}: {percent(share)} %</title></rect>'
            )
            x += wide
    return f'<svg class="chart stack" viewBox="0 0 {width} {height:g}" role="img" aria-label="{esc(description)}">{join(parts)}</svg>'


def _label_room(labels: Sequence[str], least: float, width: float) -> float:
    """Return the pixels for the labels of rows: as long as the longest, at most so that half of the width is left."""
    return min(max(least, CHARACTER * max(map(len, labels), default=0) + 16), width / 2)


def _label(label: str, room: float, y: float) -> str:
    """Return the label of a row, in the middle of which is `y`; one that is too long is cut, and whole where the pointer rests."""
    most = int((room - 16) / CHARACTER)
    shown = label if len(label) <= most else f"{label[: most - 1]}…"
    title = "" if shown == label else f"<title>{esc(label)}</title>"
    return f'<text class="label" x="{room - 12:g}" y="{y + 3.5:.1f}" text-anchor="end">{esc(shown)}{title}</text>'


def _curve(
    line: Line,
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    across: Callable[[float], float],
    down: Callable[[float], float],
) -> str:
    points = [(across(a), down(b)) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    title = f' data-title="{esc(line.title)}"' if line.title else ""
    colour = f"var(--{line.colour})"
    out = f'<polyline class="{line.style}" stroke="{colour}" points="{path}"{title}/>'
    if line.style == "dots" or len(points) == 1:
        out += join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{colour}"/>' for a, b in points)
    return out


def _scale(
    low: float, high: float, start: float, end: float, *, log: bool = False
) -> Callable[[float], float]:
    if log:
        low, high = math.log(low), math.log(high)
    span = (high - low) or 1.0
    return lambda v: start + (end - start) * ((math.log(max(v, 1e-300)) if log else v) - low) / span


def _range(
    ys: NDArray[np.float64], low: float | None, high: float | None, *, log: bool
) -> tuple[float, float]:
    y0 = low if low is not None and not log else float(ys.min()) if len(ys) else 0.0
    y1 = high if high is not None else float(ys.max()) if len(ys) else 1.0
    if log:
        return y0 / 1.05, max(y1, y0 * 1.01) * 1.05
    margin = 0.04 * ((y1 - y0) or abs(y1) or 1.0)
    return y0 - (0 if low is not None else margin), max(y1, y0) + (0 if high is not None else margin)


def _ticks(low: float, high: float, wanted: int, *, log: bool = False, whole: bool = False) -> list[float]:
    """Return round values between the ends, at most `wanted` + 1 of them."""
    if log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
        return found[:: max(1, math.ceil(len(found) / (wanted + 1)))]
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(m * unit for m in (1, 2, 5, 10) if span / (m * unit) <= wanted)
    step = max(1.0, step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick(value: float, y_format: str) -> str:
    if y_format == "percent":
        return f"{100 * value:.4g} %"
    return esc(short(value) if abs(value) >= 1000 else f"{value:.4g}")


def _anchor(x: float, box: tuple[float, float, float, float]) -> str:
    return "end" if x > box[2] - 12 else "middle"
