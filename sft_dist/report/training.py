"""The sections about how it was trained: curves, data, events, config and environment."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sft_dist.config.changes import flatten
from sft_dist.report.charts import Line, chart, sparkline
from sft_dist.report.formatting import (
    DASH,
    count,
    decimal,
    duration,
    esc,
    format_bytes,
    join,
    leaf,
    percent,
    short,
    significant,
)
from sft_dist.report.html import Cell, bar, figure, missing, name_cell, pairs, stat_row, table
from sft_dist.report.run_files import RunFiles, number
from sft_dist.report.run_summary import CURVE_TITLES, RunSummary, edge_mean, smooth, task_mix

MULTIPLES = 24
"""Tasks whose loss is drawn at once; further ones are folded away."""

DRAWN = 80
"""Tasks whose loss is drawn at all; of the rest the first and last loss stand alone."""

EVENTS_SHOWN = 60

EVENT_HEADS = ("time", "event", "step", "detail")

NOTABLE = ("skip", "resume", "stop", "fail", "fatal", "bad", "error", "spike", "changed")
"""Events that a reader looks for, by part of their name."""


CURVE_COLOURS = (("b", "b"), ("good", "good"), ("bad", "bad"), ("c", "muted"))

STEP_CHARTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lr": ("Learning rate", "", {"low": 0.0}),
    "grad_norm": ("Gradient norm", "before clipping", {"low": 0.0}),
    "tokens_per_s": ("Throughput", "tokens a second", {"low": 0.0}),
    "step_s": ("Step time", "seconds", {"low": 0.0}),
    "data_wait_s": ("Waiting for data", "seconds a step", {"low": 0.0}),
    "memory_bytes": ("Peak memory", "bytes, rank 0", {"low": 0.0}),
    "fill": ("Fill", "tokens over capacity", {"high": 1.0, "y_format": "percent"}),
    "imbalance": ("Imbalance", "slowest rank over mean, 1 is perfect", {"low": 1.0}),
    "mfu": ("MFU", "useful FLOPs over peak", {"low": 0.0, "y_format": "percent"}),
}
"""Field of metrics.jsonl -> title, unit and axis of its chart."""
ROUGH = {"grad_norm", "tokens_per_s", "step_s", "data_wait_s", "mfu", "imbalance", "fill"}
"""Fields that vary from step to step: a moving mean is drawn over them."""


def training_section(run: RunFiles, known: RunSummary) -> str:
    """Return headline figures of training and its curves."""
    out = f'<h2 id="training">Training</h2>{missing(run, "metrics.jsonl")}'
    if not len(run.training):
        return out
    planned = (
        f"of {count(known.planned_steps)} planned"
        if math.isfinite(known.planned_steps) and known.planned_steps != known.steps
        else ""
    )
    mfu = f", MFU {percent(known.mfu)} %" if math.isfinite(known.mfu) else ""
    items = [
        ("steps", count(known.steps), planned or (f"{known.skipped} skipped" if known.skipped else "")),
        ("final loss, nats a token", decimal(known.final_loss), f"from {decimal(known.first_loss)}"),
        (
            "tokens",
            short(known.tokens),
            f"{percent(known.target_tokens / known.tokens, 0)} % with loss" if known.tokens else "",
        ),
        ("time in steps", duration(known.seconds), f"{percent(known.data_wait_share)} % waiting for data"),
        ("tokens a second", short(known.tokens_per_s), f"median{mfu}"),
        ("rows filled", f"{percent(known.fill)} %", "tokens over capacity"),
        ("imbalance", decimal(known.imbalance, 3), "slowest rank over mean"),
        ("peak memory", format_bytes(known.memory_bytes), "rank 0"),
    ]
    return f"{out}{stat_row(items)}{_charts(run)}{_multiples(run)}"


def _charts(run: RunFiles) -> str:
    t = run.training
    steps = t["step"]
    window = max(1, len(t) // 40)
    marks = sorted({x for e in run.events if _notable(e) and math.isfinite(x := number(e.get("step")))})
    smoothed = smooth(t["loss"], window)
    lines = [
        Line(x=steps, y=t["loss"], style="faint"),
        Line(x=steps, y=smoothed, title="training"),
    ]
    keys = f'<span class="key">training, mean of {window} steps</span>'
    for (name, (xs, ys)), (colour, css) in zip(run.training.curves.items(), CURVE_COLOURS, strict=False):
        lines.append(Line(x=xs, y=ys, colour=colour, style="dots", title=CURVE_TITLES.get(name, name)))
        keys += f'<span class="key {css} dot">{esc(CURVE_TITLES.get(name, name))}</span>'
    if not run.training.curves and len(t.evals[0]):
        lines.append(Line(x=t.evals[0], y=t.evals[1], colour="b", style="dots", title="evaluation"))
        keys += '<span class="key b dot">evaluation</span>'
    if marks:
        keys += '<span class="key mark">resume, skip, failure</span>'
    caption = f"<b>Loss</b> <span>nats per answer token{keys}</span>"
    finite = t["loss"][np.isfinite(t["loss"])]
    described = (
        f"Training loss falls from {edge_mean(finite, last=False):.2f} to {edge_mean(finite, last=True):.2f}"
    )
    high = float(np.quantile(finite, 0.998)) * 1.05 if len(finite) > 100 else None
    hero = join(
        f'<div class="{css}">{chart(lines, name=f"loss-{css}", description=described, width=w, height=h, low=0.0, high=high, marks=marks)}</div>'
        for css, w, h in (("wide", 640, 390), ("narrow", 340, 230))
    )
    out = figure(caption, hero, "hero")
    tail = steps >= 0.3 * (steps[-1] if len(steps) else 0)
    zoomed = [
        replace(line, x=line.x[line.x >= 0.3 * steps[-1]], y=line.y[line.x >= 0.3 * steps[-1]])
        for line in lines
    ]
    if tail.sum() > 20:
        svg = chart(
            zoomed,
            name="loss-tail",
            description="Loss, the last 70 % of steps, logarithmic",
            marks=marks,
            log=True,
        )
        out += figure("<b>Loss</b> <span>the last 70 % of steps, logarithmic</span>", svg)
    for field, (title, unit, options) in STEP_CHARTS.items():
        if not np.isfinite(t[field]).any():
            continue
        rough = field in ROUGH and window > 1
        curves = [Line(x=steps, y=t[field], style="faint")] if rough else []
        curves.append(Line(x=steps, y=smooth(t[field], window) if rough else t[field], title=title.lower()))
        svg = chart(
            curves, name=field.replace("_", "-"), description=f"{title} by step", marks=marks, **options
        )
        out += figure(f"<b>{title}</b> <span>{unit}</span>", svg)
    return f'<div class="charts">{out}</div>'


def _multiples(run: RunFiles) -> str:
    out = ""
    if run.training.source_loss:
        out += _grid_of(run, run.training.source_loss, "Loss of every source", "training")
    out += _grid_of(run, run.training.task_loss, "Loss of every task", "training")
    return out + _grid_of(
        run, run.training.eval_task_loss, "Loss of every evaluated task", "evaluations during training"
    )


def _grid_of(run: RunFiles, known: Mapping[str, tuple[Any, Any]], title: str, of: str) -> str:
    curves = {t: xy for t, xy in known.items() if len(xy[0]) > 1}
    if not curves:
        return ""
    top = max(edge_mean(ys, last=False) for _, ys in curves.values())
    right = float(run.training["step"][-1])
    cells: list[str] = []
    for task, (xs, ys) in sorted(curves.items(), key=lambda item: -edge_mean(item[1][1], last=True)):
        ends = f'<div class="ends"><span>{edge_mean(ys, last=False):.2f}</span><span>{edge_mean(ys, last=True):.2f}</span></div>'
        svg = (
            sparkline(xs, ys, top=top, right=right, width=150, height=44, points=28)
            if len(cells) < DRAWN
            else ""
        )
        cells.append(f"<figure><figcaption>{esc(task)}</figcaption>{svg}{ends}</figure>")
    out = (
        f'<h3>{title}</h3><p class="note">Of {of}. Same scale everywhere, from 0; the highest final loss comes first. '
        "Left the first 5 % of steps, right the last.</p>"
        f'<div class="multiples">{join(cells[:MULTIPLES])}</div>'
    )
    if rest := cells[MULTIPLES:]:
        out += (
            f'<details><summary>{len(rest)} more</summary><div class="multiples">{join(rest)}</div></details>'
        )
    return out


def data_section(run: RunFiles) -> str:
    """Return where the training data came from, what was dropped and why, and the mixture."""
    plan = run.plan
    out = f'<h2 id="data">Data</h2>{missing(run, "plan.json")}'
    if not plan:
        return out
    n_truncated = number(plan.get("truncated"))
    truncated = f"{count(n_truncated)} truncated" if n_truncated > 0 else ""
    shown = [
        ("examples an epoch", count(number(plan.get("examples"))), truncated),
        ("tokens an epoch", short(number(plan.get("tokens"))), ""),
        ("tokens with loss", short(number(plan.get("target_tokens"))), ""),
        ("rows", count(number(plan.get("rows"))), f"of {count(number(plan.get('seq_len')))} tokens"),
        ("tokens a step", count(number(plan.get("tokens_per_step"))), "capacity"),
        ("rows filled", f"{percent(number(plan.get('fill')))} %", "planned"),
    ]
    out += stat_row([item for item in shown if DASH not in item[1]])
    sources = plan.get("sources") or {}
    if sources:
        rows = [_source_row(name, s) for name, s in sources.items() if isinstance(s, Mapping)]
        heads = (
            "source",
            "kind",
            "read",
            "unreadable",
            "dropped",
            "evaluation",
            "kept",
            "tokens",
            "with loss",
        )
        out += f"<h3>Sources</h3>{table(heads, rows, left=('kind',), css='fit')}"
    drops: dict[str, float] = {}
    for counts in (
        plan.get("drops"),
        *(s.get("dropped") for s in sources.values() if isinstance(s, Mapping)),
    ):
        for reason, n in (counts or {}).items() if isinstance(counts, Mapping) else ():
            drops[reason] = drops.get(reason, 0.0) + number(n)
    if drops:
        most = max(drops.values()) or 1.0
        bars: list[list[Cell | str]] = [
            [reason, Cell(f'{count(n)}<span class="share">{bar(n / most)}</span>', n)]
            for reason, n in sorted(drops.items(), key=lambda item: -item[1])
        ]
        out += f"<h3>Dropped, by reason</h3>{table(('reason', 'examples'), bars, css='fit')}"
    return out + _mixture(plan)


def _source_row(name: str, s: Mapping[str, Any]) -> list[Cell | str]:
    dropped = s.get("dropped")
    n_dropped = sum(number(n) for n in dropped.values()) if isinstance(dropped, Mapping) else number(dropped)
    kept = s.get("kept", s.get("examples"))
    figures = (s.get("read"), s.get("unreadable"), n_dropped, s.get("evaluation"), kept)
    counted: list[Cell | str] = [count(number(v)) for v in figures]
    return [
        name,
        str(s.get("kind", "")),
        *counted,
        short(number(s.get("tokens"))),
        short(number(s.get("target_tokens"))),
    ]


def _mixture(plan: Mapping[str, Any]) -> str:
    tasks = task_mix(plan)
    if not tasks:
        return ""
    most = max((t.share_after for t in tasks if math.isfinite(t.share_after)), default=1.0) or 1.0
    rows = []
    for t in tasks:
        rare = ' <span class="tag">rare</span>' if t.rare else ""
        repeated = f' <span class="tag">{t.epochs:.1f} &#215;</span>' if t.epochs > 4 else ""
        rows.append(
            [
                name_cell(t.name, f"{rare}{repeated}"),
                Cell(esc(t.source)),
                Cell(count(t.examples), t.examples),
                Cell(count(t.drawn_examples), t.drawn_examples),
                Cell(decimal(t.epochs, 2), t.epochs),
                Cell(percent(t.share_before, 2), t.share_before),
                Cell(
                    f'{percent(t.share_after, 2)}<span class="share">{bar(t.share_after / most)}</span>',
                    t.share_after,
                ),
            ]
        )
    n_rare = sum(t.rare for t in tasks)
    meant = f"less than a quarter of an equal share of the {tasks[0].unit}"
    note = (
        f"{n_rare} of {len(tasks)} tasks are under-represented: {meant}. "
        "`mix.task_min`, `mix.rate=temperature` or a source's weight raises them."
        if n_rare
        else f"None of the {len(tasks)} tasks is under-represented ({meant})."
    )
    heads = ("task", "source", "examples", "drawn an epoch", "passes", "share before, %", "share after, %")
    inner = table(heads, rows, left=("source",), css="sortable")
    if len(rows) > MULTIPLES:
        inner = f"<details><summary>All {len(rows)} tasks</summary>{inner}</details>"
    return f'<h3>Tasks before and after mixing</h3><p class="note">{_code(note)}</p>{inner}'


def events_section(run: RunFiles) -> str:
    """Return what happened during the run: starts, checkpoints, resumes, skips."""
    out = f'<h2 id="events">Events</h2>{missing(run, "events.jsonl")}'
    if not run.events:
        return out
    rows = [_event_row(e) for e in run.events]
    if len(rows) <= EVENTS_SHOWN:
        return out + table(EVENT_HEADS, rows, left=EVENT_HEADS)
    notable = [_event_row(e) for e in run.events if _notable(e)][:EVENTS_SHOWN]
    shown = (
        table(EVENT_HEADS, notable, left=EVENT_HEADS)
        if notable
        else '<p class="note">No skip, resume or failure.</p>'
    )
    return f"{out}{shown}<details><summary>All {len(rows)} events</summary>{table(EVENT_HEADS, rows, left=EVENT_HEADS)}</details>"


def setup_section(run: RunFiles) -> str:
    """Return config and environment, folded."""
    out = f'<h2 id="setup">Config and environment</h2>{missing(run, "config.json", "env.json")}'
    for title, values in (("Config", run.config), ("Environment", run.env)):
        if values:
            flat = {k: _clock(v) if k == "started" else v for k, v in flatten(values).items()}
            out += f"<details><summary>{title}: {len(flat)} values</summary>{pairs(flat)}</details>"
    return out


def event_kind(event: Mapping[str, Any]) -> str:
    """Return what kind of event this is."""
    return str(event.get("kind") or event.get("event") or event.get("name") or "event")


def _notable(event: Mapping[str, Any]) -> bool:
    return any(word in event_kind(event).lower() for word in NOTABLE)


def _event_row(event: Mapping[str, Any]) -> list[Cell | str]:
    rest = {
        k: v for k, v in event.items() if k not in {"kind", "event", "time", "t", "ts", "timestamp", "step"}
    }
    detail = ", ".join(
        f"{k} {significant(v) if isinstance(v, float) else leaf(v)}"
        for k, v in flatten(rest).items()
        if v is not None
    )
    when = next((event[k] for k in ("time", "t", "ts", "timestamp") if k in event), None)
    kind = esc(event_kind(event))
    step = number(event.get("step"))
    return [
        _clock(when),
        Cell(f'<span class="tag">{kind}</span>' if _notable(event) else kind),
        count(step),
        Cell(esc(detail), classes="wrap"),
    ]


def _clock(when: Any) -> str:
    if isinstance(when, int | float) and math.isfinite(when):
        return dt.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M:%S")
    return str(when or "")


def _code(note: str) -> str:
    """Set what stands between backticks as code."""
    pieces = esc(note).split("`")
    return join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))
