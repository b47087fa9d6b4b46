"""scores.json and generations.jsonl -> the sections about what the model can do: headlines, tasks, probes, sample answers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sft_dist.evals.constraints import FORMATS
from sft_dist.evals.metrics import METRICS, title_of
from sft_dist.evals.score import ANSWERERS, BASELINES
from sft_dist.report.charts import Estimate, Line, chart, dot_plot, sparkline, stacked
from sft_dist.report.formatting import DASH, clip, count, decimal, esc, join, percent, points
from sft_dist.report.html import Cell, Row, missing, render, table
from sft_dist.report.run_files import RunFiles, number
from sft_dist.report.run_summary import SET_TITLES, best_baseline, edge_mean, interval, score

SAMPLES = 4
"""Right answers, and wrong ones, that are shown of each set."""

PROMPT_CHARACTERS = 700
ANSWER_CHARACTERS = 400
CONFUSIONS = 6  # tables of labels that are shown
SPARK_TASKS = 200  # with more tasks the table leaves the curves out

EXPLAINED = {
    "seen": "Inputs that were kept out of training, of tasks that were trained.",
    "heldout_near": "Tasks that training never met, but a trained task is of their family or has a similar instruction.",
    "heldout_far": "Tasks that training never met, and no trained task is like them.",
    "validation": "New inputs of trained tasks by which models were chosen: no evidence of how good the chosen one is.",
}
CSS = {"model": "model", "base": "base"}


def results_section(run: RunFiles) -> str:
    """Return the headline of each set with intervals, beside the base model and what needs no model."""
    out = f'<h2 id="results">Results</h2>{missing(run, "eval/scores.json")}'
    sets = [_card(run, name) for name in SET_TITLES if name in run.sets]
    if not sets:
        return out
    metrics = sorted({f["metric"] for s in run.sets.values() for f in s["tasks"].values()})
    judged_by = " ".join(
        f"{METRICS[m].title[0].upper()}{METRICS[m].title[1:]}: {METRICS[m].note}"
        for m in metrics
        if m in METRICS
    )
    if tokens := run.scores.get("xlingual_tokens"):
        judged_by += f" Tokens of any script: {tokens}."
    shown = [n for n in SET_TITLES if n in run.sets]
    return out + render(
        "results.html",
        judged_by=judged_by,
        unit=run.unit,
        sets=sets,
        n_contrasts=sum(len(s["contrasts"]) for s in run.sets.values()),
        transfer=_transfer(run),
        others=[_other(run, o, shown) for o in (run.scores, *run.others)] if run.others else [],
        other_sets=[SET_TITLES[n] for n in shown],
        curve=_checkpoints(run, shown),
    )


def tasks_section(run: RunFiles) -> str:
    """Return the table of tasks for each set, and what each classification confuses."""
    blocks = [_task_table(run, name) for name in SET_TITLES if run.sets.get(name, {}).get("tasks")]
    if not blocks:
        return ""
    note = (
        '<p class="note">Brackets: 95 % interval of the task. Base: the model before training; gain: over it, paired. Click a heading '
        'to sort. <input class="find" type="search" placeholder="find a task" data-rows="#tasks ~ div tbody tr" aria-label="find a task"/></p>'
    )
    return f'<h2 id="tasks">Task by task</h2>{note}{_still(run)}{join(blocks)}{_confusions(run)}'


def probes_section(run: RunFiles) -> str:
    """Return the panel of probes: definition, sentence, figures with intervals, one plot each."""
    probes = run.scores.get("probes")
    if not isinstance(probes, Mapping) or not probes:
        return ""
    shown = [_probe(name, p) for name, p in probes.items() if isinstance(p, Mapping)]
    return f'<h2 id="probes">What was learnt</h2>{render("probes.html", probes=shown, unit=run.unit)}'


def samples_section(run: RunFiles) -> str:
    """Return right and wrong answers of every set, of as many different tasks as possible."""
    blocks = []
    for name, title in SET_TITLES.items():
        members = [g for g in run.generations if g.get("set") == name]
        right = pick([g for g in members if _is_right(g)], SAMPLES)
        wrong = pick([g for g in members if not _is_right(g)], SAMPLES)
        if right or wrong:
            blocks.append({"title": title, "columns": [[_sample(g) for g in gs] for gs in (right, wrong)]})
    shown = render("samples.html", blocks=blocks) if blocks else ""
    return f'<h2 id="samples">Sample answers</h2>{missing(run, "eval/generations.jsonl")}{shown}'


def pick(members: Sequence[dict[str, Any]], number_wanted: int) -> list[dict[str, Any]]:
    """Return up to `number_wanted` members, one of each task before a second of any."""
    seen: dict[str, int] = {}
    ranked = []
    for order, g in enumerate(members):
        task = str(g.get("task"))
        ranked.append((seen.get(task, 0), order))
        seen[task] = seen.get(task, 0) + 1
    return [members[order] for _, order in sorted(ranked)[:number_wanted]]


def _card(run: RunFiles, name: str) -> dict[str, Any]:
    found = run.sets[name]
    macro = found["macro"]
    mean, low, high = interval(macro)
    estimates = []
    for who, title in ANSWERERS.items():
        e = Estimate(CSS.get(who, "other"), *interval(macro, who))
        if math.isfinite(e.mean):
            estimates.append((title, [e]))
    rest = [
        f"{METRICS[m].title} {percent(number(v.get('model')))}"
        for m, v in (macro.get("metrics") or {}).items()
        if m in METRICS and m != run.metric
    ]
    for key, title in (
        ("strict_exact_match", "letter by letter"),
        ("stopped", "answers that end by themselves"),
    ):
        if math.isfinite(value := number(macro.get(key))):
            rest.append(f"{title} {percent(value)}")
    if math.isfinite(loss := number(macro.get("loss"))):
        rest.append(f"answer loss {decimal(loss)} nats a token")
    detectable = number((found["contrasts"].get("base") or {}).get("detectable"))
    if math.isfinite(detectable):
        rest.append(
            f"a difference to the base below {100 * detectable:.0f} points would not be found with these tasks"
        )
    return {
        "title": SET_TITLES[name],
        "explained": EXPLAINED[name],
        "metric": title_of(run.metric),
        "model": {"mean": mean, "low": low, "high": high},
        "tasks": int(number(macro.get("tasks"))),
        "n": number(macro.get("n")),
        "few": bool(macro.get("few")),
        "plot": dot_plot(estimates, description=f"{SET_TITLES[name]}: scores with intervals"),
        "contrasts": [
            {"title": ANSWERERS[who], **{k: number(c.get(k)) for k in ("difference", "low", "high")}, "p": number(c.get("p_holm", c.get("p"))),
             **{k: int(number(c.get(k))) for k in ("win", "tie", "loss")}}
            for who, c in found["contrasts"].items()
        ],
        "rest": f"{rest[0][0].upper()}{rest[0][1:]}{join(f'; {r}' for r in rest[1:])}." if rest else "",
    }  # fmt: skip


def _transfer(run: RunFiles) -> str:
    ratios = (run.scores.get("transfer") or {}).get("ratio") or {}
    said = [
        f"{100 * number(r.get('ratio')):.0f} % [{100 * number(r.get('low')):.0f}, {100 * number(r.get('high')):.0f}] on {SET_TITLES[n].lower()}"
        for n, r in ratios.items()
        if n in SET_TITLES
    ]
    return (
        f"Of the gain over the base model on trained tasks, {' and '.join(said)} is reached." if said else ""
    )


def _other(run: RunFiles, scores: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    def value(name: str) -> dict[str, float | None]:
        mean, low, high = interval((scores["sets"].get(name) or {}).get("macro") or {})
        return {"mean": mean if math.isfinite(mean) else None, "low": low, "high": high}

    settings = " ".join(scores.get("overrides") or []) or "as the run"
    return {
        "label": str(scores.get("evaluated", run.name)),
        "settings": settings,
        "figures": [value(n) for n in sets],
    }


def _checkpoints(run: RunFiles, sets: Sequence[str]) -> str:
    """Return the score by step, where several checkpoints were evaluated under equal settings."""
    found = sorted(
        (o for o in run.others if isinstance(o.get("step"), int) and not o.get("overrides")),
        key=lambda o: int(o["step"]),
    )
    if len(found) < 2:
        return ""
    steps = np.array([float(o["step"]) for o in found])
    lines = [
        Line(x=steps, y=np.array([interval((o["sets"].get(n) or {}).get("macro") or {})[0] for o in found]), colour=colour, style="dots", title=SET_TITLES[n])
        for n, colour in zip(sets, "abc", strict=False)
    ]  # fmt: skip
    drawn = chart(
        lines,
        name="checkpoints",
        description="Score by checkpoint",
        width=640,
        height=240,
        low=0.0,
        high=1.0,
        y_format="percent",
    )
    return f'<figure class="one"><figcaption><b>Score by checkpoint</b></figcaption>{drawn}</figure>'


def _still(run: RunFiles) -> str:
    """Name the tasks whose gain over the base is not above 0, and what would give them more weight."""
    tasks = {
        t: f
        for s in run.sets.values()
        for t, f in s["tasks"].items()
        if isinstance(f.get("gain_over_base"), Mapping)
    }
    trained = set(run.sets.get("seen", {}).get("tasks", {}))
    still = [t for t, f in tasks.items() if number(f["gain_over_base"].get("low")) <= 0]
    worse = [t for t, f in tasks.items() if number(f["gain_over_base"].get("high")) < 0]
    if not tasks:
        return ""
    out = (
        f"{len(still)} of {len(tasks)} tasks did not move: their gain over the model before training may be 0"
    )
    out += f" ({', '.join(still[:8])}{', …' if len(still) > 8 else ''})." if still else "."
    out += f" {len(worse)} got worse." if worse else " None got worse."
    if low := [t for t in still if t in trained]:
        out += f" Trained ones among them ({', '.join(low[:5])}) get more of the mixture by mix.task_min or a source's weight."
    return f'<p class="note">{esc(out)}</p>'


def _task_table(run: RunFiles, name: str) -> str:
    found = run.sets[name]
    tasks, contrasts = found["tasks"], found["contrasts"]
    trained, has_base = name == "seen", "base" in contrasts
    best = best_baseline(contrasts)
    sparks = len(tasks) <= SPARK_TASKS and bool(run.training.eval_task_loss or run.training.task_loss)
    curves = run.training.task_loss if trained else run.training.eval_task_loss
    top = max((edge_mean(ys, last=False) for _, ys in curves.values()), default=1.0)
    right = float(run.training["step"][-1]) if len(run.training) else 1.0
    planned = run.plan.get("tasks") or {}
    rows: list[Row] = []
    for task, f in sorted(tasks.items(), key=lambda item: -score(item[1])):
        metric = str(f.get("metric"))
        row: list[Cell | str] = [
            Cell(f"<span>{esc(task)}</span>", classes="task"),
            METRICS[metric].title if metric in METRICS else metric,
            percent(score(f)),
            Cell(
                f"[{percent(number(f.get('low')), 0)}, {percent(number(f.get('high')), 0)}]",
                number(f.get("low")),
            ),
        ]
        if has_base:
            g = f.get("gain_over_base") or {}
            d = number(g.get("difference"))
            row += [
                percent(score(f, "base")),
                f"{points(d)} [{points(number(g.get('low')))}, {points(number(g.get('high')))}]",
            ]
        row += [percent(score(f, who)) for who in BASELINES if who in contrasts]
        row.append(count(number(f.get("n"))))
        if trained:
            tokens = number((planned.get(task) or {}).get("drawn_target_tokens"))
            row += [count(number(f.get("training_examples"))), count(tokens)]
        if sparks:
            xs_ys = curves.get(task)
            spark = sparkline(*xs_ys, top=top, right=right, width=70, height=20, points=24) if xs_ys else ""
            row.append(
                Cell(
                    f'<span style="display:inline-block;width:70px">{spark or DASH}</span>',
                    edge_mean(xs_ys[1], last=True) if xs_ys else math.nan,
                )
            )
        rows.append(row)
    heads = ["task", "metric", "score", "95 %"]
    heads += ["base", "gain over base"] if has_base else []
    heads += [ANSWERERS[w].replace(" ", "\n", 1) for w in BASELINES if w in contrasts] + ["eval\nexamples"]
    heads += ["train\nexamples", "tokens with\nloss"] if trained else []
    heads += ["loss"] if sparks else []
    note = f'<p class="small">The strongest answer without a model: {ANSWERERS[best]}.</p>' if best else ""
    shown = table(heads, rows, left=("metric",), css="sortable")
    return f"<div><h3>{SET_TITLES[name]}</h3>{note}{shown}{_categories(run, name)}</div>"


def _categories(run: RunFiles, name: str) -> str:
    categories = run.sets[name].get("categories") or {}
    if not categories:
        return ""
    who = [w for w in ANSWERERS if w in next(iter(categories.values()))["score"]]
    rows: list[Row] = [
        (str(c), count(number(f.get("tasks"))), *(percent(number(f["score"].get(w))) for w in who))
        for c, f in categories.items()
    ]
    inner = table(("category", "tasks", *(ANSWERERS[w] for w in who)), rows, css="fit")
    return f"<details><summary>By category</summary>{inner}</details>"


def _confusions(run: RunFiles) -> str:
    found = [
        (t, f["confusion"], score(f))
        for s in run.sets.values()
        for t, f in s["tasks"].items()
        if isinstance(f.get("confusion"), Mapping) and score(f) < 1
    ]
    out = []
    for task, c, _ in sorted(found, key=lambda item: item[2])[:CONFUSIONS]:
        labels = c["labels"]
        rows: list[Row] = [(label, *(count(n) for n in c["counts"][label])) for label in labels]
        out.append(
            f"<h3>{esc(task)}</h3>{table(('right answer', *labels, 'something else'), rows, css='fit')}"
        )
    return (
        f"<details><summary>What classification tasks confuse ({len(out)} of {len(found)}, the lowest scores)</summary>{join(out)}</details>"
        if out
        else ""
    )


def _probe(name: str, p: Mapping[str, Any]) -> dict[str, Any]:
    heads: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = []
    plot = ""
    if name == "contrast":
        kinds: tuple[tuple[str, str], ...] = (
            ("compliance", "follows the instruction"),
            ("memory", "is the trained sibling's"),
            ("rest", "is neither"),
        )
        bars = [
            (f"{ANSWERERS[who]}, all", [(css, title, number(p[who][css]["mean"])) for css, title in kinds])
            for who in ("model", "base")
            if who in p
        ]
        bars += [
            (t, [(css, title, number(f[css])) for css, title in kinds])
            for t, f in p["model"]["tasks"].items()
        ]
        plot = stacked(
            bars, description="Shares of answers that follow the instruction, are the sibling's, or neither"
        )
        plot += '<p class="small"><span class="key">follows the instruction</span><span class="key b">the trained sibling&#8217;s answer</span><span class="key muted">neither</span></p>'
        heads = ("of all answers", "this model, 95 %", *(["base"] if "base" in p else []))
        rows = [(title, *(_of(p[w][css], 100) for w in ("model", "base") if w in p)) for css, title in kinds]
        rows.append(
            (
                "superficiality K / (C + K)",
                *(_of(p[w]["superficiality"], 100) for w in ("model", "base") if w in p),
            )
        )
    elif name in ("labels", "format"):
        kinds, modes = _altered(name, p)
        shown = {f"{title}, {ANSWERERS[w]}": f[w] for title, f in modes for w in ("model", "base") if w in f}
        plot = stacked(
            [(t, [(css, title, number(f[css]["mean"])) for css, title in kinds]) for t, f in shown.items()],
            description=f"{p['title']}: {', '.join(title for _, title in kinds)}",
        )
        more = {"kept": "in the format, right or wrong"} if name == "format" else {}
        columns = {**dict(kinds), "superficiality": "superficiality K / (C + K)", **more}
        heads = ("%", *columns.values())
        rows = [(t, *(_of(f[c], 100) for c in columns)) for t, f in shown.items()]
    elif name == "phrasing":
        plot = dot_plot(
            [(k, [_estimate("model", v)]) for k, v in p["figures"].items()], description=str(p["title"])
        )
    elif name == "instruction":
        plot = dot_plot(
            [
                (SET_TITLES.get(s, s), [_estimate(CSS[w], v["prefers_right"]) for w, v in by.items()])
                for s, by in p["sets"].items()
            ],
            description="Share of pairs in which the right instruction makes the answer more likely",
        )
        heads = ("nats a token saved", "against none", "against wrong ones")
        rows = [
            (
                f"{SET_TITLES.get(s, s)}, {ANSWERERS[w]}",
                _of(v["saved_against_none"]),
                _of(v["saved_against_wrong"]),
            )
            for s, by in p["sets"].items()
            for w, v in by.items()
        ]
    elif name == "memorisation":
        heads = ("gap, nats a token", "95 %")
        rows = [(ANSWERERS[w], _of(v)) for w, v in p["gap"].items()]
    elif name == "extraction":
        whose = [w for w in ("model", "base") if w in p]
        plot = dot_plot(
            [
                (f"{kind} answers", [_estimate(CSS[w], p[w][kind]) for w in reversed(whose)])
                for kind in ("trained", "unseen")
            ],
            description="Share of answers that are gone on with word for word",
        )
        heads = ("%", "trained", "unseen", "gap")
        rows = [
            (
                ANSWERERS[w],
                *(_of(p[w][k], 100) for k in ("trained", "unseen", "gap")),
            )
            for w in whose
        ]
    elif name == "shift":
        titles = {"first": "base's first", "second_or_third": "second or third", "lower": "lower"}
        places = p["positions"]
        lines = [
            Line(
                x=np.array([float(place.split(" ")[0]) for place in places]),
                y=np.array([number(f[kind]["mean"]) for f in places.values()]),
                colour=colour,
                style="dots",
                title=title,
            )
            for (kind, title), colour in zip(titles.items(), "abc", strict=True)
        ]
        plot = chart(
            lines,
            name="shift",
            description="Shares of the ranks that the base gives to the model's first choice, by position in the answer",
            width=460,
            low=0.0,
            high=1.0,
            x_label="position in the answer (first of those counted together)",
            y_format="percent",
        )
        plot += _keys(titles.values())
        heads = ("%", *titles.values())
        rows = [
            (label, *(_of(f[k], 100) for k in titles))
            for label, f in (
                *((SET_TITLES.get(s, s), f) for s, f in p["sets"].items()),
                *((f"position {place}", f) for place, f in places.items()),
            )
        ]
    elif name == "control":
        names = list(p["model"]["constraints"])
        plot = dot_plot(
            [
                (
                    n.replace("_", " "),
                    [_estimate(CSS[w], p[w]["constraints"][n]) for w in ("base", "model") if w in p],
                )
                for n in names
            ],
            description="Share of answers that keep each constraint",
        )
        heads = ("level", *(ANSWERERS[w] for w in ("model", "base") if w in p))
        rows = [
            (title, *(_of(p[w][key], 100) for w in ("model", "base") if w in p))
            for key, title in (
                ("prompt_strict", "prompt, strict"),
                ("prompt_loose", "prompt, loose"),
                ("instruction_strict", "constraint, strict"),
            )
        ]
    return {
        "title": p.get("title", name),
        "definition": p.get("definition", ""),
        "sentence": p.get("sentence", ""),
        "plot": plot,
        "heads": heads,
        "rows": rows,
    }


def _altered(
    name: str, p: Mapping[str, Any]
) -> tuple[tuple[tuple[str, str], ...], list[tuple[str, Mapping[str, Any]]]]:
    """Return what the shares of an altered task are called, and its alterations by title."""
    if name == "labels":
        kinds = (("compliance", "is right now"), ("memory", "was right in training"), ("rest", "is neither"))
        return kinds, [(f"labels {mode}", p[mode]) for mode in ("swapped", "renamed") if mode in p]
    kinds = (("compliance", "right as asked"), ("memory", "right as trained"), ("rest", "neither"))
    return kinds, [
        ("all formats" if mode == "all" else mode, p[mode]) for mode in ("all", *FORMATS) if mode in p
    ]


def _keys(titles: Iterable[str]) -> str:
    """Return the legend of lines in the colours a, b, c."""
    keys = zip(("key", "key b", "key c"), titles, strict=True)
    return f'<p class="small">{join(f"<span class={css!r}>{esc(t)}</span>" for css, t in keys)}</p>'


def _estimate(css: str, v: Mapping[str, Any]) -> Estimate:
    return Estimate(css, number(v.get("mean")), number(v.get("low")), number(v.get("high")))


def _of(v: Mapping[str, Any], scale: int = 1) -> str:
    mean, low, high = (scale * number(v.get(k)) for k in ("mean", "low", "high"))
    digits = 1 if scale == 100 else 2
    return f"{decimal(mean, digits)} [{decimal(low, digits)}, {decimal(high, digits)}]"


def _is_right(g: Mapping[str, Any]) -> bool:
    return number(((g.get("scores") or {}).get("model") or {}).get("exact_match")) == 1


def _sample(g: Mapping[str, Any]) -> dict[str, Any]:
    references = [str(r) for r in g.get("references") or []]
    answers = g.get("answers") or {}
    base = answers.get("base")
    return {
        "task": str(g.get("task", "")),
        "right": _is_right(g),
        "prompt": clip(str(g.get("prompt", "")), PROMPT_CHARACTERS),
        "model": clip(str(answers.get("model", "")), ANSWER_CHARACTERS) or DASH,
        "base": None if base is None else clip(str(base), ANSWER_CHARACTERS) or DASH,
        "reference": clip(references[0] if references else "", ANSWER_CHARACTERS),
        "more": len(references) - 1 if len(references) > 1 else 0,
        "stopped": bool(g.get("stopped", True)),
    }
