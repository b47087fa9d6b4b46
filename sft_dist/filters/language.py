"""Texts that are in another language than the allowed ones; the language of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.language import JUDGED_CHARS, identifier
from sft_dist.core.records import Drop, Example
from sft_dist.filters.patterns import IDEOGRAPH, LETTER
from sft_dist.filters.rules import answers_of, excerpt, prompt_of

LETTERS_OF_A_WORD = 5
LEAST_LETTERS = 40  # of a text of which a page says the language
CLOSE_LANGUAGES = (
    6  # that share the probability of a text; code and formulas have a little of each of a hundred
)


@dataclass(frozen=True, kw_only=True)
class Language:
    """Prompts and answers that are clearly in none of the allowed languages; each is judged by itself, short ones are not.

    Close languages share the probability of a text (Croatian, Bosnian, Serbian), so what counts is that of the most probable ones that
    are not allowed, together: 1 less that of the allowed ones, but for text that is in no language.

    Raises:
        UserError: A code in `allow` is none that can be told.
    """

    name: ClassVar[str] = "language"
    reasons: ClassVar[Mapping[str, str]] = {"language": "another language than the allowed ones"}
    allow: tuple[str, ...] = ("en",)
    min_probability: float = 0.9
    min_letters: int = 40

    def __post_init__(self) -> None:
        known = identifier().labels
        for code in self.allow:
            if code not in known:
                raise UserError(
                    f"data.filters.language.allow names {code!r}, which is no language that can be told apart, so all of its texts would "
                    f"be dropped; use ISO 639 codes, of {', '.join(sorted(known))}.{nearest(code, known)}"
                )

    def __call__(self, example: Example) -> Drop | None:
        """Return `language` or None."""
        for text in (prompt_of(example), *answers_of(example)):
            judged = text[:JUDGED_CHARS]
            if letters_of(judged) < self.min_letters:
                continue
            ranked: list[tuple[str, float]] = identifier().rank(judged)
            others = [probability for language, probability in ranked if language not in self.allow]
            other = float(sum(others[:CLOSE_LANGUAGES]))
            if other >= self.min_probability:
                language, probability = ranked[0]
                return Drop(
                    self.name,
                    f"none of {', '.join(self.allow)} with probability {other:.2f} >= {self.min_probability} "
                    f"({language} {probability:.2f}): {excerpt(text)}",
                )
        return None


def language_of(text: str) -> str | None:
    """Return the code of the most probable language of a text; None: it has too few letters to tell."""
    judged = text[:JUDGED_CHARS]
    return None if letters_of(judged) < LEAST_LETTERS else str(identifier().rank(judged)[0][0])


def letters_of(text: str) -> int:
    """Return the letters of a text; a Han or Kana character is a word, and counts as the letters of one."""
    return len(LETTER.findall(text)) + (LETTERS_OF_A_WORD - 1) * len(IDEOGRAPH.findall(text))
