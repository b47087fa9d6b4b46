"""Answers of the model, the base model and baselines -> eval/generations.jsonl and eval/scores.json.

Each answer is judged by the metric of its task (`evals/metrics.py`). A task's score is the mean over its examples, a set's the mean
over tasks: every task counts the same. All scores are shares, 0 to 1; intervals and tests are those of `evals/statistics.py`.
docs/evaluation.md lists the fields of both files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.core.errors import UserError
from sft_dist.core.files import write_checked, write_text
from sft_dist.core.records import Example
from sft_dist.evals.baselines import Baselines, format_guesses
from sft_dist.evals.metrics import (
    MAX_LABELS,
    METRICS,
    metric_of_task,
    normalise,
    strict_exact_match,
    xlingual_tokens_title,
)
from sft_dist.evals.splits import AnswerLoss, Generation, prompt_text
from sft_dist.evals.statistics import (
    bootstrap_means,
    contrast,
    holm,
    mean_interval,
    percentiles,
    unit_codes,
    wilson,
)

FORMAT = 2
"""Of scores.json; raised when its fields change their meaning."""

CLASSIFICATION_CATEGORIES = frozenset(
    {
        "Textual Entailment",
        "Cause Effect Classification",
        "Coreference Resolution",
        "Dialogue Act Recognition",
        "Answerability Classification",
        "Word Analogy",
    }
)
"""The test categories for which Super-NaturalInstructions reports exact match; ROUGE-L for all others."""

MODEL, BASE = "model", "base"
BASELINES: dict[str, str] = {
    "nearest": "nearest training neighbour",
    "majority": "most common training answer",
    "format_guess": "guess in the right format",
    "input_only": "nearest by the input alone",
}
"""Answerers that need no model. Each sees exactly the examples that were drawn for training."""
ANSWERERS: dict[str, str] = {MODEL: "this model", BASE: "model before training", **BASELINES}
SHOWN_CANDIDATES = 1
"""Answers of an answerer that are written out; a guess has many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredExample:
    """One evaluated example: what was asked, what is right, what everybody said, and how good it is.

    Attributes:
        set: Name of the set.
        task: Task of the example.
        id: Id of the example.
        prompt: What was asked.
        references: Acceptable answers.
        metric: That judges the task.
        answers: Answerer -> its answer (of a guess, one of its candidates).
        scores: Answerer -> metric -> score; of a guess the mean over its candidates.
        strict: Whether the model's answer equals a reference letter by letter.
        stopped: Whether the model ended its turn itself.
        nats: The model's loss on the reference, in nats; None where it was not computed.
        target_tokens: Tokens that `nats` sums over.
    """

    set: str
    task: str
    id: str
    prompt: str
    references: tuple[str, ...]
    metric: str
    answers: dict[str, str]
    scores: dict[str, dict[str, float]]
    strict: bool
    stopped: bool
    nats: float | None = None
    target_tokens: int = 0


def score_examples(
    sets: Mapping[str, Sequence[Example]],
    generations: Mapping[str, Generation],
    baselines: Baselines,
    base: Mapping[str, Generation] | None = None,
    *,
    metric: str = "rouge_l",
    told: Mapping[str, str] | None = None,
    categories: Mapping[str, str] | None = None,
    losses: Mapping[str, AnswerLoss] | None = None,
) -> list[ScoredExample]:
    """Judge every evaluated example.

    Args:
        sets: The evaluated examples.
        generations: The model's answers, by id of the example.
        baselines: Over the training pairs.
        base: The answers of the model that training started from.
        metric: `eval.metric`.
        told: Task -> metric that its source names.
        categories: Task -> category.
        losses: By id of the example.

    Raises:
        UserError: When an example has no generation.
    """
    told, categories, losses = told or {}, categories or {}, losses or {}
    missing = [e.id for examples in sets.values() for e in examples if e.id not in generations]
    if missing:
        raise UserError(
            f"{len(missing)} evaluation examples have no generation (the first is {missing[0]}), so scores would cover "
            "a part only; run `sft-dist evaluate` again, it generates just the missing ones"
        )
    out = []
    for name, examples in sets.items():
        by_task: dict[str, list[Example]] = {}
        for e in examples:
            by_task.setdefault(e.task, []).append(e)
        for task, members in by_task.items():
            judge = judge_of(task, members, metric, told, categories)
            guesses = format_guesses(members)
            for e in members:
                said: dict[str, tuple[str, ...]] = {MODEL: (generations[e.id].prediction,)}
                if base is not None:
                    said[BASE] = (base[e.id].prediction,)
                said |= {**baselines.answers(e), "format_guess": guesses[e.id]}
                out.append(_judge(name, e, judge, said, generations[e.id], losses.get(e.id)))
    return out


