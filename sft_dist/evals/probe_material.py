"""What probes are made from and answer with, and the statistics that they share: means over tasks, drawn by families.

In: evaluated and trained examples, answers and losses of a model. Out: figures of scores.json. `evals/probes.py` has the probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.records import Example, Message, Phrasing, make_example, single_turn
from sft_dist.core.rng import derive
from sft_dist.evals.metrics import exact_match
from sft_dist.evals.splits import AnswerLoss, Continuation, Generation, Kind
from sft_dist.evals.statistics import (
    FEW_UNITS,
    Contrast,
    contrast,
    gap,
    mean_interval,
    resampled,
    wilson,
)

GENERAL = (
    "The river rises in the hills, crosses a wide plain and reaches the sea near an old harbour town.",
    "Bread is made from flour, water, salt and yeast; the dough rests for some hours before it is baked.",
    "A year has four seasons, and in many countries the days are longest in June and shortest in December.",
    "The committee met on Tuesday to discuss the budget, but no decision was reached before the evening.",
    "Plants take up carbon dioxide from the air and water from the soil, and release oxygen in the light.",
    "She had left the letter on the kitchen table, where her brother found it the next morning.",
    "To open the file, choose it from the menu and enter the password that was sent to you by mail.",
    "Prices rose by two percent last year, mostly because of higher costs for energy and transport.",
    "The museum shows paintings from three centuries, among them several portraits of unknown sailors.",
    "If the train is late, the ticket stays valid for the next one, and the fare is not charged again.",
    "Iron rusts when it is exposed to air and moisture; a coat of paint keeps the metal from the water.",
    "The children built a small boat out of wood and sailed it across the pond behind the school.",
)
"""General text for the probe of forgetting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What probes are made from.

    Attributes:
        sets: The evaluated examples, a few of each task.
        trained: Task -> examples that were trained on.
        phrasings: Task -> wordings that no example has.
        contrasts: Id of an example of a held-out task -> (trained sibling, what it answers to the same input).
        families: Task -> family: tasks of one family are one unit of every interval.
        texts: General texts.
        seed: Of the draws.
    """

    sets: Mapping[str, Sequence[Example]]
    trained: Mapping[str, Sequence[Example]] = field(default_factory=dict)
    phrasings: Mapping[str, Sequence[str]] = field(default_factory=dict)
    contrasts: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    families: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[str] = GENERAL
    seed: int = 0

    @property
    def originals(self) -> list[Example]:
        """The evaluated examples that have an INPUT, so that their instruction can be changed."""
        return [e for examples in self.sets.values() for e in examples if e.input]

    def units(self, tasks: Iterable[str]) -> list[str]:
        """Return the unit of each task: its family, or itself."""
        return [self.families.get(t, t) for t in tasks]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What model or base said and lost, and how it went on from the first half of an answer, by id of the example."""

    generations: Mapping[str, Generation]
    losses: Mapping[str, AnswerLoss]
    continuations: Mapping[str, Continuation] = field(default_factory=dict)


Variants = dict[str, dict[str, list[Example]]]
"""Name of a variant -> id of the original -> its changed copies."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe.

    Attributes:
        title: Of its panel.
        definition: One sentence: what is changed and what is compared.
        variants: What is asked beyond the evaluated examples.
        needs: Kind of work that its variants need.
        judge: (material, variants, model, base) -> figures; empty when there is nothing to judge.
    """

    title: str
    definition: str
    variants: Callable[[Material], Variants]
    needs: Kind
    judge: Callable[[Material, Variants, Answers, Answers | None], dict[str, Any]]


def with_instruction(e: Example, instruction: str) -> Example:
    """Return the example under another instruction; "" leaves its INPUT alone."""
    at = next(i for i, message in enumerate(e.messages) if message.role == "user")
    parts = [t for t in (instruction, e.input) if t]
    changed: Message = replace(e.messages[at], content="\n\n".join(parts))
    return make_example(
        task=e.task,
        source=e.source,
        messages=(*e.messages[:at], changed, *e.messages[at + 1 :]),
        tools=e.tools,
        template_kwargs=e.template_kwargs,
        references=e.references,
        origin=(*e.origin, e.id),
        input_start=len(instruction) + 2 if instruction and e.input else None,
    )


def with_phrasing(e: Example, phrasing: Phrasing) -> Example:
    """Return a single-turn example under another wording, which may have an answer of its own."""
    own = phrasing.answer == e.output
    return make_example(
        task=e.task,
        source=e.source,
        messages=(
            *(m for m in e.messages if m.role == "system"),
            Message(role="user", content=phrasing.prompt),
            Message(role="assistant", content=phrasing.answer),
        ),
        references=e.references if own else (),
        origin=(*e.origin, e.id),
    )


