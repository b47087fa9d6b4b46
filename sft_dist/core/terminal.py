"""Text that people see in a terminal: what data, files and servers say cannot move the cursor, set a title or hide text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment

if TYPE_CHECKING:
    from rich.console import ConsoleOptions

# C0 and C1 without tab and line end, line separators, and marks that turn the direction of text
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def plain(text: str) -> str:
    r"""Return the text with every control character but tab and line end replaced by a visible mark."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


class SafeConsole(Console):
    """rich's console, whose output holds no control sequence but rich's own colours and cursor movements."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of a renderable, their text made plain."""
        for segment in super().render(renderable, options):
            if segment.control or not _CONTROL.search(segment.text):
                yield segment
            else:
                yield Segment(plain(segment.text), segment.style)
