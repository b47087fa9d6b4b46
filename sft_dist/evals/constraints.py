"""Constraints that a program can check, and prompts to put them on: for the probe of controllability (after IFEval, arXiv 2311.07911); formats of an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Constraint:
    """What is asked for, and whether an answer keeps it."""

    wording: str
    holds: Callable[[str], bool]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _sentences(text: str) -> int:
    return len([s for s in re.split(r"[.!?]+(?:\s|$)", text) if s.strip()])


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


CONSTRAINTS: dict[str, Constraint] = {
    "at_least_words": Constraint("Use at least 20 words.", lambda t: len(_words(t)) >= 20),
    "at_most_words": Constraint("Use at most 8 words.", lambda t: 0 < len(_words(t)) <= 8),
    "sentences": Constraint("Write exactly two sentences.", lambda t: _sentences(t) == 2),
    "bullets": Constraint(
        "Write exactly three bullet points that begin with a hyphen.",
        lambda t: len(re.findall(r"^\s*- ", t, re.MULTILINE)) == 3,
    ),
    "keyword": Constraint("Use the word river.", lambda t: "river" in map(str.lower, _words(t))),
    "no_keyword": Constraint(
        "Do not use the word the.", lambda t: bool(_words(t)) and "the" not in map(str.lower, _words(t))
    ),
    "capitals": Constraint("Write in capital letters only.", str.isupper),
    "no_commas": Constraint("Do not use commas.", lambda t: bool(t.strip()) and "," not in t),
    "json": Constraint("Answer with valid JSON only.", _is_json),
    "start": Constraint("Begin with the word Well.", lambda t: t.lstrip().lower().startswith("well")),
    "end": Constraint(
        "End with the words that is all.", lambda t: t.rstrip(" .!").lower().endswith("that is all")
    ),
    "quotes": Constraint(
        "Put the whole answer in double quotation marks.",
        lambda t: len(t.strip()) > 2 and t.strip()[0] == t.strip()[-1] == '"',
    ),
}

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
