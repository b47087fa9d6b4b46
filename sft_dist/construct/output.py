"""What a set consists of in the end: examples, rejects with their reasons, counts. Each file is whole or absent."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from sft_dist.core.files import atomic_path, write_json
from sft_dist.core.records import Drop, Example, example_to_dict

EXAMPLES, DROPPED, COUNTS = "examples.jsonl", "dropped.jsonl", "counts.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """A finished set.

    Attributes:
        path: Its examples, as a source of kind `examples` reads them.
        examples: How many.
        dropped: What was generated and is not kept, by reason.
    """

    path: Path
    examples: int
    dropped: dict[str, int]


class Output:
    """Writes a set; its files appear when the context ends without an error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._ids: set[str] = set()
        self._dropped: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._examples = self._open(EXAMPLES)
        self._rejects = self._open(DROPPED)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if error is None:
            write_json(
                self._folder / COUNTS,
                {"examples": len(self._ids), "dropped": dict(sorted(self._dropped.items()))},
            )

    def keep(self, example: Example) -> None:
        """Keep an example; an equal one that was kept before makes it a duplicate."""
        if example.id in self._ids:
            self.drop(Drop("duplicate", f"equal to example {example.id}"), example.instruction)
            return
        self._ids.add(example.id)
        _write(self._examples, example_to_dict(example))

    def drop(self, why: Drop, text: str) -> None:
        """Keep aside what was generated and is not good enough."""
        self._dropped[why.reason] += 1
        _write(self._rejects, {"reason": why.reason, "detail": why.detail, "text": text})

    def made(self) -> Made:
        """Return what was written."""
        return Made(
            path=self._folder / EXAMPLES, examples=len(self._ids), dropped=dict(sorted(self._dropped.items()))
        )

    def _open(self, name: str) -> IO[str]:
        aside = self._stack.enter_context(atomic_path(self._folder / name))
        return self._stack.enter_context(aside.open("w", encoding="utf-8", errors="backslashreplace"))


def _write(file: IO[str], value: Any) -> None:
    file.write(json.dumps(value, ensure_ascii=False) + "\n")
