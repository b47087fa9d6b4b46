"""Several run folders -> one table: what came out, and which settings differ. For a sweep, or before and after a change."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sft_dist.config.changes import flatten
from sft_dist.core.errors import UserError
from sft_dist.report.charts import Line, chart
from sft_dist.report.formatting import DASH, decimal, duration, esc, join, percent, points, short
from sft_dist.report.html import Cell, Row, figure, page, table
from sft_dist.report.run_files import RunFiles, read_run_files
from sft_dist.report.run_summary import (
    METRIC_TITLES,
    RunSummary,
    gain,
    score,
    smooth,
    status_of,
    summarize_run,
)

ALWAYS_DIFFERENT = ("name", "run_root")
"""Settings that say nothing about why runs differ."""

CURVES = 6
"""Runs whose loss is drawn; more cannot be told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Figures and settings of several runs.

    Attributes:
        heads: Names of the figures.
        rows: One a run: its name, then its figures as text.
        values: The same figures as numbers, to sort by; None for text.
        differences: Dotted config path -> value in each run, as JSON; only where runs differ.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float | None, ...], ...]
    differences: dict[str, tuple[str, ...]]


def compare(run_dirs: Sequence[Path], style: Literal["markdown", "html"] = "markdown") -> str:
    """Return a comparison of runs as Markdown, or as a page with their loss curves.

    Raises:
        UserError: With fewer than two folders, or when one does not exist.
    """
    if len(run_dirs) < 2:
        raise UserError(
            "a comparison needs at least two run folders, so there is nothing to set side by side; name more of them"
        )
    runs = [read_run_files(d) for d in run_dirs]
    found = comparison(runs)
    return _html(runs, found) if style == "html" else _markdown(found)


def comparison(runs: Sequence[RunFiles]) -> Comparison:
    """Collect figures and differing settings. Figures that no run has are left out."""
    names = _names(runs)
    columns: list[tuple[str, list[str], list[float | None]]] = [
        ("state", [status_of(r)[0] for r in runs], [None] * len(runs))
    ]
    known = [summarize_run(r) for r in runs]
    for title, value, shown in _FACTS:
        numbers = [value(f) for f in known]
        columns.append((title, [shown(n) for n in numbers], list(numbers)))
    metrics = list(dict.fromkeys(r.metric for r in runs))
    for set_name, words in (("seen", "trained tasks"), ("heldout", "held-out tasks")):
        macros = [r.scores.get(set_name, {}).get("macro") or {} for r in runs]
        for metric in [*metrics, *(m for m in METRIC_TITLES if m not in metrics)]:
            numbers = [score(m, metric) for m in macros]
            columns.append(
                (f"{METRIC_TITLES[metric]}, {words}", [percent(n) for n in numbers], list(numbers))
            )
        gains = [gain(m, r.metric) for m, r in zip(macros, runs, strict=True)]
        columns.append((f"gain over baselines, {words}", [points(n) for n in gains], list(gains)))
    kept = [c for c in columns if any(cell != DASH for cell in c[1])]
    return Comparison(
        heads=("run", *(c[0] for c in kept)),
        rows=tuple((name, *(c[1][i] for c in kept)) for i, name in enumerate(names)),
        values=tuple((None, *(c[2][i] for c in kept)) for i in range(len(runs))),
        differences=_differences(runs),
    )


_FACTS: tuple[tuple[str, Callable[[RunSummary], float], Callable[[float], str]], ...] = (
    ("steps", lambda f: float(f.steps), lambda n: f"{n:,.0f}"),
    ("final loss", lambda f: f.final_loss, decimal),
    ("eval loss", lambda f: f.eval_loss, decimal),
    ("tokens", lambda f: f.tokens, short),
    ("time", lambda f: f.seconds, duration),
    ("tokens/s", lambda f: f.tokens_per_s, short),
    ("MFU %", lambda f: f.mfu, percent),
)


def _differences(runs: Sequence[RunFiles]) -> dict[str, tuple[str, ...]]:
    flat = [flatten(r.config) for r in runs]
    out: dict[str, tuple[str, ...]] = {}
    for key in dict.fromkeys(k for f in flat for k in f):
        values = tuple(json.dumps(f[key], ensure_ascii=False) if key in f else DASH for f in flat)
        if len(set(values)) > 1 and key not in ALWAYS_DIFFERENT:
            out[key] = values
    return out


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Return the names of runs; their paths where names are not unique."""
    names = [r.name for r in runs]
    return [n if names.count(n) == 1 else str(r.path) for n, r in zip(names, runs, strict=True)]


def _markdown(found: Comparison) -> str:
    parts = [_grid(found.heads, found.rows)]
    if found.differences:
        heads = ("setting", *(row[0] for row in found.rows))
        parts.append(_grid(heads, [(k, *v) for k, v in found.differences.items()]))
    return "\n\n".join(parts) + "\n"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(heads) - 1)) + "|"
    return "\n".join([line(heads), rule, *map(line, rows)])


def _html(runs: Sequence[RunFiles], found: Comparison) -> str:
    def row(texts: Sequence[str], values: Sequence[float | None]) -> list[Cell | str]:
        return [Cell(esc(t), v) for t, v in zip(texts, values, strict=True)]

    heads = [found.heads[0], *(h.replace(", ", ",\n") for h in found.heads[1:])]
    rows = [row(texts, values) for texts, values in zip(found.rows, found.values, strict=True)]
    body = f'<header><p class="eyebrow">Comparison of runs</p><h1>{len(runs)} runs</h1></header>'
    body += f"<h2>Outcome</h2>{table(heads, rows, left=('state',), css='sortable')}"
    body += "<h2>Settings that differ</h2>"
    if found.differences:
        names = [texts[0] for texts in found.rows]
        cells: list[Row] = [
            [key, *(Cell(f'<span class="mono">{esc(v)}</span>', classes="wrap") for v in values)]
            for key, values in found.differences.items()
        ]
        body += table(("setting", *names), cells, css="fit")
    else:
        body += '<p class="note">None: the configs are equal.</p>'
    return page("Comparison of runs", f"{body}{_curves(runs, found)}")


def _curves(runs: Sequence[RunFiles], found: Comparison) -> str:
    """Draw every run's loss on one scale, side by side: lines that overlap cannot be told apart."""
    shown = [
        (texts[0], r.training) for texts, r in zip(found.rows, runs, strict=True) if len(r.training) > 1
    ][:CURVES]
    if not shown:
        return ""
    curves = [(name, t["step"], smooth(t["loss"], max(1, len(t) // 40))) for name, t in shown]
    right = max(float(x[-1]) for _, x, _ in curves)
    high = max((float(np.nanmax(y)) for _, _, y in curves if np.isfinite(y).any()), default=1.0)
    figures = join(
        figure(
            f"<b>{esc(name)}</b>",
            chart(
                [Line(x=x, y=y)],
                name=f"run{i}",
                description=f"Training loss of {name}",
                low=0.0,
                high=high,
                right=right,
            ),
        )
        for i, (name, x, y) in enumerate(curves)
    )
    more = f" The first {CURVES} of {len(runs)} runs." if len(runs) > CURVES else ""
    return f'<h2>Training loss</h2><p class="note">Nats per answer token, smoothed, one scale.{more}</p><div class="charts">{figures}</div>'
