"""Does the instruction matter? The same input under another task's instruction, and under none.

A model that follows instructions loses nearly all of its exact match when the instruction is swapped or removed;
one that guesses the task from the shape of the input keeps it. Optional: it generates twice more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from sft_dist.core.records import Example, Message, make_example
from sft_dist.core.rng import generator
from sft_dist.evals.metrics import exact_match
from sft_dist.evals.splits import AnswerLoss, Generation

Probe: TypeAlias = Callable[[Example, Sequence[Example], np.random.Generator], Example | None]


def without_instruction(e: Example, _: Sequence[Example], __: np.random.Generator) -> Example | None:
    """Return the example with its INPUT alone; None when it has no INPUT."""
    return _with_first_user(e, e.input, None) if e.input else None


def other_instruction(e: Example, others: Sequence[Example], rng: np.random.Generator) -> Example | None:
    """Return the example under the instruction of an example of another task; None when there is no other."""
    foreign = [o for o in others if o.task != e.task and o.instruction]
    if not e.input or not foreign:
        return None
    instruction = foreign[int(rng.integers(len(foreign)))].instruction
    return _with_first_user(e, f"{instruction}\n\n{e.input}", len(instruction) + 2)


PROBES: dict[str, Probe] = {
    "without_instruction": without_instruction,
    "other_instruction": other_instruction,
}


def probed(
    examples: Sequence[Example], *, seed: int, max_per_task: int = 10
) -> dict[str, dict[str, Example]]:
    """Return probe -> id of the original -> its variant, for at most `max_per_task` examples of each task."""
    taken: dict[str, int] = {}
    originals = []
    for e in examples:
        if e.input and taken.get(e.task, 0) < max_per_task:
            taken[e.task] = taken.get(e.task, 0) + 1
            originals.append(e)
    out: dict[str, dict[str, Example]] = {}
    for name, make in PROBES.items():
        variants = {e.id: make(e, originals, generator(seed, "probe", name, e.id)) for e in originals}
        out[name] = {i: v for i, v in variants.items() if v is not None}
    return out


def sensitivity(
    variants: Mapping[str, Mapping[str, Example]],
    generations: Mapping[str, Generation],
    losses: Mapping[str, AnswerLoss] | None = None,
) -> dict[str, dict[str, float]]:
    """Return probe -> n, exact match as asked and as probed (and the loss per answer token likewise).

    Args:
        variants: From `probed`.
        generations: Answers to originals and variants, by id.
        losses: Answer losses of both, by id.
    """
    out: dict[str, dict[str, float]] = {}
    for name, pairs in variants.items():
        if not pairs:
            continue
        hits = [
            (
                exact_match(generations[i].prediction, v.answers),
                exact_match(generations[v.id].prediction, v.answers),
            )
            for i, v in pairs.items()
        ]
        out[name] = {
            "n": len(hits),
            "exact_match": sum(a for a, _ in hits) / len(hits),
            "exact_match_probed": sum(b for _, b in hits) / len(hits),
        }
        if losses is not None:
            out[name]["loss"] = _mean_loss([losses[i] for i in pairs])
            out[name]["loss_probed"] = _mean_loss([losses[v.id] for v in pairs.values()])
    return out


def _mean_loss(losses: Sequence[AnswerLoss]) -> float:
    return math.fsum(x.nats for x in losses) / max(1, sum(x.tokens for x in losses))


def _with_first_user(e: Example, content: str, input_start: int | None) -> Example:
    at = next(i for i, m in enumerate(e.messages) if m.role == "user")
    changed: Message = replace(e.messages[at], content=content)
    return make_example(
        task=e.task,
        source=e.source,
        messages=(*e.messages[:at], changed, *e.messages[at + 1 :]),
        tools=e.tools,
        template_kwargs=e.template_kwargs,
        references=e.references,
        origin=(*e.origin, e.id),
        input_start=input_start,
    )
