"""Several run folders -> what came out with intervals, paired differences to the first run, and which settings differ.

Differences are paired: on the examples that both runs were judged by, task by task. How many those are is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sft_dist.config.changes import flatten
from sft_dist.core.errors import UserError
from sft_dist.evals.metrics import title_of
from sft_dist.evals.statistics import Contrast, contrast
from sft_dist.report.charts import Line, chart
from sft_dist.report.formatting import DASH, decimal, duration, esc, join, p_value, percent, points, short
from sft_dist.report.html import Cell, Row, figure, page, table
from sft_dist.report.run_files import RunFiles, number, read_run_files
from sft_dist.report.run_summary import (
    CURVE_TITLES,
    SET_TITLES,
    RunSummary,
    interval,
    smooth,
    status_of,
    summarize_run,
)

ALWAYS_DIFFERENT = ("name", "run_root")
"""Settings that say nothing about why runs differ."""

COLOURS = ("a", "b", "good", "bad", "c")
"""Of the runs whose curves are drawn over one another; more cannot be told apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Figures and settings of several runs.

    Attributes:
        heads: Names of the figures.
        rows: One a run: its name, then its figures as text.
        values: The same figures as numbers, to sort by; None for text.
        notes: What the reader must know of the differences.
        differences: Dotted config path -> value in each run, as JSON; only where runs differ.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    values: tuple[tuple[float | None, ...], ...]
    notes: tuple[str, ...]
    differences: dict[str, tuple[str, ...]]


def compare(run_dirs: Sequence[Path], style: Literal["markdown", "html"] = "markdown") -> str:
    """Return a comparison of runs as Markdown, or as a page with their loss curves.

    Args:
        run_dirs: Run folders; differences are to the first.
        style: "markdown" or "html".

    Raises:
        UserError: With fewer than two folders, or when one does not exist.
    """
    if len(run_dirs) < 2:
        raise UserError(
            "a comparison needs at least two run folders, so there is nothing to set side by side; name more of them"
        )
    runs = [read_run_files(d) for d in run_dirs]
    found = comparison(runs)
    if style == "markdown":
        return _markdown(found)
    head = f'<header><p class="eyebrow">Comparison of runs</p><h1>{len(runs)} runs</h1></header>'
    return page("Comparison of runs", head + comparison_body(runs, found))


def comparison(runs: Sequence[RunFiles]) -> Comparison:
    """Collect figures and differing settings; figures that no run has are left out."""
    names = _names(runs)
    columns: list[tuple[str, list[str], list[float | None]]] = [
        ("state", [status_of(r)[0] for r in runs], [None] * len(runs))
    ]
    known = [summarize_run(r) for r in runs]
    for title, value, shown in _FACTS:
        numbers = [value(f) for f in known]
        columns.append((title, [shown(n) for n in numbers], list(numbers)))
    for name, title in CURVE_TITLES.items():
        numbers = [_last(r, name) for r in runs]
        columns.append((f"{title} loss", [decimal(n) for n in numbers], list(numbers)))
    notes = []
    for name, words in SET_TITLES.items():
        found = [interval((r.sets.get(name) or {}).get("macro") or {}) for r in runs]
        texts = [
            f"{percent(m)} [{percent(a, 0)}, {percent(b, 0)}]" if np.isfinite(m) else DASH
            for m, a, b in found
        ]
        metrics = " or ".join(dict.fromkeys(title_of(r.metric) for r in runs if name in r.sets))
        columns.append((f"{metrics}, {words}", texts, [m for m, _, _ in found]))
        pairs = [_paired(runs[0], r, name) if i else None for i, r in enumerate(runs)]
        shown_pairs = [
            f"{points(c.difference)} [{points(c.low)}, {points(c.high)}], p {p_value(c.p)}" if c else DASH
            for c, _ in (p or (None, "") for p in pairs)
        ]
        columns.append(
            (
                f"less {names[0]}, {words}",
                shown_pairs,
                [p[0].difference if p and p[0] else None for p in pairs],
            )
        )
        notes += [f"{names[i]}, {words.lower()}: {p[1]}" for i, p in enumerate(pairs) if p and p[1]]
    kept = [c for c in columns if any(cell != DASH for cell in c[1])]
    return Comparison(
        heads=("run", *(c[0] for c in kept)),
        rows=tuple((name, *(c[1][i] for c in kept)) for i, name in enumerate(names)),
        values=tuple((None, *(c[2][i] for c in kept)) for i in range(len(runs))),
        notes=tuple(notes),
        differences=_differences(runs),
    )


