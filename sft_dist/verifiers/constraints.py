"""Constraints on the form of an answer that a program can check (after IFEval, arXiv 2311.07911): how each is asked for, whether it holds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress

from sft_dist.core.language import JUDGED_CHARS, identifier

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
LANGUAGES = {
    "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese",
    "ru": "Russian", "tr": "Turkish", "zh": "Chinese",
}  # fmt: skip


NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d*\.?\d+)(?:[eE][-+]?\d+)?")


def last_number(text: str) -> float | None:
    """Return the last number of a text."""
    found = NUMBER.findall(text)
    with suppress(ValueError, IndexError):
        return float(found[-1].replace(",", ""))
    return None


def equal_numbers(text: str, references: Sequence[str]) -> bool:
    """Return whether the last number of a text equals the last one of a reference, to 1e-6."""
    said = last_number(text)
    wanted = [n for r in references if (n := last_number(r)) is not None]
    return said is not None and any(math.isclose(said, n, rel_tol=1e-6, abs_tol=1e-9) for n in wanted)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"\w+", text)


def number(n: int) -> str:
    """Return a small number as a word."""
    return _NUMBERS[n] if n < len(_NUMBERS) else str(n)


def sentences(text: str) -> int:
    """Return how many sentences a text has."""
    return len([s for s in re.split(r"[.!?]+(?:\s|$)", text) if s.strip()])


def bullets(text: str) -> int:
    """Return how many lines begin with a hyphen."""
    return len(re.findall(r"^\s*- ", text, re.MULTILINE))


def is_json(text: str) -> bool:
    """Return whether a text is JSON."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def in_words(text: str, word: str) -> bool:
    """Return whether a word, or words in a row, stand in a text; case does not count."""
    return f" {' '.join(words(word.lower()))} " in f" {' '.join(words(text.lower()))} "


def language_of(text: str) -> str:
    """Return the ISO 639 code of the language that a text is most probably in."""
    return str(identifier().classify(text[:JUDGED_CHARS].lower())[0])
