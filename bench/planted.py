"""Many records out of few real texts, with near duplicates of known likeness among them: what `filters.py --near` finds.

A record takes the shape (sentences in prompt and answer) of a real one and fills it with sentences of all of them, so it
has natural words, lengths and repeated short answers. One in twenty is an edited copy of an earlier one: words replaced,
dropped or put in, at a rate that leaves a likeness from 0.5 to 1. Record i is a function of i alone.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

EVERY = 20  # of so many records the last is a copy
SENTENCE = re.compile(r"(?<=[.!?:])\s+|\n+")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Shape:
    prompt: int
    answer: int


class Maker:
    """Records by number.

    Args:
        files: JSON lines with `instruction`, optional `input`, and `output`.
    """

    def __init__(self, files: list[Path]) -> None:
        self.prompts: list[str] = []
        self.answers: list[str] = []
        self.shapes: list[Shape] = []
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                asked = _sentences(f"{row['instruction']}\n{row.get('input') or ''}")
                said = _sentences(row["output"])
                if asked and said:
                    self.prompts += asked
                    self.answers += said
                    self.shapes.append(Shape(len(asked), len(said)))

    def original(self, i: int) -> tuple[str, str]:
        """Return prompt and answer of a record that is no copy."""
        draw = random.Random(i)
        shape = draw.choice(self.shapes)
        return (
            " ".join(draw.choices(self.prompts, k=shape.prompt)),
            " ".join(draw.choices(self.answers, k=shape.answer)),
        )

    def source_of(self, i: int) -> int | None:
        """Return the record that record i is a copy of, None when it is none."""
        if i % EVERY != EVERY - 1:
            return None
        draw = random.Random(f"source {i}")
        while (j := draw.randrange(i)) % EVERY == EVERY - 1:
            pass
        return j

    def record(self, i: int) -> tuple[str, str]:
        """Return prompt and answer of record i."""
        j = self.source_of(i)
        if j is None:
            return self.original(i)
        draw = random.Random(f"edit {i}")
        rate = draw.uniform(0, 0.06)
        prompt, answer = self.original(j)
        return self._edited(prompt, rate, draw), self._edited(answer, rate, draw)

    def write(self, path: Path, n: int) -> None:
        """Write n records as JSON lines."""
        with path.open("w", encoding="utf-8") as out:
            for i in range(n):
                prompt, answer = self.record(i)
                out.write(json.dumps({"instruction": prompt, "output": answer}, ensure_ascii=False) + "\n")

    def _edited(self, text: str, rate: float, draw: random.Random) -> str:
        out = []
        for word in text.split(" "):
            kind = draw.choice("rdi") if draw.random() < rate else ""
            if kind in {"r", "i"}:  # replaced, or something put in before it
                out.append(draw.choice(draw.choice(self.prompts).split()))
            if kind in {"", "i"}:
                out.append(word)
        return " ".join(out)


def likeness(a: str, b: str, n: int) -> float:
    """Return the Jaccard similarity of two texts' runs of n words, in plain Python."""
    x, y = _runs(a, n), _runs(b, n)
    return len(x & y) / len(x | y) if x | y else 1.0


def _runs(text: str, n: int) -> set[tuple[str, ...]]:
    found = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    n = min(n, len(found))
    return {tuple(found[k : k + n]) for k in range(len(found) - n + 1)} if n else set()


def _sentences(text: str) -> list[str]:
    return [s for s in SENTENCE.split(text.strip()) if WORD.search(s)]
