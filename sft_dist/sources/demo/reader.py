"""The demo source: the same examples for the same seed, on any machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import xxhash

from sft_dist.core.errors import UserError
from sft_dist.core.records import Example, single_turn
from sft_dist.core.rng import derive
from sft_dist.sources.demo.tasks import DEMO_FAR, DEMO_NEAR, TASKS, Task

# Raise it whenever the examples of a seed change: it is part of the fingerprint, so stores are rebuilt.
GENERATOR_VERSION = 4

DEMO_HELD_OUT = (*DEMO_NEAR, *DEMO_FAR)
"""Held out entirely by conf/experiment/demo.yaml."""

_MAX_REPEATS = 1000


class DemoReader:
    """Generates `examples_per_task` single-turn examples of every task, tasks taking turns.

    No two examples have the same input, whatever their tasks, so any split by input separates them.

    Args:
        name: Name of the source in the config.
        examples_per_task: Examples of each task.
        seed: Another seed gives other examples of the same tasks.
    """

    def __init__(self, name: str, *, examples_per_task: int, seed: int) -> None:
        self.name = name
        self.share = 1.0
        self.skipped: dict[str, dict[str, int]] = {}
        self.examples_per_task = examples_per_task
        self.seed = seed

    def smaller(self, examples: int) -> DemoReader:
        """Return a source of the first of these examples, about so many, as many of each task."""
        each = max(1, min(self.examples_per_task, examples // len(TASKS)))
        out = DemoReader(self.name, examples_per_task=each, seed=self.seed)
        out.share = each / self.examples_per_task
        return out

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the generator's version and the options."""
        text = f"demo\x1f{GENERATOR_VERSION}\x1f{self.examples_per_task}\x1f{self.seed}"
        return xxhash.xxh3_64_hexdigest(text.encode())

    def files(self) -> list[Path]:
        """Return no files: everything is generated."""
        return []

    def unseen_phrasings(self) -> dict[str, tuple[str, ...]]:
        """Return task -> phrasings of its instruction that no example has."""
        return {t.name: t.unseen for t in TASKS if t.unseen}

    def sibling_answer(self, example: Example) -> tuple[str, str] | None:
        """Return (trained task, its answer to the INPUT of this example of a near task); None without a contrast."""
        task = next((t for t in TASKS if t.name == example.task), None)
        if task is None or task.sibling is None or task.sibling_answer is None:
            return None
        return task.sibling, task.sibling_answer(example.input, example.output)

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples in a fixed order.

        Raises:
            UserError: A task has fewer distinct inputs than `examples_per_task` asks for.
        """
        streams = [(task, random.Random(derive(self.seed, "demo", task.name))) for task in TASKS]
        seen: set[str] = set()
        for _ in range(self.examples_per_task):
            for task, rng in streams:
                text, answer = self._new_input(task, rng, seen)
                instruction = rng.choice(task.instructions)
                yield single_turn(
                    task=task.name, source=self.name, instruction=instruction, input=text, output=answer
                )

    def _new_input(self, task: Task, rng: random.Random, seen: set[str]) -> tuple[str, str]:
        for _ in range(_MAX_REPEATS):
            text, answer = task.make(rng)
            if (key := text.casefold()) not in seen:
                seen.add(key)
                return text, answer
        raise UserError(
            f"source {self.name!r}: examples_per_task={self.examples_per_task} is more than task {task.name!r} has "
            f"distinct inputs, so examples would repeat; lower data.sources.{self.name}.examples_per_task"
        )
