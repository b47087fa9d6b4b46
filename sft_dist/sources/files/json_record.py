"""Bytes of one record -> a JSON object that every later stage can hold, or the reason why it is none."""

from __future__ import annotations

import json
import re
from typing import Any

# Of lists and objects in one another. Later stages walk them by recursion, which ends at about 1,000.
MOST_LEVELS = 200

_SURROGATE = re.compile("[\ud800-\udfff]")


class NotTextError(Exception):
    """Why some bytes are no text."""


def parse_object(data: bytes, *, texts: bool = False) -> dict[str, Any] | str:
    """Return the JSON object that `data` holds, or the reason why it is none; `texts` as in `reading.read_records`."""
    try:
        value = json.loads(decoded(data))
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg} at character {error.pos + 1}"
    except (RecursionError, ValueError) as error:
        return f"not readable as JSON: {error}"
    except NotTextError as error:
        return str(error)
    return as_object(value, texts=texts)


def decoded(data: bytes) -> str:
    """Return UTF-8 as text.

    Raises:
        NotTextError: It is no UTF-8, or holds a NUL byte.
    """
    if b"\0" in data:
        raise NotTextError(f"NUL byte at byte {data.index(0) + 1} of the record")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotTextError(f"invalid UTF-8 at byte {error.start + 1} of the record") from None


def as_object(value: Any, *, texts: bool = False) -> dict[str, Any] | str:
    """Return `value` if it is a usable JSON object, else the reason why not; `texts` as in `reading.read_records`."""
    value = {"text": value} if texts and isinstance(value, str) else value
    if not isinstance(value, dict):
        names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
        return f"the record is {names.get(type(value), 'null')}, not an object with fields"
    return _fault(value) or value


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text holds half a surrogate pair, which no tokenizer can encode."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def _fault(value: Any) -> str | None:
    """Return what makes a JSON value unusable: half a character in one of its texts, or too many levels."""
    level = [value]
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if has_lone_surrogate(item):
                    return "a \\u escape stands for half a character (a lone surrogate)"
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
        if not below:
            return None
        level = below
    return f"lists and objects lie more than {MOST_LEVELS} levels deep in one another"
