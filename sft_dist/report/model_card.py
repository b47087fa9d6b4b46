"""RunFiles -> README.md of an export: what the model is, from what, how good on what, and what is not known of it.

It is written with the export and again after an evaluation. Figures are those of the run page, with the same intervals.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object, write_text
from sft_dist.evals.metrics import title_of
from sft_dist.report.formatting import DASH, count, markdown_cell, markdown_table, percent, points
from sft_dist.report.run_files import RunFiles, number, read_run_files
from sft_dist.report.run_summary import SET_TITLES, interval, summarize_run

NAME = "README.md"
CHECK = "export_check.json"
"""In the export: what reloading it found. A new export has none until it is checked."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
SHOWN_CONFIG = ("model", "lora", "loss", "optim", "train", "pack", "mix", "render", "deepspeed", "seed")
"""Sections of the config that a card shows: those that shape the model. Paths of the data stay out."""


def write_model_card(run_dir: Path, export: Path) -> Path:
    """Write README.md into an exported folder, from what the run folder holds by now; return its path."""
    path = export / NAME
    write_text(path, model_card(read_run_files(run_dir), export))
    return path


def model_card(run: RunFiles, export: Path) -> str:
    """Return the card of a run's model as Markdown with the front matter that model hubs read."""
    blocks = [
        _front(run),
        f"# {markdown_cell(run.name)}",
        _what(run),
        "## Scores",
        *_scores(run),
        "## Training data",
        *_data(run),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(run, export)),
        "## How it was trained",
        f"```yaml\n{yaml.safe_dump(_shown_config(run), sort_keys=False, allow_unicode=True)}```",
    ]
    return "\n\n".join(b for b in blocks if b) + "\n"


def _front(run: RunFiles) -> str:
    base = _base(run)
    known = {"base_model": base} if base and HUB_ID.fullmatch(base) and not Path(base).exists() else {}
    fields = {**known, "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["sft"]}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _base(run: RunFiles) -> str | None:
    return None if run.option("model.shape") else run.option("model.path")


def _what(run: RunFiles) -> str:
    known, base = summarize_run(run), _base(run)
    commit = (run.env.get("model") or {}).get("commit")
    start = (
        f"`{base}`{f' at commit `{commit}`' if commit else ''}"
        if base
        else "random weights (the shape stands below)"
    )
    lora = run.option("lora")
    how = f"low-rank adapters (LoRA, rank {lora['rank']})" if lora else "training its weights"
    return (
        f"Made from {start} by supervised fine-tuning, {how}: {count(known.steps)} steps, {count(known.tokens)} tokens, "
        f"{count(known.target_tokens)} of them answers that carry loss."
    )


def _scores(run: RunFiles) -> Iterator[str]:
    rows = []
    for name, title in SET_TITLES.items():
        if name not in run.sets:
            continue
        found = run.sets[name]
        macro, less = found["macro"], found["contrasts"].get("base")
        few = ", too few tasks for a general claim" if macro.get("few") else ""
        rows.append(
            (
                f"{title}{few}",
                f"{count(number(macro.get('tasks')))} ({count(number(macro.get('n')))} examples)",
                _interval(interval(macro)),
                _interval(interval(macro, "base")),
                _difference(less),
            )
        )
    if not rows:
        yield "Not evaluated yet."
        return
    yield (
        f"Mean over tasks of {title_of(run.metric)}, %. Brackets: 95 % interval over {run.unit}. The base "
        "model got the same prompts; the difference is paired."
    )
    yield markdown_table(("evaluated on", "tasks", "this model", "base model", "difference"), rows)
    probes = run.scores.get("probes") or {}
    said = [
        f"- {markdown_cell(p['title'])}: {markdown_cell(p['sentence'])}"
        for p in probes.values()
        if p.get("sentence")
    ]
    yield "\n".join(said)


def _data(run: RunFiles) -> Iterator[str]:
    sources = run.plan.get("sources") or {}
    drawn: dict[str, float] = {}
    for task in (run.plan.get("tasks") or {}).values():
        drawn[task.get("source")] = drawn.get(task.get("source"), 0.0) + number(task.get("drawn_tokens"))
    rows = []
    for name, source in (run.option("data.sources") or {}).items():
        if source.get("use", "train") != "train" or source.get("prompts"):
            continue
        found = sources.get(name) or {}
        rows.append(
            (
                markdown_cell(name),
                source.get("kind"),
                markdown_cell(source.get("license") or "not stated"),
                count(number(found.get("examples"))),
                count(drawn.get(name, float("nan"))),
            )
        )
    yield (
        "Licences are as the config states them; the data of a source may have others of its own, and those of the base model hold "
        "for this model too."
    )
    yield markdown_table(("source", "kind", "licence", "examples", "tokens in an epoch"), rows, text=3)


def _limits(run: RunFiles, export: Path) -> Iterator[str]:
    if not run.sets:
        yield "Nothing is known of how good it is: it was not evaluated."
    else:
        yield "The scores speak of these tasks, this metric and greedy answers; safety, bias and facts were not evaluated."
    if not any(name.startswith("heldout") for name in run.sets):
        yield "No task was held out, so nothing is known of tasks that it was not trained on."
    yield f"It was trained on texts of at most {count(number(run.option('pack.seq_len')))} tokens."
    stopped = [number(s["macro"].get("stopped")) for s in run.sets.values()]
    if stopped:
        yield f"{percent(min(stopped))} % of its answers or more, by set, ended by themselves within {run.option('eval.max_new_tokens')} tokens."
    yield _check_line(export)


def _check_line(export: Path) -> str:
    fields = {"not_compared": str, "prompts": int, "stopped": int}
    try:
        found = read_object(export / CHECK, "export again", fields)
    except UserError:
        return "This folder was not reloaded and compared with the model that was trained."
    off = found.get("loss_difference")
    same = (
        f"its losses differ from those of the model in training by {off:.2g} nats a token"
        if off is not None
        else f"its losses were not compared with training: {found['not_compared']}"
    )
    template = ", the template asks as training did" if found.get("template") else ""
    ended = (
        f", {found['stopped']} of {found['prompts']} answers ended by themselves" if found["prompts"] else ""
    )
    return f"Plain transformers opens this folder whole; {same}{template}{ended}."


def _shown_config(run: RunFiles) -> dict[str, Any]:
    return {k: run.config[k] for k in SHOWN_CONFIG if run.config.get(k) is not None}


def _interval(found: tuple[float, float, float]) -> str:
    return f"{percent(found[0])} [{percent(found[1])}, {percent(found[2])}]"


def _difference(found: Mapping[str, Any] | None) -> str:
    if not found:
        return DASH
    return f"{points(number(found['difference']))} [{points(number(found['low']))}, {points(number(found['high']))}]"
