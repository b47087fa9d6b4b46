"""The nouns of rendering: parts of a conversation laid out, and segments for people to look at."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sft_dist.core.records import Role
from sft_dist.render.conversation import Conversation, Thinking, Turn


class Part(NamedTuple):
    """A piece of a rendered conversation.

    Attributes:
        payload: A control token's id, or text that never yields a control token.
        weight: Loss weight of its tokens.
        turn: Index of the turn it belongs to; -1 before the first.
        body: Whether an assistant wrote it (its text and end-of-turn), as opposed to what generation is fed.
    """

    payload: int | str
    weight: float
    turn: int
    body: bool


class Answer(NamedTuple):
    """Where the answer of an assistant turn lies in a draft, in parts.

    Generation is fed `parts[:start]`; `parts[start:content]` is an empty think block that carries no loss (else
    `content == start`); `parts[end - 1]` is the end-of-turn token.
    """

    turn: int
    start: int
    content: int
    end: int


class LostAnswer(NamedTuple):
    """An assistant turn that cannot carry loss as it stands in a whole conversation.

    Attributes:
        turn: Index of the turn.
        reason: `context_differs` (generation would be fed something else before it), `answer_differs` (generation
            would have to write something else: thoughts that history leaves out), or `not_ended`.
        detail: Where the two part.
    """

    turn: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rendering:
    """A rendered conversation before encoding.

    Attributes:
        parts: The rendering in order.
        answers: Where the assistant's answers lie.
        lost: Assistant turns that cannot carry loss here.
    """

    parts: list[Part]
    answers: list[Answer]
    lost: tuple[LostAnswer, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A piece of a rendered conversation with its ids, for people to look at.

    Attributes:
        text: What it says.
        role: Whose turn it belongs to.
        weight: Loss weight of its tokens (0: context only).
        ids: Its tokens. A token that covers several segments belongs to the one where it starts.
        control: Whether it is a control token.
        turn: Index of the turn.
    """

    text: str
    role: Role
    weight: float
    ids: tuple[int, ...]
    control: bool
    turn: int


Split = Callable[[str], tuple[int | str, ...]]  # literal template text -> control ids and plain text


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What a writer needs beside the conversation.

    Attributes:
        split: Literal template text -> control ids and plain text.
        bos: Text of the BOS token to write first; empty for none.
        eos: Text of the end-of-text token.
        thinking: Which assistant turns keep their reasoning.
        train_empty_think: Whether an empty think block carries loss.
        empty_think: Whether an answer without thoughts gets an empty think block (qwen3).
    """

    split: Split
    bos: str
    eos: str
    thinking: Thinking
    train_empty_think: bool
    empty_think: bool = False


@dataclass(slots=True)
class TemplateWriter:
    """Collects the parts of a draft."""

    split: Split
    parts: list[Part] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def literal(self, text: str, turn: int, weight: float, body: bool = False) -> None:
        """Write the template's own text: control tokens in it are control tokens."""
        for payload in self.split(text):
            self.parts.append(Part(payload, weight, turn, body))

    def text(self, text: str, turn: int, weight: float, body: bool = False) -> None:
        """Write what came from the record: plain text whatever it says."""
        if text:
            self.parts.append(Part(text, weight, turn, body))


def keeps_thoughts(index: int, last_query: int, thinking: Thinking) -> bool:
    """Whether the assistant turn `index` is shown with its reasoning."""
    return thinking == "keep_all" or (thinking == "last_turn" and index > last_query)


def open_writer(conversation: Conversation, style: Style) -> tuple[TemplateWriter, tuple[Turn, ...], float]:
    """Return a writer that has written BOS, the turns, and the loss weight of the template's own text."""
    pen = TemplateWriter(style.split)
    pen.literal(style.bos, -1, conversation.frame_weight)
    return pen, conversation.turns, conversation.frame_weight


def write_thoughts(pen: TemplateWriter, t: Turn, i: int, thoughts: bool) -> None:
    """Write the think block of an answer whose thoughts are shown, if it has any."""
    reasoning = (t.reasoning or "").strip("\n") if thoughts else ""
    if reasoning:
        pen.literal("<think>\n", i, t.weight, body=True)
        pen.text(reasoning, i, t.weight, body=True)
        pen.literal("\n</think>\n\n", i, t.weight, body=True)


def to_json(value: Any) -> str:
    """Return what the `tojson` of a chat template gives."""
    return json.dumps(value, ensure_ascii=False)
