"""Answers of the teacher -> those that pass verifiers: what a record holds, the checks that it names, or what the set asks of all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft_dist.construct.stage import Outcome
from sft_dist.core.records import Drop, Example
from sft_dist.verifiers.table import VERIFIERS, Options, broken, read_check


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """How answers are verified, and how many are asked for.

    Attributes:
        verifiers: Verifier -> its options, of every answer. The checks that an example names come beside them.
        samples: Answers that are asked for, at most, until enough pass.
        keep: Different answers of a prompt that are kept, at most.
        references: Id of an example -> what verifiers compare with; None: the example's own answers.
        reference_field: Where those references come from, for the key of the journal.
    """

    verifiers: Mapping[str, Options] = field(default_factory=dict)
    samples: int = 1
    keep: int = 1
    references: Mapping[str, Sequence[str]] | None = None
    reference_field: str | None = None

    def key(self) -> dict[str, Any]:
        """Return what decides the outcome, for the key of a journal."""
        return {
            "verify": {name: dict(options) for name, options in self.verifiers.items()},
            "samples": self.samples,
            "keep": self.keep,
            "reference_field": self.reference_field,
        }

    def of(self, example: Example) -> Sequence[str]:
        """Return what the answers of an example are compared with."""
        if self.references is not None:
            return self.references.get(example.id, ())
        return () if example.is_prompt else example.answers

    def missing(self, example: Example) -> Drop | None:
        """Return why an example cannot be verified, before anything is bought for it."""
        needs = [name for name in self.verifiers if VERIFIERS[name].needs_reference]
        if needs and not any(r.strip() for r in self.of(example)):
            where = f"field {self.reference_field!r}" if self.reference_field else "answer"
            return Drop("no_reference", f"{needs[0]} compares with the record's {where}, which is missing")
        return None

    def verify(self) -> Callable[[Example, Outcome], Awaitable[Drop | None]]:
        """Return the function that a stage verifies [answer, reasoning] by; as many side by side as there are cores."""
        places = asyncio.Semaphore(os.cpu_count() or 1)

        async def run(example: Example, outcome: Outcome) -> Drop | None:
            checks = [*self.verifiers.items(), *map(read_check, example.checks)]
            async with places:
                why = await asyncio.to_thread(_first_broken, outcome[0], checks, self.of(example))
            return None if why is None else Drop("unverified", why)

        return run


def _first_broken(
    answer: str, checks: Sequence[tuple[str, Options]], references: Sequence[str]
) -> str | None:
    for name, options in checks:
        if why := broken(answer, name, options, references):
            return f"{name}: {why}"
    return None
