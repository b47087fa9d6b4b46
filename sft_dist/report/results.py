"""The sections about what the model can do: macro figures, every task, sample answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sft_dist.report.charts import sparkline
from sft_dist.report.formatting import DASH, clip, count, decimal, esc, join, percent, points
from sft_dist.report.html import Cell, Row, bar, missing, name_cell, table
from sft_dist.report.run_files import RunFiles, number
from sft_dist.report.run_summary import METRIC_TITLES, SET_TITLES, edge_mean, gain, score

SAMPLES = 4
"""Right answers, and wrong ones, that are shown of each set."""

PROMPT_CHARACTERS = 700
ANSWER_CHARACTERS = 400

NAMES = {
    "model": "this model",
    "nearest": "nearest training neighbour",
    "majority": "most common answer",
    "base": "model before training",
}

EXPLAINED = {
    "seen": "Inputs that were kept out of training, of tasks that were trained.",
    "heldout": "Tasks that training never met, neither their inputs nor their instructions.",
}

LEGEND = (
    '<p class="small legend"><span class="strip"><i class="model" style="left:50%"></i></span> this model '
    '<span class="strip"><i class="nearest" style="left:50%"></i></span> nearest training neighbour&#8217;s answer '
    '<span class="strip"><i class="majority" style="left:50%"></i></span> most common training answer. '
    "The strip runs from 0 to 100; gain is over the better of the two. Click a heading to sort.</p>"
)

PROBE_TITLES = {
    "without_instruction": "Instruction removed",
    "other_instruction": "Another task's instruction",
}


def results_section(run: RunFiles) -> str:
    """Return the headline comparison: the model against what needs no model."""
    cards = join(_card(run, name) for name in SET_TITLES if name in run.scores)
    out = f'<h2 id="results">Results</h2>{missing(run, "eval/scores.json")}'
    if cards:
        out += (
            '<p class="note">Greedy answers, judged as in Super-NaturalInstructions. Every task counts the same (macro '
            "mean); ± is one standard error from the choice of evaluation examples.</p>"
            f'<div class="results">{cards}</div>{_probes(run)}'
        )
    return out


def tasks_section(run: RunFiles) -> str:
    """Return the table of tasks for each set; of training alone when nothing was evaluated."""
    blocks = [_task_table(run, name) for name in SET_TITLES if run.scores.get(name, {}).get("tasks")]
    if not blocks:
        return ""
    return f'<h2 id="tasks">Task by task</h2>{LEGEND}{join(blocks)}'


def samples_section(run: RunFiles) -> str:
    """Return right and wrong answers of every set, of as many different tasks as possible."""
    blocks = []
    for name, title in SET_TITLES.items():
        members = [g for g in run.generations if g.get("set") == name]
        right = pick([g for g in members if g.get("exact_match")], SAMPLES)
        wrong = pick([g for g in members if not g.get("exact_match")], SAMPLES)
        if right or wrong:
            columns = join(f"<div>{join(map(_sample, column))}</div>" for column in (right, wrong))
            blocks.append(f'<h3>{title}</h3><div class="samples">{columns}</div>')
    note = (
        '<p class="note">As many tasks as possible: right answers on the left, wrong ones on the right.</p>'
        if blocks
        else ""
    )
    return f'<h2 id="samples">Sample answers</h2>{missing(run, "eval/generations.jsonl")}{note}{join(blocks)}'


def pick(members: Sequence[dict[str, Any]], number_wanted: int) -> list[dict[str, Any]]:
    """Return up to `number_wanted` members, one of each task before a second of any."""
    seen: dict[str, int] = {}
    ranked = []
    for order, g in enumerate(members):
        task = str(g.get("task"))
        ranked.append((seen.get(task, 0), order))
        seen[task] = seen.get(task, 0) + 1
    return [members[order] for _, order in sorted(ranked)[:number_wanted]]


def _card(run: RunFiles, name: str) -> str:
    macro = run.scores[name].get("macro", {})
    metric = run.metric
    other = "rouge_l" if metric == "exact_match" else "exact_match"
    error = number(macro.get(f"{metric}_se"))
    spread = f" ± {percent(error)}" if math.isfinite(error) else ""
    rows = [("model", score(macro, metric))] + [
        (b, score(macro, metric, b)) for b in ("nearest", "majority", "base")
    ]
    bars = join(
        f'<span class="{"strong" if who == "model" else ""}">{NAMES[who]}</span>'
        f'<span class="track">{bar(value, "model" if who == "model" else "")}</span>'
        f'<span class="value{" strong" if who == "model" else ""}">{percent(value)}</span>'
        for who, value in rows
        if math.isfinite(value)
    )
    rest = [f"{METRIC_TITLES[other]} {percent(score(macro, other))}"]
    if math.isfinite(strict := score(macro, "strict_exact_match")):
        rest.append(f"letter by letter {percent(strict)}")
    if math.isfinite(stopped := score(macro, "stopped")):
        rest.append(f"answers that end by themselves {percent(stopped)}")
    if math.isfinite(loss := score(macro, "loss")):
        rest.append(f"answer loss {decimal(loss)} nats a token")
    tasks, n = number(macro.get("tasks")), number(macro.get("n"))
    return (
        f'<section class="card"><h3>{SET_TITLES[name]}</h3><p class="small">{EXPLAINED[name]}</p>'
        f'<p class="big">{percent(score(macro, metric))} %</p>'
        f'<p class="under">{METRIC_TITLES[metric]}{spread}, {points(gain(macro, metric))} over the better baseline</p>'
        f'<div class="bars">{bars}</div>'
        f'<p class="small">{count(tasks)} task{"s" * (tasks != 1)}, {count(n)} examples. {esc("; ".join(rest))}.</p></section>'
    )


def _probes(run: RunFiles) -> str:
    probes = run.scores.get("probes")
    if not isinstance(probes, dict) or not probes:
        return ""
    rows: list[Row] = [
        (
            str(PROBE_TITLES.get(name, name)),
            count(number(p.get("n"))),
            percent(number(p.get("exact_match"))),
            percent(number(p.get("exact_match_probed"))),
            decimal(number(p.get("loss"))),
            decimal(number(p.get("loss_probed"))),
        )
        for name, p in probes.items()
        if isinstance(p, Mapping)
    ]
    heads = (
        "change to the same inputs",
        "n",
        "exact match, as asked",
        "changed",
        "answer loss, as asked",
        "changed",
    )
    return (
        '<h3>Does the instruction matter?</h3><p class="note">A model that follows instructions loses its exact match when '
        "they are removed or swapped; one that guesses the task from its input does not.</p>"
        + table(heads, rows, css="fit")
    )


def _task_table(run: RunFiles, name: str) -> str:
    metric, tasks = run.metric, run.scores[name]["tasks"]
    trained = name == "seen"
    top = max(
        (float(ys[: max(1, len(ys) // 20)].mean()) for _, ys in run.training.task_loss.values()), default=1.0
    )
    right = run.training["step"][-1] if len(run.training) else 1.0
    planned = run.plan.get("tasks") or {}
    rows: list[Row] = []
    for task, figures in sorted(tasks.items(), key=lambda item: -score(item[1], metric)):
        n = number(figures.get("n"))
        row = [name_cell(task), *_score_cells(figures, metric), Cell(count(n), n)]
        if trained:
            examples = number(figures.get("training_examples", (planned.get(task) or {}).get("examples")))
            row += [Cell(count(examples), examples), *_loss_cells(run, task, top, right)]
        rows.append(row)
    macro = run.scores[name].get("macro", {})
    total: list[Cell | str] = ["Macro mean", *_score_cells(macro, metric), count(number(macro.get("n")))]
    heads = [
        "task",
        METRIC_TITLES[metric],
        "EM",
        "ROUGE-L",
        "nearest",
        "most\ncommon",
        "gain",
        "eval\nexamples",
    ]
    if trained:
        total += [""] * 3
        heads += ["train\nexamples", "train loss", "first → last"]
    return f"<h3>{SET_TITLES[name]}</h3>{table(heads, rows, left=(METRIC_TITLES[metric],), total=total, css='sortable')}{_categories(run, name)}"


def _score_cells(figures: Mapping[str, Any], metric: str) -> list[Cell]:
    """Return strip, exact match, ROUGE-L, both baselines and the gain."""
    model, difference = score(figures, metric), gain(figures, metric)
    shown = [score(figures, m) for m in ("exact_match", "rouge_l")]
    shown += [score(figures, metric, b) for b in ("nearest", "majority")]
    return [
        Cell(_strip(figures, metric), model),
        *(Cell(percent(v), v) for v in shown),
        Cell(f'{_gain_bar(difference)}<span class="figure">{points(difference)}</span>', difference),
    ]


def _loss_cells(run: RunFiles, task: str, top: float, right: float) -> list[Cell]:
    xs_ys = run.training.task_loss.get(task)
    if xs_ys is None:
        return [Cell(DASH, math.nan)] * 2
    first, last = edge_mean(xs_ys[1], last=False), edge_mean(xs_ys[1], last=True)
    spark = sparkline(*xs_ys, top=top, right=right, width=70, height=20, points=30)
    return [
        Cell(f'<span style="display:inline-block;width:70px">{spark}</span>', last),
        Cell(f"{decimal(first, 2)} → {decimal(last, 2)}", last),
    ]


def _categories(run: RunFiles, name: str) -> str:
    categories = run.scores[name].get("categories") or {}
    if not categories:
        return ""
    rows = [
        (
            str(category),
            count(number(c.get("tasks"))),
            METRIC_TITLES.get(str(c.get("headline")), DASH),
            percent(score(c, str(c.get("headline")))),
            percent(score(c, str(c.get("headline")), "nearest")),
            percent(score(c, str(c.get("headline")), "majority")),
        )
        for category, c in categories.items()
    ]
    inner = table(
        ("category", "tasks", "metric", "score", "nearest", "most common"), rows, left=("metric",), css="fit"
    )
    return f"<details><summary>By category</summary>{inner}</details>"


def _strip(figures: Mapping[str, Any], metric: str) -> str:
    marks = [(who, score(figures, metric, who)) for who in ("majority", "nearest")] + [
        ("model", score(figures, metric))
    ]
    dots = join(f'<i class="{who}" style="left:{100 * v:.1f}%"></i>' for who, v in marks if math.isfinite(v))
    return f'<span class="strip">{dots}</span>'


def _gain_bar(difference: float) -> str:
    if not math.isfinite(difference):
        return ""
    side = "plus" if difference >= 0 else "minus"
    return f'<span class="gain"><i class="{side}" style="width:{50 * min(1.0, abs(difference)):.1f}%"></i></span>'


def _sample(g: Mapping[str, Any]) -> str:
    ok = bool(g.get("exact_match"))
    verdict = '<span class="right">✓ right</span>' if ok else '<span class="wrong">✗ wrong</span>'
    references = [str(r) for r in g.get("references") or []]
    more = f" (or {len(references) - 1} more)" if len(references) > 1 else ""
    unstopped = "" if g.get("stopped", True) else ' <span class="tag">cut at the token limit</span>'
    return (
        f'<article class="sample"><header><span>{esc(g.get("task", ""))}</span>{verdict}</header>'
        f'<div class="asked">{esc(clip(str(g.get("prompt", "")), PROMPT_CHARACTERS))}</div><dl>'
        f"<dt>model</dt><dd>{esc(clip(str(g.get('prediction', '')), ANSWER_CHARACTERS)) or DASH}{unstopped}</dd>"
        f"<dt>reference</dt><dd>{esc(clip(references[0] if references else '', ANSWER_CHARACTERS))}{more}</dd></dl></article>"
    )
