"""Rules that judge one example alone, each by something that can be measured and shown.

Assistant turns of loss weight 0 are not trained on and not judged. `FILTERS` in filters/__init__.py registers the rules; their
`reasons` are the words on the card.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from sft_dist.core.records import Drop, Example
from sft_dist.core.words import WORD
from sft_dist.filters.ngrams import piece_codes
from sft_dist.filters.patterns import (
    ASKS_FOR_JSON,
    CONTROL,
    DANGLING_WORDS,
    FENCE,
    LETTER,
    MOJIBAKE,
    NEXT_TURN,
    PLACEHOLDER,
    REFUSAL,
    SCRIPTS,
    SHORT_TEXT_CHARS,
)


def prompt_of(example: Example) -> str:
    """Return all user turns, a blank line between them."""
    return "\n\n".join(m.content for m in example.messages if m.role == "user")


def answers_of(example: Example) -> list[str]:
    """Return the texts of the assistant turns that are trained on; turns that only call tools have none."""
    return [
        m.content
        for m in example.messages
        if m.role == "assistant" and m.weight != 0 and (m.content or not m.tool_calls)
    ]


def texts_of(example: Example) -> Iterator[tuple[str, str]]:
    """Yield (what it is, text) of everything that a template may write out."""
    for number, m in enumerate(example.messages, 1):
        yield f"turn {number}", m.content
        if m.reasoning_content:
            yield f"the reasoning of turn {number}", m.reasoning_content
        for call in m.tool_calls:
            yield f"a call of turn {number}", call.arguments
    for tool in example.tools:
        yield "the tools", tool


def excerpt(text: str) -> str:
    """Return the beginning of a text, quoted, for a reason."""
    return repr(text if len(text) <= SHORT_TEXT_CHARS else text[:SHORT_TEXT_CHARS] + "...")


@dataclass(frozen=True, kw_only=True)
class Length:
    """Prompts and answers that are too short, conversations that are too long, in characters without outer space."""

    name: ClassVar[str] = "length"
    reasons: ClassVar[Mapping[str, str]] = {
        "prompt_too_short": "the prompt is too short",
        "answer_too_short": "the answer is too short",
        "too_many_chars": "too long",
    }
    min_prompt_chars: int = 1
    min_answer_chars: int = 1
    max_chars: int | None = None

    def __call__(self, example: Example) -> Drop | None:
        """Return `prompt_too_short`, `answer_too_short`, `too_many_chars`, or None."""
        prompt = len(prompt_of(example).strip())
        if prompt < self.min_prompt_chars and example.form == "chat":
            return Drop("prompt_too_short", f"{prompt} characters < {self.min_prompt_chars}")
        shortest = min((len(a.strip()) for a in answers_of(example)), default=self.min_answer_chars)
        if shortest < self.min_answer_chars:
            return Drop("answer_too_short", f"{shortest} characters < {self.min_answer_chars}")
        total = sum(len(m.content) for m in example.messages)
        if self.max_chars is not None and total > self.max_chars:
            return Drop("too_many_chars", f"{total} characters > {self.max_chars}")
        return None


@dataclass(frozen=True, kw_only=True)
class ControlCharacters:
    """Control characters other than tab, line feed and carriage return: the mark of binary or badly decoded text."""

    name: ClassVar[str] = "control_characters"
    reasons: ClassVar[Mapping[str, str]] = {"control_characters": "control characters"}

    def __call__(self, example: Example) -> Drop | None:
        """Return `control_characters` or None."""
        for place, text in texts_of(example):
            if found := CONTROL.search(text):
                return Drop(
                    self.name, f"U+{ord(found.group()):04X} at character {found.start() + 1} of {place}"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class BrokenText:
    """Replacement characters, and UTF-8 that was read as Latin-1 or Windows-1252."""

    name: ClassVar[str] = "broken_text"
    reasons: ClassVar[Mapping[str, str]] = {"broken_text": "wrongly decoded characters"}

    def __call__(self, example: Example) -> Drop | None:
        """Return `broken_text` or None."""
        for place, text in texts_of(example):
            if not text.isascii() and (found := MOJIBAKE.search(text)):
                return Drop(self.name, f"{found.group()!r} at character {found.start() + 1} of {place}")
        return None


@dataclass(frozen=True, kw_only=True)
class Placeholder:
    """Answers that are a placeholder, a bare link, or markup that a generator left over."""

    name: ClassVar[str] = "placeholder"
    reasons: ClassVar[Mapping[str, str]] = {"placeholder": "the answer is a placeholder"}

    def __call__(self, example: Example) -> Drop | None:
        """Return `placeholder` or None."""
        for answer in answers_of(example):
            if found := PLACEHOLDER.search(answer):
                return Drop(self.name, f"{excerpt(found.group().strip())} in the answer {excerpt(answer)}")
        return None


@dataclass(frozen=True, kw_only=True)
class Format:
    """Answers that go on with another turn, and answers to a request for JSON that begin like JSON and are none."""

    name: ClassVar[str] = "format"
    reasons: ClassVar[Mapping[str, str]] = {
        "next_turn": "the answer goes on with another turn",
        "broken_json": "JSON was asked for, and the answer is broken JSON",
    }

    def __call__(self, example: Example) -> Drop | None:
        """Return `next_turn`, `broken_json` or None."""
        answers = answers_of(example)
        for answer in answers:
            if found := NEXT_TURN.search(answer):
                return Drop("next_turn", f"{excerpt(found.group().strip())} at character {found.start() + 1}")
        answer = next(reversed(answers), "").strip()
        answer = found.group(1).strip() if (found := FENCE.match(answer)) else answer
        if answer.startswith(("{", "[")) and ASKS_FOR_JSON.search(prompt_of(example)):
            try:
                json.loads(answer)
            except (ValueError, RecursionError) as error:
                return Drop("broken_json", f"{error}: {excerpt(answer)}")
        return None


@dataclass(frozen=True, kw_only=True)
class Licences:
    """Records of a licence that is not allowed, or of none.

    Attributes:
        allow: Names or globs, in any case.
        stated: Licence of records that name none themselves.
    """

    name: ClassVar[str] = "licenses"
    reasons: ClassVar[Mapping[str, str]] = {"license": "its licence is not allowed"}
    allow: tuple[str, ...]
    stated: str | None

    def __call__(self, example: Example) -> Drop | None:
        """Return `license` or None."""
        found = example.license or self.stated
        if found is None:
            return Drop("license", "no licence is stated")
        if any(fnmatchcase(found.casefold(), pattern.casefold()) for pattern in self.allow):
            return None
        return Drop("license", f"{excerpt(found)} is not allowed")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Answers that open with a refusal or with talk about being a language model (English and Chinese)."""

    name: ClassVar[str] = "refusal"
    reasons: ClassVar[Mapping[str, str]] = {"refusal": "the answer refuses"}

    def __call__(self, example: Example) -> Drop | None:
        """Return `refusal` or None."""
        for answer in answers_of(example):
            if found := REFUSAL.search(answer[:SHORT_TEXT_CHARS].replace("\u2019", "'")):
                return Drop(self.name, f"{found.group()!r} in the opening {excerpt(answer)}")
        return None


