"""Constraints that a program can check, and prompts to put them on: for the probe of controllability (after IFEval, arXiv 2311.07911); formats of an answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sft_dist.verifiers.table import VERIFIERS, broken


@dataclass(frozen=True, slots=True)
class Constraint:
    """What is asked for, and whether an answer keeps it."""

    wording: str
    holds: Callable[[str], bool]


ASKED: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("at_least_words", {"words": 20}),
    ("at_most_words", {"words": 8}),
    ("sentences", {"number": 2}),
    ("bullets", {"number": 3}),
    ("keyword", {"word": "river"}),
    ("no_keyword", {"word": "the"}),
    ("capitals", {}),
    ("no_commas", {}),
    ("json", {}),
    ("start", {"text": "Well"}),
    ("end", {"text": "that is all"}),
    ("quotes", {}),
)
"""Verifiers of `verifiers/table.py` with their options, as the probe asks for them."""


def _constraint(name: str, options: Mapping[str, Any]) -> Constraint:
    wording = VERIFIERS[name].wording
    assert wording is not None
    return Constraint(wording(options), lambda text: broken(text, name, options) is None)


CONSTRAINTS: dict[str, Constraint] = {name: _constraint(name, options) for name, options in ASKED}

PROMPTS = (
    "Describe a forest.", "Explain why it rains.", "Tell me about bread.", "Describe your favourite season.", "Explain how a bicycle works.",
    "Write about a journey.", "Describe a busy street.", "Explain what a library is for.", "Tell me about the moon.", "Describe a good friend.",
    "Explain how to boil an egg.", "Write about a storm.", "Describe a kitchen.", "Explain why people sleep.", "Tell me about horses.",
    "Describe a quiet morning.", "Explain what money is.", "Write about a garden.", "Describe the sea.", "Explain how plants grow.",
    "Tell me about an old house.", "Describe a market.", "Explain what a map shows.", "Write about a birthday.", "Describe a bridge.",
)  # fmt: skip


def loose(text: str) -> list[str]:
    """Return the text as it is, without its first line, without its last, and without asterisks: any may keep the constraint."""
    lines = text.split("\n")
    return [text, "\n".join(lines[1:]), "\n".join(lines[:-1]), text.replace("*", "")]


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """A format that an instruction can ask for, and the answer inside a text of it; None where the text does not keep it."""

    wording: str
    inside: Callable[[str], str | None]


def _in_json(text: str) -> str | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return str(found["answer"]) if isinstance(found, dict) and "answer" in found else None


def _behind_prefix(text: str) -> str | None:
    begins, _, rest = text.strip().partition(":")
    return rest.strip() if begins == "Answer" else None


FORMATS: dict[str, AnswerFormat] = {
    "capitals": AnswerFormat("Write the answer in capital letters.", lambda t: t if t.isupper() else None),
    "json": AnswerFormat('Write the answer as JSON: {"answer": "..."}.', _in_json),
    "prefix": AnswerFormat('Begin the answer with "Answer:".', _behind_prefix),
}
"""For the probe of altered formats: no answer of a trained task is written so."""
