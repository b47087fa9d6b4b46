"""The nouns of rendering: parts of a draft, and segments for people to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sft_dist.core.records import Role


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


@dataclass(frozen=True, slots=True)
class Draft:
    """A rendered conversation before encoding.

    Attributes:
        parts: The rendering in order.
        answers: Where the assistant's answers lie.
        differs: Assistant turns whose context in this rendering is not what generation would be fed.
    """

    parts: list[Part]
    answers: list[Answer]
    differs: tuple[int, ...] = ()


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
