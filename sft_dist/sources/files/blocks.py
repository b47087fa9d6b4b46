"""Files -> blocks: the parts of a source that are read by themselves, in any process, in any order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

LEAST_BYTES = (
    1 << 22
)  # of a block, unless the source ends: what a crash may cost, and enough to keep a process busy
MOST_BYTES = 1 << 28
PARTS = 64  # of one file, before its parts become larger


class Part(NamedTuple):
    """A file, or a part of it: bytes `start` to `end` - 1 of lines, rows `start` to `end` - 1 of Parquet.

    Attributes:
        end: None: to the end of the file.
        line: Number of the first line.
    """

    path: Path
    start: int = 0
    end: int | None = None
    line: int = 1

    @property
    def whole(self) -> bool:
        """Whether it is the whole file."""
        return self.start == 0 and self.end is None


Block: TypeAlias = tuple[Part, ...]
"""Parts of a source that follow one another; empty: the whole source."""


def part_bytes(size: int) -> int:
    """Return how large the parts of a file of `size` bytes are; it depends on the file alone, so that a new one moves no other."""
    step = LEAST_BYTES
    while step * PARTS < size and step < MOST_BYTES:
        step *= 2
    return step


def grouped(parts: Iterable[tuple[Part, int]]) -> list[Block]:
    """Return blocks of parts that follow one another, each given with its size in bytes; small ones share a block."""
    out: list[Block] = []
    members: list[Part] = []
    size = 0
    for part, length in parts:
        if members and size + length > LEAST_BYTES:
            out.append(tuple(members))
            members, size = [], 0
        members.append(part)
        size += length
    return [*out, tuple(members)] if members else out
