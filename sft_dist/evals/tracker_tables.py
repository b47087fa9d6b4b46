"""Scores and judged examples -> the figures and tables that boards (W&B, TensorBoard) get of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sft_dist.evals.score import ANSWERERS, BASE, MODEL, ScoredExample

SAMPLES_PER_TASK = 2
CHARACTERS = 1000  # of a text in a table


def figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the macro scores of every set and answerer with their intervals, and what the model gains over each.

    Args:
        result: scores.json.
    """
    out: dict[str, float] = {}
    for name, found in result["sets"].items():
        for who, i in found["macro"]["score"].items():
            out |= {
                f"eval_{name}/{who}{end}": i[key]
                for key, end in (("mean", ""), ("low", "_low"), ("high", "_high"))
            }
        for who, c in found["contrasts"].items():
            ends = (("difference", ""), ("low", "_low"), ("high", "_high"))
            out |= {f"eval_{name}/less_{who}{end}": c[key] for key, end in ends}
    return {k: v for k, v in out.items() if v is not None}


def tables(
    result: Mapping[str, Any], judged: Sequence[ScoredExample]
) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return the table of tasks, and a few answers of each task: model, base and references side by side."""
    present = [who for who in ANSWERERS if any(who in f["macro"]["score"] for f in result["sets"].values())]
    tasks = [
        [name, task, f["metric"], f["n"], f["low"], f["high"], *(f["score"].get(who) for who in present)]
        for name, found in result["sets"].items()
        for task, f in found["tasks"].items()
    ]
    taken: dict[tuple[str, str], int] = {}
    samples = []
    for j in judged:
        key = (j.set, j.task)
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= SAMPLES_PER_TASK:
            texts = (j.prompt, " / ".join(j.references), j.answers[MODEL], j.answers.get(BASE, ""))
            samples.append([j.set, j.task, *(t[:CHARACTERS] for t in texts), j.scores[MODEL][j.metric]])
    return {
        "eval_tasks": (["set", "task", "metric", "examples", "low", "high", *present], tasks),
        "eval_samples": (["set", "task", "prompt", "right", "model", "base", "score"], samples),
    }