@dataclass(frozen=True, kw_only=True)
class TruncatedAnswer:
    """Last answers that stop in the middle."""

    name: ClassVar[str] = "truncated_answer"
    reasons: ClassVar[Mapping[str, str]] = {"truncated_answer": "the answer stops in the middle"}
    min_words: int = 16

    def __call__(self, example: Example) -> Drop | None:
        """Return `truncated_answer` or None."""
        answer = next(reversed(answers_of(example)), "").rstrip()
        if answer.count("```") % 2:
            return Drop(self.name, "a code block is not closed")
        if len(WORD.findall(answer)) < self.min_words:
            return None
        if answer[-1] in ",([{\u3001\uff0c\uff08":
            return Drop(self.name, f"ends in {answer[-1]!r}")
        last = answer.split()[-1]
        if last in DANGLING_WORDS:
            return Drop(self.name, f"ends in the word {last!r}")
        return None


@dataclass(frozen=True, kw_only=True)
class Script:
    """Letters outside the allowed scripts: a guess at the language that is right as far as a script tells it."""

    name: ClassVar[str] = "script"
    reasons: ClassVar[Mapping[str, str]] = {"script": "another script than the allowed ones"}
    allow: tuple[str, ...] = ("Latin",)
    min_share: float = 0.5
    min_letters: int = 20

    def __call__(self, example: Example) -> Drop | None:
        """Return `script` or None."""
        text = "\n".join(m.content for m in example.messages)
        if text.isascii() and "Latin" in self.allow:
            return None
        letters = len(LETTER.findall(text))
        if letters < self.min_letters:
            return None
        allowed = sum(len(SCRIPTS[s].findall(text)) for s in self.allow)
        if allowed >= self.min_share * letters:
            return None
        wanted = ", ".join(self.allow)
        return Drop(
            self.name,
            f"{allowed} of {letters} letters are {wanted}: {allowed / letters:.2f} < {self.min_share}",
        )


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Answers that repeat themselves: the share of n-grams of words that occurred before in the same answer."""

    name: ClassVar[str] = "repetition"
    reasons: ClassVar[Mapping[str, str]] = {"repetition": "the answer repeats itself"}
    ngram: int = 4
    max_share: float = 0.5
    min_words: int = 32

    def __call__(self, example: Example) -> Drop | None:
        """Return `repetition` or None."""
        for answer in answers_of(example):
            words = WORD.findall(answer.casefold())
            count = len(words) - self.ngram + 1
            if len(words) < self.min_words or count < 1:
                continue
            distinct = len(set(zip(*(words[i:] for i in range(self.ngram)), strict=False)))
            share = 1 - distinct / count
            if share > self.max_share:
                return Drop(
                    self.name, f"{share:.3f} of {count} {self.ngram}-grams are repeats > {self.max_share}"
                )
        return None


@dataclass(frozen=True, kw_only=True)
class AnswerRepeatsPrompt:
    """Answers that are mostly one piece of the prompt."""

    name: ClassVar[str] = "answer_repeats_prompt"
    reasons: ClassVar[Mapping[str, str]] = {"answer_repeats_prompt": "the answer is a piece of the prompt"}
    max_overlap: float = 0.95
    min_answer_chars: int = 40

    def __call__(self, example: Example) -> Drop | None:
        """Return `answer_repeats_prompt` or None."""
        answers = [a for a in (_plain(a) for a in answers_of(example)) if len(a) >= self.min_answer_chars]
        if not answers:
            return None
        prompt = _plain(prompt_of(example))
        for answer in answers:
            overlap = longest_common(answer, prompt, more_than=self.max_overlap * len(answer)) / len(answer)
            # At a limit of 1 nothing can be more; an answer that lies whole in the prompt is meant then.
            if overlap:
                return Drop(self.name, f"overlap {overlap:.3f} > {self.max_overlap}")
        return None


def longest_common(answer: str, prompt: str, *, more_than: float) -> int:
    """Return the length of the longest common substring if it is more than `more_than` or the whole answer, else 0.

    Nearly all answers are told by one search: pieces longer than half of the answer share its middle. The others go through
    hashes of all pieces of a length (Karp and Rabin, 1987), the length by bisection: a search a piece would take a minute
    for a megabyte.
    """
    least = min(math.floor(more_than) + 1, len(answer))
    if answer in prompt:
        return len(answer)
    if answer[len(answer) - least : least] not in prompt:
        return 0
    codes = [np.frombuffer(t.encode("utf-32-le", "surrogatepass"), np.uint32) for t in (answer, prompt)]

    def shared(size: int) -> bool:
        ours, theirs = (piece_codes(c, size) for c in codes)
        starts = np.flatnonzero(np.isin(ours, theirs)).tolist()
        return any(answer[i : i + size] in prompt for i in starts)  # hashes may meet by chance

    if not shared(least):
        return 0
    longest, above = least, min(len(answer), len(prompt)) + 1
    while above - longest > 1:
        middle = (longest + above) // 2
        longest, above = (middle, above) if shared(middle) else (longest, middle)
    return longest


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