def few_of(examples: Sequence[Example], per_task: int, seed: int) -> list[Example]:
    """Return at most `per_task` examples of each task, by hash."""
    ranked = sorted(examples, key=lambda e: derive(seed, "probe", e.id))
    taken: dict[str, int] = {}
    kept = set()
    for e in ranked:
        if taken.get(e.task, 0) < per_task:
            taken[e.task] = taken.get(e.task, 0) + 1
            kept.add(e.id)
    return [e for e in examples if e.id in kept]


def asked(text: str, answer: str = "-") -> Example:
    """Return a prompt of a probe's own."""
    return single_turn(task="probe", source="probe", instruction=text, output=answer)


def by_task(examples: Iterable[Example]) -> dict[str, list[Example]]:
    """Return task -> its examples, in the order of the names."""
    out: dict[str, list[Example]] = {}
    for e in examples:
        out.setdefault(e.task, []).append(e)
    return dict(sorted(out.items()))


def right(answers: Answers, said: str, e: Example) -> float:
    """Return 1 when the answer with the id `said` is right for `e`."""
    return exact_match(answers.generations[said].prediction, e.answers)


def per_token(answers: Answers, example: str) -> float:
    """Return the loss of an example in nats a token."""
    loss = answers.losses[example]
    return loss.nats / max(1, loss.tokens)


def interval(values: Mapping[str, Sequence[float]], m: Material) -> dict[str, float]:
    """Return the mean over tasks with its interval over units.

    Args:
        values: Task -> values of its items.
        m: Says which tasks are one unit.
    """
    i = mean_interval(list(values.values()), families=m.units(values), seed=m.seed)
    return {"mean": i.mean, "low": i.low, "high": i.high, "tasks": len(values), "units": i.units}


def paired(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], m: Material
) -> Contrast:
    """Return the difference `first` minus `second` on the same items of the same tasks."""
    other = [second[t] for t in first]
    return contrast(list(first.values()), other, families=m.units(first), seed=m.seed)


def apart(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], m: Material
) -> Contrast:
    """Return the difference `first` minus `second` on different items of the same tasks."""
    other = [second[t] for t in first]
    return gap(list(first.values()), other, families=m.units(first), seed=m.seed)


def shares(rows: Mapping[str, NDArray[np.float64]], m: Material) -> dict[str, dict[str, float] | int]:
    """Return compliance, memory, rest and superficiality K / (C + K) with intervals.

    Args:
        rows: Task -> [items, 3]: whether an item is (C, K, rest).
        m: Says which tasks are one unit.
    """
    units = m.units(rows)
    found: dict[str, Any] = {"tasks": len(rows), "units": len(set(units))}
    for column, name in enumerate(("compliance", "memory", "rest")):
        i = mean_interval([r[:, column].tolist() for r in rows.values()], families=units, seed=m.seed)
        found[name] = {"mean": i.mean, "low": i.low, "high": i.high}
    s, low, high = resampled(
        list(rows.values()), lambda x: x[:, 1] / (x[:, 0] + x[:, 1]), families=units, seed=m.seed
    )
    return {**found, "superficiality": {"mean": s, "low": low, "high": high}}


def difference(c: Contrast) -> dict[str, float]:
    """Return the fields of a difference that scores.json has."""
    return {"difference": c.difference, "low": c.low, "high": c.high, "p": c.p, "units": c.units}


def gap_figure(c: Contrast) -> dict[str, float]:
    """Return the fields of a gap between two samples that scores.json has."""
    return {"mean": c.difference, "low": c.low, "high": c.high, "units": c.units}


def share(held: Sequence[bool]) -> dict[str, float]:
    """Return a share of single items with Wilson's interval."""
    low, high = wilson(sum(held), len(held))
    return {"mean": sum(held) / len(held) if held else math.nan, "low": low, "high": high, "n": len(held)}


def ends(found: Mapping[str, Any], scale: int = 100, digits: int = 0) -> str:
    """Return " [low, high]" of an interval."""
    low, high = (scale * found[k] for k in ("low", "high"))
    return f" [{low:.{digits}f}, {high:.{digits}f}]"


def few(units: float) -> str:
    """Return the sentence of too few units; empty where they are enough."""
    return " Too few tasks for a general claim." if units < FEW_UNITS else ""