def judge_of(
    task: str,
    members: Sequence[Example],
    metric: str,
    told: Mapping[str, str],
    categories: Mapping[str, str],
) -> str:
    """Return the metric that judges the evaluated examples of a task; the arguments are those of `score_examples`.

    Raises:
        UserError: When `checks` is asked for, and an example names none.
    """
    checked = all(e.checks for e in members)
    found = metric_of_task(
        metric,
        [e.answers for e in members],
        told=told.get(task),
        classification=categories.get(task) in CLASSIFICATION_CATEGORIES,
        choices=all(e.choices for e in members),
        checked=checked,
    )
    if found in METRICS and METRICS[found].by_checks and not checked:
        raise UserError(
            f"the metric {found} judges by the constraints that records name, and examples of {task} name none, so every answer would be "
            "right; use eval.metric=auto, which takes it where there are some"
        )
    return found


def scores(
    judged: Sequence[ScoredExample],
    *,
    asked: str = "rouge_l",
    categories: Mapping[str, str] | None = None,
    families: Mapping[str, str] | None = None,
    training_examples: Mapping[str, int] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the content of eval/scores.json.

    Args:
        judged: What `score_examples` returned.
        asked: `eval.metric`.
        categories: Task -> category; tasks without one are left out of the categories.
        families: Task -> family: tasks of one family are one unit of the statistics.
        training_examples: Task -> number of training examples that were drawn.
        seed: Of the resampling.
    """
    sets = list(dict.fromkeys(j.set for j in judged))
    by_set = {name: _by_task([j for j in judged if j.set == name]) for name in sets}
    out: dict[str, Any] = {"format": FORMAT, "metric": asked, "sets": {}}
    if any(j.metric == "rouge_l_xlingual" for j in judged):
        out["xlingual_tokens"] = xlingual_tokens_title()
    p: dict[str, float] = {}
    for name, tasks in by_set.items():
        out["sets"][name] = _set_scores(tasks, categories or {}, families or {}, training_examples, seed)
        p |= {f"{name} {who}": c["p"] for who, c in out["sets"][name]["contrasts"].items()}
    for key, corrected in holm(p).items():
        name, _, who = key.partition(" ")
        out["sets"][name]["contrasts"][who]["p_holm"] = corrected
    if transfer := _transfer(by_set, families or {}, seed):
        out["transfer"] = transfer
    return out


def write_results(folder: Path, judged: Sequence[ScoredExample], result: Mapping[str, Any]) -> None:
    """Write generations.jsonl and scores.json (last, so that scores never stand without their evidence)."""
    lines = (json.dumps(asdict(j), ensure_ascii=False) + "\n" for j in judged)
    write_text(folder / "generations.jsonl", "".join(lines))
    write_checked(folder / "scores.json", finite(result))


def finite(value: Any) -> Any:
    """Return a value with null for what is not a number: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def _judge(
    name: str,
    e: Example,
    judge: str,
    said: Mapping[str, tuple[str, ...]],
    generation: Generation,
    loss: AnswerLoss | None,
) -> ScoredExample:
    judges = dict.fromkeys((judge, "exact_match", *(["rouge_l"] if judge == "exact_match" else [])))

    def mean(metric: str, candidates: tuple[str, ...]) -> float:
        wanted = e.checks if METRICS[metric].by_checks else e.answers
        found = [METRICS[metric].function(c, wanted) for c in candidates]
        return math.fsum(found) / len(found) if found else 0.0

    return ScoredExample(
        set=name,
        task=e.task,
        id=e.id,
        prompt=prompt_text(e),
        references=e.answers,
        metric=judge,
        answers={who: c[0] if c else "" for who, c in said.items()},
        scores={who: {m: mean(m, c) for m in judges} for who, c in said.items()},
        strict=bool(strict_exact_match(generation.prediction, e.answers)),
        stopped=generation.stopped,
        nats=loss.nats if loss else None,
        target_tokens=loss.tokens if loss else 0,
    )


def _by_task(judged: Iterable[ScoredExample]) -> dict[str, list[ScoredExample]]:
    out: dict[str, list[ScoredExample]] = {}
    for j in judged:
        out.setdefault(j.task, []).append(j)
    return dict(sorted(out.items()))


def _values(tasks: Mapping[str, Sequence[ScoredExample]], who: str) -> list[list[float]]:
    return [[j.scores[who][j.metric] for j in members] for members in tasks.values()]


def _set_scores(
    tasks: Mapping[str, Sequence[ScoredExample]],
    categories: Mapping[str, str],
    families: Mapping[str, str],
    training_examples: Mapping[str, int] | None,
    seed: int,
) -> dict[str, Any]:
    answerers = [who for who in ANSWERERS if all(who in j.scores for m in tasks.values() for j in m)]
    units = [families.get(t, t) for t in tasks]
    values = {who: _values(tasks, who) for who in answerers}
    found = {t: _task_scores(members, answerers, seed) for t, members in tasks.items()}
    for task, figures in found.items():
        if training_examples is not None:
            figures["training_examples"] = training_examples.get(task, 0)
        figures |= {
            k: known[task] for k, known in (("category", categories), ("family", families)) if task in known
        }
    macro: dict[str, Any] = {"tasks": len(tasks), "n": sum(map(len, tasks.values()))}
    intervals = {who: mean_interval(values[who], families=units, seed=seed) for who in answerers}
    macro |= {"units": intervals[MODEL].units, "few": intervals[MODEL].few}
    macro["score"] = {who: {"mean": i.mean, "low": i.low, "high": i.high} for who, i in intervals.items()}
    macro["metrics"] = {
        metric: {who: _mean(f["metrics"][metric][who] for f in found.values()) for who in answerers}
        for metric in METRICS
        if all(metric in f["metrics"] for f in found.values())
    }
    for key in ("strict_exact_match", "stopped", "loss"):
        if all(key in f for f in found.values()):
            macro[key] = _mean(f[key] for f in found.values())
    contrasts = {
        who: asdict(contrast(values[MODEL], values[who], families=units, seed=seed))
        for who in answerers
        if who != MODEL
    }
    return {
        "macro": macro,
        "contrasts": contrasts,
        "categories": _category_scores(found, answerers),
        "tasks": found,
    }


def _task_scores(members: Sequence[ScoredExample], answerers: Sequence[str], seed: int) -> dict[str, Any]:
    def mean(value: Callable[[ScoredExample], float]) -> float:
        return _mean(map(value, members))

    metric, n = members[0].metric, len(members)
    own = [j.scores[MODEL][metric] for j in members]
    if METRICS[metric].binary:
        low, high = wilson(sum(own), n)
    else:
        interval = mean_interval([own], seed=seed, draws=500)
        low, high = interval.low, interval.high
    shared = [m for m in METRICS if all(m in j.scores[MODEL] for j in members)]
    out: dict[str, Any] = {
        "n": n,
        "metric": metric,
        "score": {who: mean(lambda j, who=who: j.scores[who][metric]) for who in answerers},  # type: ignore[misc]
        "low": low,
        "high": high,
        "metrics": {
            m: {who: mean(lambda j, who=who, m=m: j.scores[who][m]) for who in answerers}  # type: ignore[misc]
            for m in shared
        },
        "strict_exact_match": mean(lambda j: float(j.strict)),
        "stopped": mean(lambda j: float(j.stopped)),
    }
    if BASE in answerers:
        pair = contrast([own], [[j.scores[BASE][metric] for j in members]], seed=seed, draws=500)
        out["gain_over_base"] = {"difference": pair.difference, "low": pair.low, "high": pair.high}
    if all(j.nats is not None for j in members) and (tokens := sum(j.target_tokens for j in members)):
        out["loss"] = math.fsum(j.nats or 0.0 for j in members) / tokens
    labels = sorted({normalise(j.references[0]) for j in members})
    if metric in ("accuracy", "exact_match") and 1 < len(labels) <= min(MAX_LABELS, n // 3):
        out["confusion"] = _confusion(members, labels)
    return out


def _confusion(members: Sequence[ScoredExample], labels: Sequence[str]) -> dict[str, Any]:
    """Return label -> [times that each label was answered, times that something else was]."""
    counts = {label: [0] * (len(labels) + 1) for label in labels}
    for j in members:
        said = normalise(j.answers[MODEL])
        counts[normalise(j.references[0])][labels.index(said) if said in labels else len(labels)] += 1
    return {"labels": list(labels), "counts": counts}


def _category_scores(found: Mapping[str, Mapping[str, Any]], answerers: Sequence[str]) -> dict[str, Any]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for figures in found.values():
        if "category" in figures:
            grouped.setdefault(figures["category"], []).append(figures)
    return {
        category: {
            "tasks": len(members),
            "n": sum(m["n"] for m in members),
            "score": {who: _mean(m["score"][who] for m in members) for who in answerers},
        }
        for category, members in sorted(grouped.items())
    }


def _transfer(
    by_set: Mapping[str, Mapping[str, Sequence[ScoredExample]]], families: Mapping[str, str], seed: int
) -> dict[str, Any]:
    """Return the lift over the base model in each set, and the ratio of the lift on far held-out tasks to that on trained ones."""
    draws, lifts = {}, {}
    for name, tasks in by_set.items():
        if not all(BASE in j.scores for members in tasks.values() for j in members):
            return {}
        pairs = zip(_values(tasks, MODEL), _values(tasks, BASE), strict=True)
        groups = [np.subtract(a, b) for a, b in pairs]
        codes = unit_codes([families.get(t, t) for t in tasks])
        draws[name] = bootstrap_means(groups, codes, seed=seed, draws=2000)
        low, high = percentiles(draws[name])
        lifts[name] = {"difference": _mean(float(g.mean()) for g in groups), "low": low, "high": high}
    out: dict[str, Any] = {"lift": lifts}
    for name, means in draws.items():
        if name != "seen" and "seen" in draws and lifts["seen"]["low"] > 0:
            low, high = percentiles(means / draws["seen"][::-1])
            ratio = lifts[name]["difference"] / lifts["seen"]["difference"]
            out.setdefault("ratio", {})[name] = {"ratio": ratio, "low": low, "high": high}
    return out


def _mean(values: Iterable[float]) -> float:
    members = list(values)
    return math.fsum(members) / len(members)
