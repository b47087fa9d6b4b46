"""Fields of a record -> a question with its options, answer and rationale; and how options are shown."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.sources.base import RecordError, kind_of, optional_text, record_origin, text_field
from sft_dist.sources.flan.patterns import LETTERED, LISTED, OptionList

_BLOCK = re.compile(r"(?P<stem>.*?\S)\s*\n\s*options\s*:\s*\n(?P<lines>.+)", re.DOTALL | re.IGNORECASE)
_LINE = re.compile(r"\s*-?\s*\((?P<letter>[A-Z])\)\s*(?P<text>.*\S)\s*")
_LETTER = re.compile(r"\(?\s*([A-Z])\s*[).:]?")
# A rationale that names options by letter makes no sense where letters are not shown. Any single capital may be one;
# "A" is an article before a word.
_LONE_LETTER = re.compile(r"\b(?:[B-Z]|A(?!\s+[a-z]))\b")
# nor does a question that speaks of its options, or is a sentence to be completed, where they are not shown
_NEEDS_OPTIONS = re.compile(
    r"\b(following|these|those|options?|choices?|below|above|listed)\b|[^?.!\s]\s*$", re.IGNORECASE
)
_ABOUT_OPTIONS = re.compile(r"(none|all|both|neither|either|any|cannot|can't)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One record.

    Attributes:
        stem: The question without its options.
        options: Texts to choose from; empty when the answer is free.
        letters: The letter of each option.
        right: Index of the right option; None without options.
        answers: Acceptable answers without options, the first of which is trained; the right option's text with them.
        rationale: How one gets there; empty when the record has none.
        origin: The "record:..." that all examples about this question share.
    """

    stem: str
    options: tuple[str, ...]
    letters: tuple[str, ...]
    right: int | None
    answers: tuple[str, ...]
    rationale: str
    origin: str

    @property
    def names_letter(self) -> bool:
        """True when the rationale speaks of options by letter."""
        return any(letter in self.letters for letter in _LONE_LETTER.findall(self.rationale))

    @property
    def needs_options(self) -> bool:
        """True when question or answer make no sense without the options."""
        if self.right is None:
            return False
        return bool(_NEEDS_OPTIONS.search(self.stem) or _ABOUT_OPTIONS.match(self.options[self.right]))

    def shown(self, layout: OptionList | None) -> str:
        """Return the question as it is asked: with its options in a layout, or without them."""
        if layout is None or not self.options:
            return self.stem
        lines = [
            layout.line.format(letter=a, text=t) for a, t in zip(self.letters, self.options, strict=True)
        ]
        return "\n".join([self.stem, layout.head, *lines])

    def answer(self, layout: OptionList | None) -> str:
        """Return the answer to the question as `shown` asks it."""
        if layout is None or self.right is None:
            return self.answers[0]
        return layout.answer.format(letter=self.letters[self.right], text=self.options[self.right])


def read_question(
    fields: Mapping[str, Any], *, question: str, answer: str, rationale: str | None, options: str | None
) -> Question:
    """Return the question of a record; the arguments name its fields.

    Raises:
        RecordError: When a field is missing or of the wrong kind.
    """
    whole = text_field(fields, question).strip()
    if not whole:
        raise RecordError(f"field {question!r} is empty")
    answers = _answers(fields, answer)
    stem, letters, texts = _options(fields, options) if options else _block(whole)
    stem = stem or whole
    right = _right(answers[0], letters, texts)
    if texts and right is None:
        if options:
            raise RecordError(f"field {answer!r} holds {answers[0]!r}, which is none of the options")
        stem, letters, texts = whole, (), ()  # what looked like options is part of the question
    return Question(
        stem=stem,
        options=texts,
        letters=letters,
        right=right,
        answers=answers if right is None else (texts[right],),
        rationale=optional_text(fields, rationale).strip(),
        origin=record_origin(" ".join(whole.casefold().split())),
    )


def draw_layout(
    questions: Sequence[Question], chance: random.Random, *, with_rationale: bool, without_options: float
) -> OptionList | None:
    """Return how the options of all `questions` are listed; None: not at all.

    Args:
        questions: Those of one prompt.
        chance: Where the draw comes from.
        with_rationale: Rationales are shown, so that their letters must stand for something.
        without_options: Share of questions asked without options, where that makes sense.
    """
    bare, letters, number = chance.random() < without_options, chance.random() < 0.5, chance.random()
    if with_rationale and any(q.names_letter for q in questions):
        letters, bare = True, False
    if bare and not any(q.needs_options for q in questions):
        return None
    table = LETTERED if letters else LISTED
    return table[int(number * len(table))]


def _answers(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if name not in fields:
        text_field(fields, name)  # says what the record has instead
    value = fields[name]
    found = value if isinstance(value, list) else [value]
    texts = [str(v).strip() for v in found if isinstance(v, str | int | float) and not isinstance(v, bool)]
    if not texts or len(texts) != len(found) or not all(texts):
        raise RecordError(
            f"field {name!r} holds {'an empty text' if value == '' else kind_of(value)}, not an answer or a list of them"
        )
    return tuple(dict.fromkeys(texts))


def _options(fields: Mapping[str, Any], name: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    value = fields.get(name)
    if value is None or value == []:
        return "", (), ()
    if (
        not isinstance(value, list)
        or not all(isinstance(v, str) and v.strip() for v in value)
        or len(value) > 26
    ):
        raise RecordError(
            f"field {name!r} holds {kind_of(value)}, not a list of up to 26 texts to choose from"
        )
    return "", tuple(map(chr, range(65, 65 + len(value)))), tuple(v.strip() for v in value)


def _block(question: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Split "stem, line `Options:`, lines `(A) text`"; anything else is a question without options."""
    block = _BLOCK.fullmatch(question)
    lines = [_LINE.fullmatch(line) for line in block["lines"].splitlines() if line.strip()] if block else []
    letters = tuple(m["letter"] for m in lines if m)
    if not block or len(letters) != len(lines) or len(set(letters)) < max(2, len(letters)):
        return "", (), ()
    return block["stem"], letters, tuple(m["text"] for m in lines if m)


def _right(answer: str, letters: Sequence[str], options: Sequence[str]) -> int | None:
    """Return which option an answer names, by its text or its letter."""
    if answer in options:
        return options.index(answer)
    letter = _LETTER.fullmatch(answer)
    return letters.index(letter[1]) if letter and letter[1] in letters else None
