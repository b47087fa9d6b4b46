"""A text of the user's with slots in braces, such as "Question: {question}"; "{{" and "}}" stand for braces."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class SlotText:
    """A text with slots.

    Attributes:
        text: As it was written.
        parts: (literal text, name of the slot behind it or None), in order.
    """

    text: str
    parts: tuple[tuple[str, str | None], ...]

    @classmethod
    @lru_cache(maxsize=1 << 12)
    def parse(cls, text: str) -> SlotText:
        """Take a text apart.

        Raises:
            ValueError: When a brace has no partner, or a slot holds more than a name.
        """
        try:
            found = list(string.Formatter().parse(text))
        except ValueError:
            raise ValueError(
                f"{_short(text)} has a brace without its partner; write {{{{ and }}}} for braces that are text"
            ) from None
        for _, name, spec, conversion in found:
            if name is not None and (not name.strip() or spec or conversion):
                raise ValueError(
                    f"{_short(text)} has a slot that holds more than the name of a field; write {{{{ and }}}} for braces that are text"
                )
        return cls(text, tuple((literal, name) for literal, name, _, _ in found))

    @property
    def names(self) -> tuple[str, ...]:
        """The slots, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the text with a value in each slot; braces inside a value are text."""
        return "".join(literal + ("" if name is None else values[name]) for literal, name in self.parts)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
