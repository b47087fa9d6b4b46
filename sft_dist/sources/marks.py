"""Marks of what carries loss, as data sets write them -> loss weights, or the reason why a mark cannot be read.

The marks of one thing (a record, a turn, a part of a content, a call) multiply: nothing that one of them excludes is
trained. A key that looks like a mark and is none of ours is left unread; `unread_marks` names it for `check`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_dist.core.records import Message, Role, TextWeight
from sft_dist.sources.base import RecordError, kind_of

WEIGHTS = ("weight", "loss_weight", "loss_scale", "train", "training", "trainable", "loss", "loss_mask")
EXCLUDES = ("mask", "masked")  # true: no loss
SPANS = ("train_detail", "training_detail")
READ = frozenset((*WEIGHTS, *EXCLUDES, *SPANS))

_WORDS = {"true": 1.0, "false": 0.0}
_LOOKS = re.compile(
    r"(?:^|_)(?:weights?|(?:un)?train(?:ed|ing|able)?|loss|losses|masks?|masked|supervis(?:e|ed|ion)|learn(?:ed|able)?|ignored?|skip(?:ped)?"
    r"|is_target|exclude[ds]?)(?:_|$)"
)
_PARTS = re.compile(
    r"(?<=[a-z0-9])(?=[A-Z])|[-. ]"
)  # where "lossMask" and "loss-mask" have an underscore to others
_KNOWN = ("attention_mask",)  # looks like a mark of loss, and says something else


def weight_of(fields: Mapping[str, Any]) -> float | None:
    """Return the product of the loss weights that the marks of a turn, a part or a call give; None where it has none.

    Raises:
        RecordError: When a mark is none of true, false and a number of 0 or more.
    """
    found = None
    for name in (*WEIGHTS, *EXCLUDES):
        value = fields.get(name)
        if value is None:
            continue
        factor = _factor(name, value)
        if factor is None:
            what = "true or false" if name in EXCLUDES else "a loss weight of 0 or more"
            raise RecordError(f"field {name!r} holds {value!r}, not {what}")
        found = factor if found is None else found * factor
    return found


def record_weight(fields: Mapping[str, Any]) -> float:
    """Return the factor that the marks of a whole record give, 1 where it has none.

    A column of that name that holds something else (a measured loss, the name of a train) is no mark.

    Raises:
        RecordError: When `weight`, `loss_weight` or `loss_scale` is a number below 0, or not finite.
    """
    found = 1.0
    for name in (*WEIGHTS, *EXCLUDES):
        value = fields.get(name)
        if value is None:
            continue
        factor = _factor(name, value)
        if factor is None and name in WEIGHTS[:3] and _number(value) is not None:
            raise RecordError(f"field {name!r} of the record holds {value!r}, not a loss weight of 0 or more")
        if factor is not None and (name in WEIGHTS[:3] or factor in (0, 1)):
            found *= factor
    return found


def spans_of(fields: Mapping[str, Any], content: str) -> tuple[TextWeight, ...]:
    """Return the pieces of a content that `train_detail` marks, first and last character included; the rest has weight 0.

    Raises:
        RecordError: When a piece lies outside of the content or over another one.
    """
    value = next((fields[n] for n in SPANS if fields.get(n)), None)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise RecordError(f"its train_detail is {kind_of(value)}, not a list of objects")
    out: list[TextWeight] = []
    position = 0
    for piece in sorted(
        value, key=lambda p: p.get("begin_offset") if _is_offset(p.get("begin_offset")) else -1
    ):
        begin, last = piece.get("begin_offset"), piece.get("end_offset")
        if not (_is_offset(begin) and _is_offset(last)) or not position <= begin <= last < len(content):
            raise RecordError(
                f"its train_detail has a piece from {begin!r} to {last!r}; pieces of the {len(content)} characters of its content "
                "follow each other, begin_offset and end_offset included"
            )
        out += [TextWeight(position, begin, 0.0)] if begin > position else []
        out.append(TextWeight(begin, last + 1, weight_of(piece) or 0.0))
        position = last + 1
    return (*out, *([TextWeight(position, len(content), 0.0)] if position < len(content) else []))


def choose_roles(
    messages: Sequence[Message], roles: Sequence[Role] | None, *, end_of_turn: bool
) -> tuple[Message, ...]:
    """Return the messages with a loss on the turns of these roles where no mark says otherwise, and on their ends or not."""
    if roles is not None:
        messages = [
            m if m.weight is not None else replace(m, weight=float(m.role in roles)) for m in messages
        ]
    if not end_of_turn:
        messages = [replace(m, end_weight=0.0) for m in messages]
    return tuple(messages)


def unread_marks(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a record that look like marks of what carries loss and are not read, such as "turn.loss_factor"."""
    for key, value in record.items():
        if _looks(key) and not (key in READ and key not in SPANS and _is_record_mark(key, value)):
            yield key
        if isinstance(value, list):
            for turn in value:
                if isinstance(turn, dict):
                    yield from _unread_in(turn, "turn")


def _unread_in(thing: Mapping[str, Any], what: str) -> Iterator[str]:
    for key, value in thing.items():
        if _looks(key) and key not in READ:
            yield f"{what}.{key}"
        if isinstance(value, list) and key != "tools":
            inner = "call" if "call" in key else "part"
            for item in value:
                if isinstance(item, dict) and key not in SPANS:
                    yield from _unread_in(item, inner)


def _looks(key: str) -> bool:
    return _LOOKS.search(_PARTS.sub("_", key).lower()) is not None and key not in _KNOWN


def _is_record_mark(name: str, value: Any) -> bool:
    factor = _factor(name, value)
    return value is None or (factor is not None and (name in WEIGHTS[:3] or factor in (0, 1)))


def _factor(name: str, value: Any) -> float | None:
    """Return the loss weight that a mark's value stands for, or None where it stands for none."""
    if name in EXCLUDES:  # 0 and 1 mean one thing in one data set and the other in the next
        given = (
            _WORDS.get(value.strip().lower())
            if isinstance(value, str)
            else value
            if isinstance(value, bool)
            else None
        )
        return None if given is None else 1.0 - given
    number = _number(value)
    return number if number is not None and math.isfinite(number) and number >= 0 else None


def _number(value: Any) -> float | None:
    """Return a number, a truth value, or either as text (a CSV column) as a number."""
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    word = value.strip().lower()
    try:
        return _WORDS[word] if word in _WORDS else float(word)
    except ValueError:
        return None


def _is_offset(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
