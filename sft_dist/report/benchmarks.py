"""harness.json -> the section of benchmarks asked by lm-evaluation-harness, and its lines in the terminal. Intervals are over items."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from sft_dist.evals.statistics import FEW_UNITS
from sft_dist.report.formatting import DASH, count, decimal, esc
from sft_dist.report.html import Cell, Row, table
from sft_dist.report.run_files import RunFiles, number

HEADS = (
    "task",
    "evaluated",
    "metric",
    "items",
    "model\n95 % over items",
    "harness\nstderr",
    "base\n95 % over items",
    "difference\n95 % over items",
    "p (Holm)",
)


def benchmarks_section(run: RunFiles) -> str:
    """Return the table of tasks that lm-evaluation-harness asked."""
    rows: list[Row] = []
    for label, task, n, f in _figures(run):
        model, base, d = _parts(f)
        mean = number(model.get("mean"))
        rows.append((
            Cell(f"<span>{esc(task)}</span>", classes="task"), label, _metric(f), count(n), Cell(_interval(model), mean),
            decimal(number(model.get("stderr")), 4), _interval(base), _interval({**d, "mean": d.get("difference")}), decimal(number(d.get("p_holm")), 3),
        ))  # fmt: skip
    if not rows:
        return ""
    templates = {bool(h.get("chat_template")) for h in run.harness}
    template = "with the chat template" if templates == {True} else "partly or wholly without a chat template"
    versions = ", ".join(sorted({str(h.get("harness")) for h in run.harness}))
    note = (
        f"Asked by lm-evaluation-harness {versions}, {template}. The unit is the item: these intervals are about further items of "
        "the same benchmark, not about other tasks. The difference is paired on the item. A metric without an interval is no mean over items."
    )
    return f'<h2 id="benchmarks">Benchmarks</h2><p class="note">{esc(note)}</p>{table(HEADS, rows, left=("evaluated", "metric"), css="sortable")}'


def benchmark_lines(run: RunFiles) -> Iterator[str]:
    """Yield one sentence for each figure, for the terminal."""
    for label, task, n, f in _figures(run):
        model, base, d = _parts(f)
        line = f"benchmark {task} ({label}), {_metric(f)}: {_interval(model)} over {count(n)} items"
        if base:
            line += f", base {_interval(base)}"
        if d:
            line += f", less base {_interval({**d, 'mean': d['difference']})}"
        yield line + (", too few items for a general claim" if n < FEW_UNITS else "")


def _figures(run: RunFiles) -> Iterator[tuple[str, str, float, Mapping[str, Any]]]:
    """Yield what was evaluated, task, items and one figure."""
    for found in run.harness:
        for task, figures in found["tasks"].items():
            for f in figures["metrics"]:
                yield str(found.get("evaluated")), task, number(figures.get("n")), f


def _parts(f: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
    return f["score"].get("model") or {}, f["score"].get("base") or {}, f.get("difference") or {}


def _metric(f: Mapping[str, Any]) -> str:
    better = "" if f.get("higher_is_better", True) else ", lower is better"
    cut = "" if f.get("filter") == "none" else f" ({f.get('filter')})"
    return f"{f['metric']}{cut}{better}"


def _interval(v: Mapping[str, Any]) -> str:
    mean, low, high = (number(v.get(k)) for k in ("mean", "low", "high"))
    if not math.isfinite(mean):
        return DASH
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]" if math.isfinite(low) else f"{mean:.3f}"
