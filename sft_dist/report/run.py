"""A run folder -> report.html, and the table at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from sft_dist.config.changes import flatten
from sft_dist.core.files import write_text
from sft_dist.evals.metrics import title_of
from sft_dist.evals.score import ANSWERERS
from sft_dist.report.benchmarks import benchmark_lines, benchmarks_section
from sft_dist.report.formatting import DASH, count, decimal, duration, esc, join, percent, points, short
from sft_dist.report.html import page
from sft_dist.report.results import probes_section, results_section, samples_section, tasks_section
from sft_dist.report.run_files import RunFiles, number, read_run_files
from sft_dist.report.run_summary import (
    SET_TITLES,
    RunSummary,
    best_baseline,
    interval,
    status_of,
    summarize_run,
)
from sft_dist.report.training import data_section, events_section, setup_section, training_section

TONES = {"finished": "good", "fatal": "bad", "silent": "bad"}


@dataclass(frozen=True, slots=True)
class ReportSection:
    """One section of the page: its anchor, its link in the navigation, and what writes it ("" leaves it out)."""

    anchor: str
    title: str
    write: Callable[[RunFiles, RunSummary], str]


SECTIONS: tuple[ReportSection, ...] = (
    ReportSection("results", "Results", lambda run, _: results_section(run)),
    ReportSection("benchmarks", "Benchmarks", lambda run, _: benchmarks_section(run)),
    ReportSection("probes", "What was learnt", lambda run, _: probes_section(run)),
    ReportSection("tasks", "Task by task", lambda run, _: tasks_section(run)),
    ReportSection("training", "Training", training_section),
    ReportSection("samples", "Sample answers", lambda run, _: samples_section(run)),
    ReportSection("data", "Data", lambda run, _: data_section(run)),
    ReportSection("events", "Events", lambda run, _: events_section(run)),
    ReportSection("setup", "Config", lambda run, _: setup_section(run)),
)
"""Order of the page and of its navigation; one entry adds a section."""


def write_report(run_dir: Path) -> Path:
    """Write report.html into a run folder: one file that needs nothing else.

    It is built from what is there. A section whose file is absent says so and names the command that makes it.

    Returns:
        The path of the page.

    Raises:
        UserError: When the folder does not exist.
    """
    run = read_run_files(run_dir)
    known = summarize_run(run)
    written = [(section, text) for section in SECTIONS if (text := section.write(run, known))]
    links = join(f'<a href="#{section.anchor}">{section.title}</a>' for section, _ in written)
    body = _header(run, known, links) + join(text for _, text in written) + _footer(run)
    path = run_dir / "report.html"
    write_text(path, page(f"{run.name} · sft_dist", body))
    return path


def summary_table(run_dir: Path) -> Table:
    """Return the outcome of a run as a table for the terminal.

    Raises:
        UserError: When the folder does not exist.
    """
    run = read_run_files(run_dir)
    known = summarize_run(run)
    rows = []
    for name, title in SET_TITLES.items():
        if name not in run.sets:
            continue
        macro, contrasts = run.sets[name]["macro"], run.sets[name]["contrasts"]
        best = best_baseline(contrasts)
        rows.append(
            (
                title + (", too few tasks" if macro.get("few") else ""),
                count(number(macro.get("tasks"))),
                _with_interval(interval(macro), percent),
                percent(interval(macro, "base")[0]),
                _difference(contrasts.get("base")),
                f"{percent(interval(macro, best)[0])} ({ANSWERERS[best]})" if best else DASH,
                _difference(contrasts.get(best or "")),
                "{win}/{tie}/{loss}".format_map(contrasts[best]) if best else DASH,
            )
        )
    caption = (
        f"{count(known.steps)} steps, {short(known.tokens)} tokens in {duration(known.seconds)} "
        f"({short(known.tokens_per_s)} tokens/s), loss {decimal(known.first_loss)} → {decimal(known.final_loss)}, "
        f"fill {percent(known.fill)} %, imbalance {decimal(known.imbalance)}"
    )
    if rows:
        caption += f"\n[low, high]: 95 % interval over {run.unit}"
        probes = run.scores.get("probes") or {}
        caption += "".join(f"\n{p['title']}: {p['sentence']}" for p in probes.values() if p.get("sentence"))
    else:
        caption += f"\nnot evaluated yet: sft-dist evaluate {run_dir}"
    caption += "".join(f"\n{line}" for line in benchmark_lines(run))
    title = f"{run.name}: {title_of(run.metric)}, mean over tasks, %"
    table = Table(title=escape(title), caption=escape(caption), title_justify="left", caption_justify="left")
    heads = (
        "evaluated on",
        "tasks",
        "model",
        "base",
        "less base",
        "best without a model",
        "less that",
        "win/tie/loss",
    )
    for i, head in enumerate(heads):
        table.add_column(
            head, justify="left" if i == 0 else "right", style="bold" if head == "model" else None
        )
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _with_interval(found: tuple[float, float, float], shown: Callable[[float], str]) -> str:
    mean, low, high = found
    return f"{shown(mean)} [{shown(low)}, {shown(high)}]" if math.isfinite(mean) else DASH


def _difference(contrast: Mapping[str, Any] | None) -> str:
    if not contrast:
        return DASH
    return _with_interval(
        (number(contrast.get("difference")), number(contrast.get("low")), number(contrast.get("high"))),
        points,
    )


def _header(run: RunFiles, known: RunSummary, links: str) -> str:
    state, detail = status_of(run)
    said = f" {esc(detail)}" if detail else ""
    return (
        f'<header><p class="eyebrow">Supervised fine-tuning run</p><h1>{esc(run.name)}</h1>'
        f'<p style="margin:12px 0 0"><span class="state {TONES.get(state, "")}">{esc(state)}</span><span class="small">{said}</span></p>'
        f'<p class="lead">{esc(" ".join(_sentences(run, known)))}</p><nav>{links}</nav></header>'
    )


def _sentences(run: RunFiles, known: RunSummary) -> list[str]:
    """Say in words what was trained, on what, and what came of it; only what is known."""
    out = []
    if len(run.training):
        parameters = number(run.plan.get("parameters", run.env.get("parameters")))
        start = run.option("model.path")
        subject = f"{start}" if start else "A model from scratch"
        if math.isfinite(parameters):
            subject += f" ({short(parameters)} parameters)"
        tasks = len(run.plan.get("tasks") or {})
        on = (
            f"{count(number(run.plan.get('examples')))} examples"
            if "examples" in run.plan
            else f"{short(known.tokens)} tokens"
        )
        of = f" of {tasks} tasks" if tasks else ""
        out.append(
            f"{subject}, trained for {count(known.steps)} steps on {on}{of} in {duration(known.seconds)}{_where(run)}."
        )
    for name, phrase in (
        ("seen", "On unseen inputs of the trained tasks"),
        ("heldout_near", "On held-out tasks with a trained relative"),
        ("heldout_far", "On held-out tasks without one"),
    ):
        if name not in run.sets:
            continue
        macro, contrasts = run.sets[name]["macro"], run.sets[name]["contrasts"]
        text = f"{phrase} it reaches {_with_interval(interval(macro), percent)} % {title_of(run.metric)}"
        if base := _difference(contrasts.get("base")).replace(DASH, ""):
            text += f", {base} points over the model before training"
        if best := best_baseline(contrasts):
            text += f", {_difference(contrasts[best])} over the {ANSWERERS[best]}"
        if macro.get("few"):
            text += f" ({count(number(macro.get('tasks')))} tasks, too few for a general claim)"
        out.append(f"{text}.")
    if not out:
        out.append("No step of training and no evaluation is recorded in this folder yet.")
    return out


def _where(run: RunFiles) -> str:
    ranks = number(run.env.get("world_size", run.plan.get("world_size")))
    if not math.isfinite(ranks):
        return ""
    device = f" ({run.env['device']})" if run.env.get("device") else ""
    return f", on {count(ranks)} rank{'s' * (ranks != 1)}{device}"


def _footer(run: RunFiles) -> str:
    version = flatten(run.env).get("versions.sft-dist", "")
    return f"<footer>Made by sft_dist {esc(version)} from the files of {esc(run.path)}; <code>sft-dist report</code> makes it anew.</footer>"
