"""What the writers of the built-in templates share: a pen that collects parts, and the options of a style."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sft_dist.render.conversation import Conversation, Thinking, Turn
from sft_dist.render.draft import Answer, Part

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
class Pen:
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


def open_pen(conversation: Conversation, style: Style) -> tuple[Pen, tuple[Turn, ...], float]:
    """Return a pen that has written BOS, the turns, and the loss weight of the template's own text."""
    pen = Pen(style.split)
    pen.literal(style.bos, -1, conversation.frame_weight)
    return pen, conversation.turns, conversation.frame_weight


def write_thoughts(pen: Pen, t: Turn, i: int, thoughts: bool) -> None:
    """Write the think block of an answer whose thoughts are shown, if it has any."""
    reasoning = (t.reasoning or "").strip("\n") if thoughts else ""
    if reasoning:
        pen.literal("<think>\n", i, t.weight, body=True)
        pen.text(reasoning, i, t.weight, body=True)
        pen.literal("\n</think>\n\n", i, t.weight, body=True)


def to_json(value: Any) -> str:
    """Return what the `tojson` of a chat template gives."""
    return json.dumps(value, ensure_ascii=False)
