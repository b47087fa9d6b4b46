"""Bytes of one record -> a JSON object that every later stage can hold, or the reason why it is none."""

from __future__ import annotations

import json
import math
import re
from typing import Any

# Of lists and objects in one another. Later stages walk them by recursion, which ends at about 1,000.
MOST_LEVELS = 200
# Of one record. It is some ten million tokens; a line or an element that never ends is told from that.
MAX_RECORD_BYTES = 1 << 25
TOO_LONG = f"the record is longer than the {MAX_RECORD_BYTES:,} bytes that one may have"

_SURROGATE = re.compile("[\ud800-\udfff]")


_NAN = "NaN"  # stands for itself: it is mended, not refused


class NotTextError(Exception):
    """Why some bytes are no text."""


def parse_object(data: bytes, *, texts: bool = False) -> dict[str, Any] | str:
    """Return the JSON object that `data` holds, or the reason why it is none; `texts` as in `data_files.read_records`."""
    try:
        value = json.loads(decoded(data))
    except json.JSONDecodeError as error:
        return f"not valid JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
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


def as_object(value: Any, *, texts: bool = False, table: bool = False) -> dict[str, Any] | str:
    """Return `value` if it is a usable JSON object, else the reason why not.

    NaN, which tables and some writers of JSON have for a missing value, is null.

    Args:
        value: The record.
        texts: As in `data_files.read_records`.
        table: It is a row of a table (Parquet, Arrow), whose schema gives every object the keys of all rows: inside of
            columns, null keys leave.
    """
    value = {"text": value} if texts and isinstance(value, str) else value
    if not isinstance(value, dict):
        names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
        return f"the record is {names.get(type(value), 'null')}, not an object with fields"
    fault = _fault(value)
    if fault == _NAN:
        value = _without_nan(value)
    elif fault:
        return fault
    return {k: _without_padding(v) for k, v in value.items()} if table else value


def _without_padding(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_padding(v) for k, v in value.items() if v is not None}
    return [_without_padding(v) for v in value] if isinstance(value, list) else value


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def has_lone_surrogate(text: str) -> bool:
    """Return whether a text holds half a surrogate pair, which no tokenizer can encode."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def _fault(value: Any) -> str | None:
    """Return what makes a JSON value unusable: half a character in one of its texts, too many levels, too long a text; or NaN."""
    level = [value]
    nan, chars = False, 0
    for _ in range(MOST_LEVELS):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if has_lone_surrogate(item):
                    return "a \\u escape stands for half a character (a lone surrogate)"
                chars += len(item)
            elif isinstance(item, dict):
                below += item
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and math.isnan(item):
                nan = True
        if not below:
            return TOO_LONG if chars > MAX_RECORD_BYTES else _NAN if nan else None
        level = below
    return f"lists and objects lie more than {MOST_LEVELS} levels deep in one another"
