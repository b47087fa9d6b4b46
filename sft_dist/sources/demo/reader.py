"""The demo source: the same examples for the same seed, on any machine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import xxhash

from sft_dist.core.errors import UserError
from sft_dist.core.records import Example, single_turn
from sft_dist.core.rng import derive
from sft_dist.sources.demo.tasks import TASKS, Task

# Raise it whenever the examples of a seed change: it is part of the fingerprint, so stores are rebuilt.
GENERATOR_VERSION = 3

# Held out entirely by conf/experiment/demo.yaml. Each is near to trained tasks without being one of them: an unseen
# pair of a position and a kind (first_colour, last_name), a trained question on another kind of word or text
# (find_city, word_mood), two operations in a row (capital_last_word).
DEMO_HELD_OUT = ("first_colour", "last_name", "find_city", "word_mood", "capital_last_word")

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
        self.skipped: dict[str, dict[str, int]] = {}
        self.examples_per_task = examples_per_task
        self.seed = seed

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with the generator's version and the options."""
        text = f"demo\x1f{GENERATOR_VERSION}\x1f{self.examples_per_task}\x1f{self.seed}"
        return xxhash.xxh3_64_hexdigest(text.encode())

    def files(self) -> list[Path]:
        """Return no files: everything is generated."""
        return []

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
