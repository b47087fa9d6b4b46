"""Numbers as people read them, and text as HTML. A figure that is unknown is a dash, never a zero."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

DASH = "\u2013"
MINUS = "\u2212"
# Not allowed in HTML or XML, or not encodable: a half-trained model writes such characters.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def esc(value: object) -> str:
    """Return text that is safe inside HTML, attributes included."""
    return html.escape(_FORBIDDEN.sub("\ufffd", str(value)))


def markdown_text(value: object) -> str:
    """Return text that Markdown shows as it is: no HTML, no picture or link that a reader's browser would fetch."""
    text = _FORBIDDEN.sub("\ufffd", str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("](", "]\\(").replace("![", "!\\[")


def markdown_cell(text: str) -> str:
    """Return text as one cell of a Markdown table."""
    return markdown_text(" ".join(text.split())).replace("|", "\\|").replace("*", "\\*")


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[Any]], *, text: int = 1) -> str:
    """Return a Markdown table, empty without rows; the first `text` columns are left-aligned."""
    if not rows:
        return ""
    rule = ["---" if i < text else "---:" for i in range(len(heads))]
    lines = [heads, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def printable(value: Any) -> Any:
    """Return text without characters that a page cannot hold; anything else, and marked HTML, as it is."""
    return _FORBIDDEN.sub("\ufffd", value) if type(value) is str else value


def p_value(value: float) -> str:
    """0.00012 -> "< 0.001", 0.034 -> "0.034"."""
    if not math.isfinite(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def percent(share: float, digits: int = 1) -> str:
    """0.8317 -> "83.2"."""
    return f"{100 * share:.{digits}f}" if math.isfinite(share) else DASH


def points(difference: float) -> str:
    """0.214 -> "+21.4", with a true minus sign."""
    return f"{100 * difference:+.1f}".replace("-", MINUS) if math.isfinite(difference) else DASH


def count(value: float) -> str:
    """12345.0 -> "12,345"."""
    return f"{value:,.0f}" if math.isfinite(value) else DASH


def short(value: float) -> str:
    """1234567 -> "1.23 M"."""
    if not math.isfinite(value):
        return DASH
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def decimal(value: float, digits: int = 3) -> str:
    """0.21345 -> "0.213"."""
    return f"{value:.{digits}f}" if math.isfinite(value) else DASH


def significant(value: float) -> str:
    """3e-05 -> "3e-05", 0.003 -> "0.003"."""
    return f"{value:.3g}" if math.isfinite(value) else DASH


def duration(seconds: float) -> str:
    """3725 -> "1 h 2 min", 312 -> "5 min 12 s"."""
    if not math.isfinite(seconds):
        return DASH
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def format_bytes(value: float) -> str:
    """Bytes -> "1.2 GiB"."""
    if not math.isfinite(value):
        return DASH
    if value < 2**20:
        return f"{value / 2**10:.0f} KiB"
    return f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def clip(text: str, limit: int) -> str:
    """Return the text, its middle left out when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    return f"{text[:head]} […] {text[-(limit - head) :]}"


def join(parts: Iterable[str]) -> str:
    """Concatenate pieces of HTML."""
    return "".join(parts)


def leaf(value: Any) -> str:
    """Return a JSON value as a person would write it: true, null, 1, 2."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return ", ".join(map(leaf, value)) if isinstance(value, list) else str(value)
