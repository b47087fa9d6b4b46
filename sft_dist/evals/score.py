"""Predictions and baselines -> eval/generations.jsonl and eval/scores.json. The metrics of Super-NaturalInstructions.

As compute_metrics.py of Tk-Instruct does (Wang et al., 2022): exact match after lowering, removing ASCII
punctuation and collapsing spaces (articles stay); ROUGE-L F1 with stemming on the text as it is; both take the
best of all references. All scores are shares, 0 to 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.files import write_json, write_text
from sft_dist.core.records import Example
from sft_dist.core.sets import SetName
from sft_dist.evals.baselines import Baselines
from sft_dist.evals.metrics import exact_match, rouge_l, strict_exact_match
from sft_dist.evals.splits import AnswerLoss, Generation, ScoredExample, prompt_text, user_text

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


def score_examples(
    sets: Mapping[SetName, Sequence[Example]],
    generations: Mapping[str, Generation],
    baselines: Baselines,
    base: Mapping[str, Generation] | None = None,
) -> list[ScoredExample]:
    """Judge every evaluated example.

    Args:
        sets: The evaluated examples.
        generations: The model's answers, by id of the example.
        baselines: Over the training pairs.
        base: The answers of the model that training started from, if it was evaluated.

    Raises:
        UserError: When an example has no generation.
    """
    missing = [e.id for examples in sets.values() for e in examples if e.id not in generations]
    if missing:
        raise UserError(
            f"{len(missing)} evaluation examples have no generation (the first is {missing[0]}), so scores would cover "
            "a part only; run `sft-dist evaluate` again, it generates just the missing ones"
        )
    return [
        _judge_one(name, e, generations[e.id], baselines, base[e.id] if base else None)
        for name, examples in sets.items()
        for e in examples
    ]


def scores(
    judged: Sequence[ScoredExample],
    *,
    categories: Mapping[str, str] | None = None,
    losses: Mapping[str, AnswerLoss] | None = None,
    training_examples: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the content of eval/scores.json: set -> tasks, categories, macro.

    A task's figures are means over its examples, a category's and the macro figures means over tasks: every task
    counts the same, however many examples it has. `exact_match_se` and `rouge_l_se` of the macro are the standard
    errors from drawing the examples of each task.

    Args:
        judged: What `judge` returned.
        categories: Task -> category; tasks without one are left out of the categories.
        losses: By id of the example; adds `loss`, the mean nats per answer token.
        training_examples: Task -> number of training examples; adds `training_examples`.
    """
    out: dict[str, Any] = {}
    for name in dict.fromkeys(j.set for j in judged):
        by_task: dict[str, list[ScoredExample]] = {}
        for j in judged:
            if j.set == name:
                by_task.setdefault(j.task, []).append(j)
        tasks = {t: _task_scores(members, losses) for t, members in sorted(by_task.items())}
        for task, figures in tasks.items():
            if training_examples is not None:
                figures["training_examples"] = training_examples.get(task, 0)
            if categories and task in categories:
                figures["category"] = categories[task]
        grouped: dict[str, list[dict[str, Any]]] = {}
        for figures in tasks.values():
            if "category" in figures:
                grouped.setdefault(figures["category"], []).append(figures)
        macro = _mean_of(tasks.values())
        for metric in ("exact_match", "rouge_l"):
            macro[f"{metric}_se"] = _macro_standard_error(
                [[float(getattr(j, metric)) for j in m] for m in by_task.values()]
            )
        out[name] = {
            "macro": macro,
            "categories": {
                c: {
                    "headline": "exact_match" if c in CLASSIFICATION_CATEGORIES else "rouge_l",
                    **_mean_of(members),
                }
                for c, members in sorted(grouped.items())
            },
            "tasks": tasks,
        }
    return out


def write_results(folder: Path, judged: Sequence[ScoredExample], result: Mapping[str, Any]) -> None:
    """Write generations.jsonl and scores.json (last, so that scores never stand without their evidence)."""
    lines = (json.dumps(asdict(j), ensure_ascii=False) + "\n" for j in judged)
    write_text(folder / "generations.jsonl", "".join(lines))
    write_json(folder / "scores.json", result)


def _judge_one(
    name: SetName, e: Example, said: Generation, baselines: Baselines, base: Generation | None
) -> ScoredExample:
    majority = baselines.majority(e.task)
    nearest = baselines.nearest(e.task, user_text(e))
    return ScoredExample(
        set=name,
        task=e.task,
        id=e.id,
        prompt=prompt_text(e),
        references=e.answers,
        prediction=said.prediction,
        exact_match=bool(exact_match(said.prediction, e.answers)),
        strict_exact_match=bool(strict_exact_match(said.prediction, e.answers)),
        rouge_l=rouge_l(said.prediction, e.answers),
        stopped=said.stopped,
        majority_answer=majority,
        nearest_answer=nearest,
        majority_em=bool(exact_match(majority, e.answers)),
        nearest_em=bool(exact_match(nearest, e.answers)),
        majority_rouge_l=rouge_l(majority, e.answers),
        nearest_rouge_l=rouge_l(nearest, e.answers),
        base_answer=base.prediction if base else None,
        base_em=bool(exact_match(base.prediction, e.answers)) if base else None,
        base_rouge_l=rouge_l(base.prediction, e.answers) if base else None,
    )


def _task_scores(members: Sequence[ScoredExample], losses: Mapping[str, AnswerLoss] | None) -> dict[str, Any]:
    def mean(value: Callable[[ScoredExample], Any]) -> float:
        return math.fsum(float(value(j)) for j in members) / len(members)

    out: dict[str, Any] = {
        "n": len(members),
        "exact_match": mean(lambda j: j.exact_match),
        "strict_exact_match": mean(lambda j: j.strict_exact_match),
        "rouge_l": mean(lambda j: j.rouge_l),
        "stopped": mean(lambda j: j.stopped),
        "majority": {
            "exact_match": mean(lambda j: j.majority_em),
            "rouge_l": mean(lambda j: j.majority_rouge_l),
        },
        "nearest": {
            "exact_match": mean(lambda j: j.nearest_em),
            "rouge_l": mean(lambda j: j.nearest_rouge_l),
        },
    }
    if all(j.base_answer is not None for j in members):
        out["base"] = {"exact_match": mean(lambda j: j.base_em), "rouge_l": mean(lambda j: j.base_rouge_l)}
    if losses is not None and (known := [losses[j.id] for j in members if j.id in losses]):
        out["loss"] = math.fsum(x.nats for x in known) / max(1, sum(x.tokens for x in known))
    return out


def _mean_of(tasks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the unweighted mean of every figure that all tasks have, and the sums of n and of tasks."""
    members = list(tasks)
    out: dict[str, Any] = {"tasks": len(members), "n": sum(m["n"] for m in members)}
    for key in ("exact_match", "strict_exact_match", "rouge_l", "stopped", "loss"):
        if all(key in m for m in members):
            out[key] = math.fsum(m[key] for m in members) / len(members)
    for baseline in ("majority", "nearest", "base"):
        if all(baseline in m for m in members):
            out[baseline] = {
                metric: math.fsum(m[baseline][metric] for m in members) / len(members)
                for metric in ("exact_match", "rouge_l")
            }
    return out


def _macro_standard_error(values_by_task: Sequence[Sequence[float]]) -> float:
    """Return the standard error of the mean of task means, each from its own examples (unbiased variance)."""
    variance = 0.0
    for values in values_by_task:
        n = len(values)
        if n > 1:
            mean = math.fsum(values) / n
            variance += math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n
    return math.sqrt(variance) / len(values_by_task)
