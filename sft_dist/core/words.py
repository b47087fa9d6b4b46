"""Text -> its words: case folded, without punctuation, in any script."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from rapidfuzz.distance import LCSseq

# Scripts that are written without blanks: a Han, Kana or Hangul character is a word of its own; other letters and digits form words.
_WIDE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
WORD = re.compile(f"[{_WIDE}]|[^\\W{_WIDE}]+")


def words(text: str) -> list[str]:
    """Return the words of a text, case folded, punctuation left out; a Han or Kana character is a word of its own."""
    return WORD.findall((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold())


def rouge_l(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Return the F-measure of the longest common subsequence of two lists of words; two empty ones have 0."""
    total = len(ours) + len(theirs)
    return 2 * LCSseq.similarity(ours, theirs) / total if total else 0.0
