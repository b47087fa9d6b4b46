"""Prompts that exist + constraints that a program can check -> controllability data (after IFEval, arXiv 2311.07911).

Each prompt gets constraints of different aspects, drawn by seed, behind its instruction; an answer is kept where all hold, and the
example names them as `checks`, so that the evaluation judges by the same table. Its task is the set's name and the first constraint's:
a kind of constraint can be held out, and then takes examples that have it beside another with it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from sft_dist.construct.seed_examples import is_single_turn
from sft_dist.core.records import Example, Message, make_example
from sft_dist.core.rng import derive
from sft_dist.holdout import descend
from sft_dist.verifiers.table import CONSTRAINTS, VERIFIERS, check_of


def constrained(
    examples: Callable[[], Iterable[Example]], *, name: str, kinds: Sequence[str], most: int, seed: int
) -> Callable[[], Iterator[Example]]:
    """Return a function that yields a prompt with constraints for each single-turn example, the same in every call.

    Args:
        examples: Yields training examples and prompts.
        name: Of the set.
        kinds: Constraints that are drawn; empty: all.
        most: Of one prompt; their number is drawn.
        seed: Of the draws.
    """

    def prompts() -> Iterator[Example]:
        for example in examples():
            if is_single_turn(example):
                yield _with_constraints(example, name, kinds or CONSTRAINTS, most, seed)

    return prompts


def _with_constraints(example: Example, name: str, kinds: Sequence[str], most: int, seed: int) -> Example:
    chance = random.Random(derive(seed, "constraints", name, example.id))
    drawn: list[str] = []
    for kind in chance.sample(list(kinds), len(kinds)):
        if VERIFIERS[kind].aspect not in {VERIFIERS[d].aspect for d in drawn}:
            drawn.append(kind)
    wordings, checks = [], []
    for kind in drawn[: chance.randint(1, most)]:
        verifier, options = VERIFIERS[kind], chance.choice(VERIFIERS[kind].draws)
        assert verifier.wording is not None
        wordings.append(verifier.wording(options))
        checks.append(check_of(kind, options))
    user = next(m.content for m in example.messages if m.role == "user").rstrip()
    others = tuple(f"task:{name}/{kind}" for kind in drawn[1 : len(checks)])
    return make_example(
        task=f"{name}/{drawn[0]}",
        source=name,
        messages=(
            *(m for m in example.messages if m.role == "system"),
            Message(role="user", content=f"{user}\n\n{' '.join(wordings)}"),
        ),
        origin=(*descend([example]), *others),
        question=user,
        checks=tuple(checks),
    )
