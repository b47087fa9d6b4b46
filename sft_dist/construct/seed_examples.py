"""Training examples -> the instructions that generation starts from. What is held out is refused here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example
from sft_dist.holdout import Holdout, descend, split

MOST_INSTANCES = 5  # of one instruction


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedExample:
    """An instruction that a person wrote.

    Attributes:
        instruction: INSTRUCTION.
        instances: (INPUT or "", OUTPUT) of some examples that ask it; none of a prompt.
        is_classification: Whether its answers are labels; None when nobody said.
        origin: `holdout.descend` of those examples: what everything made from the seed derives from.
    """

    instruction: str
    instances: tuple[tuple[str, str], ...]
    is_classification: bool | None
    origin: tuple[str, ...]


def training_only(examples: Iterable[Example], holdout: Holdout) -> Iterator[Example]:
    """Yield the examples.

    Raises:
        UserError: At the first that is not on the training side: nothing may be made from it.
    """
    for example in examples:
        side = split(example, holdout)
        if side != "train":
            why = side.detail if isinstance(side, Drop) else "it is an evaluation example"
            raise UserError(
                f"example {example.id} of task {example.task} must not be used to make training data ({why}), because what is made "
                "from it would leak the evaluation into training; give training examples only"
            )
        yield example


def group_seeds(
    examples: Iterable[Example],
    holdout: Holdout,
    *,
    labels: Mapping[str, bool] | None = None,
    most: int | None = None,
) -> list[SeedExample]:
    """Return the distinct instructions of examples, in the order of their first occurrence.

    Args:
        examples: Training examples and prompts; those of several turns are left out.
        holdout: The decision; see `training_only`.
        labels: Instruction -> whether it is a classification, where that is known.
        most: Instructions, at most; the first ones.

    Raises:
        UserError: When an example is held out, or none is left.
    """
    groups: dict[str, list[Example]] = {}
    for example in training_only(examples, holdout):
        instruction = " ".join(example.instruction.split())
        if not is_single_turn(example) or not instruction:
            continue
        if instruction not in groups and most is not None and len(groups) >= most:
            continue
        group = groups.setdefault(instruction, [])
        if len(group) < MOST_INSTANCES:
            group.append(example)
    if not groups:
        raise UserError(
            "the seeds hold no single-turn training example or prompt, so there is nothing to start from; look at construct's `seeds`"
        )
    return [
        SeedExample(
            instruction=instruction,
            instances=tuple((e.input, e.output) for e in group if not e.is_prompt),
            is_classification=(labels or {}).get(instruction),
            origin=descend(group),
        )
        for instruction, group in groups.items()
    ]


def is_single_turn(example: Example) -> bool:
    """Return whether a user asks once, without tools, and is answered at most once."""
    turns = [m.role for m in example.messages if m.role != "system"]
    return turns in (["user"], ["user", "assistant"]) and not example.tools


def seeds_fingerprint(seeds: Iterable[SeedExample]) -> str:
    """Return 32 hex digits over the seeds."""
    return fingerprint([[s.instruction, s.instances, s.is_classification, s.origin] for s in seeds])


def joint_origin(seeds: list[SeedExample], members: int) -> tuple[str, ...]:
    """Return the origin of what descends from a set of seeds.

    Args:
        seeds: All seeds.
        members: The set, as bits: bit i is seed i.
    """
    chosen = (seeds[i].origin for i in range(members.bit_length()) if members >> i & 1)
    return tuple(dict.fromkeys(name for origin in chosen for name in origin))


def bits(numbers: Iterable[int]) -> int:
    """Return a set of numbers as bits."""
    out = 0
    for number in numbers:
        out |= 1 << number
    return out


def shots(seeds: list[SeedExample], *, classification: bool | None, most: int, most_chars: int) -> list[int]:
    """Return the numbers of the first seeds that serve as demonstrations: short ones of the wanted kind, with an answer."""
    fitting = (
        i
        for i, s in enumerate(seeds)
        if s.is_classification == classification
        and any(output.strip() for _, output in s.instances)
        and len(s.instruction) + sum(len(a) + len(b) for a, b in s.instances[:1]) <= most_chars
    )
    return list(islice(fitting, most))
