"""Series of numbers -> inline SVG that takes its colours from the page, in light and dark.

matplotlib draws in stand-in colours; in the text of the SVG they become CSS variables, fonts become the page's, and
ids are made unique, so that any number of figures can stand in one page.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from sft_dist.report.formatting import esc, short
from sft_dist.report.run_summary import thin

# Stand-in colour -> CSS variable of page.css.
COLOURS = {
    "ink": "#010203",
    "muted": "#020304",
    "grid": "#030405",
    "a": "#040506",
    "b": "#050607",
    "c": "#060708",
}

MAX_POINTS = 500
"""Of a curve. More cannot be told apart at this width and make the page heavy."""

ROUND_STEPS = [1, 2, 5, 10]
"""Of axis ticks."""

_PIXELS_PER_INCH = 72


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One series of a chart."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    colour: str = "a"
    style: Literal["line", "faint", "dots"] = "line"


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
) -> str:
    """Return a line chart as SVG.

    Args:
        lines: In drawing order; the first lies lowest.
        name: Unique in the page: the prefix of the SVG's ids.
        description: For readers who do not see the figure.
        width: Of the view box; the page scales it.
        height: Of the view box.
        low: Lower end of the y axis; None follows the data.
        high: Upper end likewise.
        right: Right end of the x axis; charts that share it and `high` can be compared.
        marks: Steps with a vertical line (a resume, a skipped step).
        x_label: Under the x axis.
        y_format: "short" (12 k) or "percent".
    """
    options: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "path.simplify": True,
    }
    with rc_context(options):
        figure = Figure(figsize=(width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(COLOURS["grid"])
        axes.grid(axis="y", color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0, colors=COLOURS["muted"], pad=5)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=ROUND_STEPS))
        if y_format == "percent":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.4g} %"))
        else:
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda v, _: short(v) if abs(v) >= 1000 else f"{v:.4g}")
            )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v) if v >= 10_000 else f"{v:.0f}"))
        axes.set_xlabel(x_label, color=COLOURS["muted"])
        for mark in marks:
            axes.axvline(mark, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (2, 3)))
        for line in lines:
            _draw(axes, line)
        axes.margins(x=0.01)
        axes.set_ylim(bottom=low, top=high)
        axes.set_xlim(right=right)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(out.getvalue(), name, description)


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
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" role="img" aria-label="loss from {y[0]:.2f} to {y[-1]:.2f}">'
        f'<polyline points="{path}"/></svg>'
    )


def _draw(axes: Axes, line: Line) -> None:
    x, y = thin(line.x, line.y, MAX_POINTS)
    colour = COLOURS[line.colour]
    if line.style == "dots" or len(x) == 1:
        axes.plot(x, y, color=colour, linewidth=1.2, marker="o", markersize=4)
    elif line.style == "faint":
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.35)
    else:
        axes.plot(x, y, color=colour, linewidth=1.8, solid_joinstyle="round")


def _inline(svg: str, name: str, description: str) -> str:
    """Make a file into an element of a page: no header, no metadata, no foreign ids, fonts or colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    label = f'<svg class="chart" {box.group()} role="img" aria-label="{esc(description)}">'
    svg = re.sub(r"^<svg[^>]*>", lambda _: label, svg)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^\")]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"(url\(#|href=\"#)([^\")]+)", lambda m: f"{m[1]}{name}-{m[2]}", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", svg)
    svg = re.sub(r"(\d+\.\d)\d{4,}", r"\1", svg)  # coordinates, not tick labels
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return re.sub(r">\s+<", "><", svg).strip()