def comparison_body(runs: Sequence[RunFiles], found: Comparison, *, settings: bool = True) -> str:
    """Return the sections of a comparison as HTML: outcome, differing settings, curves.

    Args:
        runs: The runs.
        found: Their comparison.
        settings: Whether the settings that differ are listed; a leaderboard has them in its own table.
    """
    heads = [found.heads[0], *(h.replace(", ", ",\n") for h in found.heads[1:])]
    rows: list[Row] = [
        [Cell(esc(t), v) for t, v in zip(texts, values, strict=True)]
        for texts, values in zip(found.rows, found.values, strict=True)
    ]
    body = f'<h2 id="outcome">Outcome</h2><p class="note">Brackets: 95 % interval over {runs[0].unit}. Differences are paired, on the examples that both runs were judged by.</p>{table(heads, rows, left=("state",), css="sortable")}'
    body += join(f'<p class="few">{esc(n)}</p>' for n in found.notes)
    if settings:
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
    return body + _curves(runs, [texts[0] for texts in found.rows])


_FACTS: tuple[tuple[str, Callable[[RunSummary], float], Callable[[float], str]], ...] = (
    ("steps", lambda f: float(f.steps), lambda n: f"{n:,.0f}"),
    ("final loss", lambda f: f.final_loss, decimal),
    ("tokens", lambda f: f.tokens, short),
    ("time", lambda f: f.seconds, duration),
    ("tokens/s", lambda f: f.tokens_per_s, short),
    ("MFU %", lambda f: f.mfu, percent),
)


def _last(run: RunFiles, curve: str) -> float:
    xs_ys = run.training.curves.get(curve)
    return float(xs_ys[1][-1]) if xs_ys is not None else float("nan")


def _paired(first: RunFiles, other: RunFiles, name: str) -> tuple[Contrast | None, str] | None:
    """Return the difference of `other` to `first` on shared examples, and what limits it; None where one has no such set."""
    if name not in first.sets or name not in other.sets:
        return None
    a, b = _scores(first, name), _scores(other, name)
    shared = {t: sorted(set(a[t]) & set(b[t])) for t in sorted(set(a) & set(b))}
    shared = {t: ids for t, ids in shared.items() if ids}
    n, all_n = sum(map(len, shared.values())), sum(len(v) for v in (*a.values(), *b.values())) / 2
    if not shared:
        return None, "judged on other examples than the first run, so no difference is shown"
    if first.metric != other.metric:
        return None, "judged by another metric than the first run, so no difference is shown"
    c = contrast(
        [[b[t][i] for i in ids] for t, ids in shared.items()],
        [[a[t][i] for i in ids] for t, ids in shared.items()],
        families=[(first.sets[name]["tasks"].get(t) or {}).get("family", t) for t in shared],
    )
    said = [f"only {n:,} examples are shared of about {all_n:,.0f}"] if n < all_n else []
    said += [f"{c.units} {first.unit} are too few for a general claim"] if c.few else []
    return c, "; ".join(said)


def _scores(run: RunFiles, name: str) -> dict[str, dict[str, float]]:
    """Return task -> id -> the model's score."""
    out: dict[str, dict[str, float]] = {}
    for g in run.generations:
        found: Mapping[str, Any] = (g.get("scores") or {}).get("model") or {}
        if g.get("set") == name and g.get("metric") in found:
            out.setdefault(str(g.get("task")), {})[str(g.get("id"))] = number(found[g["metric"]])
    return out


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
    parts += ["\n".join(f"- {n}" for n in found.notes)] if found.notes else []
    if found.differences:
        heads = ("setting", *(row[0] for row in found.rows))
        parts.append(_grid(heads, [(k, *v) for k, v in found.differences.items()]))
    return "\n\n".join(parts) + "\n"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = "|" + "|".join(["---"] + ["---:"] * (len(heads) - 1)) + "|"
    return "\n".join([line(heads), rule, *map(line, rows)])


def _curves(runs: Sequence[RunFiles], names: Sequence[str]) -> str:
    """Draw the losses of the first runs over one another: training, and each curve of the evaluations."""
    shown = [(n, r.training) for n, r in zip(names, runs, strict=True) if len(r.training) > 1][: len(COLOURS)]
    if not shown:
        return ""
    charts = [
        ("Training loss, smoothed", [(t["step"], smooth(t["loss"], max(1, len(t) // 40))) for _, t in shown])
    ]
    for curve, title in CURVE_TITLES.items():
        if any(curve in t.curves for _, t in shown):
            empty = (np.zeros(0), np.zeros(0))
            charts.append((f"Loss, {title}", [t.curves.get(curve, empty) for _, t in shown]))
    out = []
    for k, (title, curves) in enumerate(charts):
        lines = [
            Line(x=x, y=y, colour=c, title=n, style="line" if k == 0 else "dots")
            for (x, y), c, (n, _) in zip(curves, COLOURS, shown, strict=False)
        ]
        svg = chart(lines, name=f"overlay{k}", description=title, width=520, height=260)
        out.append(figure(f"<b>{esc(title)}</b> <span>nats per answer token</span>", svg))
    key = join(
        f'<span style="color:var(--{c})"><b>{esc(n)}</b></span> '
        for c, (n, _) in zip(COLOURS, shown, strict=False)
    )
    more = f" The first {len(COLOURS)} of {len(runs)} runs." if len(runs) > len(COLOURS) else ""
    return f'<h2 id="curves">Curves</h2><p class="note">{key}{more}</p><div class="two">{join(out)}</div>'
