"""A run folder -> report.html, and the table at the end of a run."""

from __future__ import annotations

import math
from pathlib import Path

from rich.table import Table

from sft_dist.config.changes import flatten
from sft_dist.core.files import write_text
from sft_dist.report.formatting import count, decimal, duration, esc, join, percent, points, short
from sft_dist.report.html import page
from sft_dist.report.results import results_section, samples_section, tasks_section
from sft_dist.report.run_files import RunFiles, number, read_run_files
from sft_dist.report.run_summary import (
    METRIC_TITLES,
    SET_TITLES,
    RunSummary,
    gain,
    score,
    status_of,
    summarize_run,
)
from sft_dist.report.training import data_section, events_section, setup_section, training_section

TONES = {"finished": "good", "fatal": "bad", "silent": "bad"}


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
    sections = (
        results_section(run),
        tasks_section(run),
        training_section(run, known),
        samples_section(run),
        data_section(run),
        events_section(run),
        setup_section(run),
    )
    body = _header(run, known) + join(sections) + _footer(run)
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
    metric = run.metric
    rows: list[tuple[str, ...]] = []
    for name, title in SET_TITLES.items():
        macro = run.scores.get(name, {}).get("macro")
        if not macro:
            continue
        error = number(macro.get(f"{metric}_se"))
        spread = f" ± {percent(error)}" if math.isfinite(error) else ""
        other = "rouge_l" if metric == "exact_match" else "exact_match"
        rows.append(
            (
                title,
                count(number(macro.get("tasks"))),
                f"{percent(score(macro, metric))}{spread}",
                percent(score(macro, metric, "nearest")),
                percent(score(macro, metric, "majority")),
                points(gain(macro, metric)),
                percent(score(macro, other)),
                *((percent(score(macro, metric, "base")),) if "base" in macro else ()),
            )
        )
    caption = (
        f"{count(known.steps)} steps, {short(known.tokens)} tokens in {duration(known.seconds)} "
        f"({short(known.tokens_per_s)} tokens/s), loss {decimal(known.first_loss)} → {decimal(known.final_loss)}, "
        f"fill {percent(known.fill)} %, imbalance {decimal(known.imbalance)}"
    )
    if not rows:
        caption += f"\nnot evaluated yet: sft-dist evaluate {run_dir}"
    title = f"{run.name}: macro {METRIC_TITLES.get(metric, metric)}, %"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    heads = [
        "evaluated on",
        "tasks",
        "model",
        "nearest neighbour",
        "most common",
        "gain",
        METRIC_TITLES["rouge_l" if metric == "exact_match" else "exact_match"],
    ]
    if any("base" in (run.scores.get(s, {}).get("macro") or {}) for s in SET_TITLES):
        heads.append("before training")
    for i, head in enumerate(heads):
        table.add_column(
            head, justify="left" if i == 0 else "right", style="bold" if head == "model" else None
        )
    for row in rows:
        table.add_row(*row)
    return table


def _header(run: RunFiles, known: RunSummary) -> str:
    state, detail = status_of(run)
    links = join(
        f'<a href="#{anchor}">{text}</a>'
        for anchor, text in (
            ("results", "Results"),
            ("tasks", "Task by task"),
            ("training", "Training"),
            ("samples", "Sample answers"),
            ("data", "Data"),
            ("events", "Events"),
            ("setup", "Config"),
        )
        if anchor != "tasks" or any(run.scores.get(s, {}).get("tasks") for s in SET_TITLES)
    )
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
    metric = run.metric
    for name, phrase in (
        ("seen", "On unseen inputs of the trained tasks"),
        ("heldout", "On tasks it never met"),
    ):
        macro = run.scores.get(name, {}).get("macro")
        if macro and math.isfinite(value := score(macro, metric)):
            baselines = f"{percent(score(macro, metric, 'nearest'))} % for the nearest training neighbour and {percent(score(macro, metric, 'majority'))} % for the most common answer"
            out.append(
                f"{phrase} it reaches {percent(value)} % {METRIC_TITLES.get(metric, metric)}, against {baselines}."
            )
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
