"""Examples whose answer is one of several -> the answer that a model finds most likely: choice by likelihood (rank classification).

After T0 (Sanh et al. 2021, 2110.08207): the candidate with the largest total log-likelihood, end of turn included; lengths are
not divided out. What the model would write by itself plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sft_dist.core.errors import UserError
from sft_dist.core.records import Example, make_example
from sft_dist.evals.score import judge_of
from sft_dist.evals.splits import AnswerLoss, Generation, up_to_answer

CHOICE = "choice"


def offered(
    sets: Mapping[str, Sequence[Example]],
    *,
    metric: str,
    told: Mapping[str, str],
    categories: Mapping[str, str],
) -> dict[str, list[Example]]:
    """Return id -> a copy of the example for each choice, of the examples that are judged by choice.

    Args:
        sets: The evaluated examples.
        metric: `eval.metric`.
        told: Task -> metric that its source names.
        categories: Task -> category.

    Raises:
        UserError: `choice` is asked for, and a task offers none.
    """
    out: dict[str, list[Example]] = {}
    for examples in sets.values():
        by_task: dict[str, list[Example]] = {}
        for e in examples:
            by_task.setdefault(e.task, []).append(e)
        for task, members in by_task.items():
            if judge_of(task, members, metric, told, categories) != CHOICE:
                continue
            if not all(e.choices for e in members):
                raise UserError(
                    f"eval.metric=choice picks the most likely of the answers that a record offers, and {task} offers none, so it would "
                    "have no score; use eval.metric=auto, which takes choice where there is one"
                )
            out |= {e.id: [with_answer(e, c) for c in e.choices] for e in members}
    return out


def with_answer(example: Example, answer: str) -> Example:
    """Return the example up to its last answer, with another answer."""
    e = up_to_answer(example)
    return make_example(
        task=e.task,
        source=e.source,
        messages=(*e.messages[:-1], replace(e.messages[-1], content=answer, reasoning_content=None)),
        tools=e.tools,
        template_kwargs=e.template_kwargs,
        input_start=e.input_start,
    )


def picked(
    candidates: Mapping[str, Sequence[Example]], losses: Mapping[str, AnswerLoss]
) -> dict[str, Generation]:
    """Return id -> the most likely choice as an answer; of equal ones the first. One that cannot be rendered is never picked."""
    out = {}
    for example, copies in candidates.items():
        able = [c for c in copies if losses[c.id].tokens]
        best = min(able, key=lambda c: losses[c.id].nats, default=None)
        said = best.messages[-1].content if best else ""
        out[example] = Generation(id=example, prediction=said, stopped=True, tokens=0)
    return out
