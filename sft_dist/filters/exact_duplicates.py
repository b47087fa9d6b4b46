"""Exact duplicates: what counts as equal. Whoever sees a whole source in order keeps the first of each key."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray

from sft_dist.core.records import Example
from sft_dist.pack.jit import jit


def duplicate_key(example: Example) -> int:
    """Return 128 bits that are equal for equal turns and tools, white space and Unicode form aside.

    Case counts (an answer may hang on it); loss weights, task, source and further references do not.
    """
    turns = []
    for m in example.messages:
        fields = [m.role, m.content, m.reasoning_content or "", m.tool_call_id or "", m.name or ""]
        fields += [part for call in m.tool_calls for part in (call.name, call.arguments)]
        turns.append(_joined(fields))
    text = "\x1e".join([*turns, "", _joined(example.tools)])
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return xxhash.xxh3_128_intdigest(text.encode("utf-8", "surrogatepass"))


def _joined(fields: Sequence[str]) -> str:
    """Return the fields in one text; `split` takes the separators out of them, for they count as white space."""
    return "\x1f".join([" ".join(f.split()) for f in fields])


class Seen:
    """A growing set of 128-bit keys in 32 to 64 bytes each; Python's own takes 100."""

    def __init__(self) -> None:
        self._slots = np.zeros((1 << 10, 2), np.uint64)
        self._size = 0

    def add(self, key: int) -> bool:
        """Put a key in; return whether it was new."""
        if 2 * self._size >= len(self._slots):
            grown = np.zeros((2 * len(self._slots), 2), np.uint64)
            _move(self._slots, grown)
            self._slots = grown
        low, high = np.uint64(key & 0xFFFFFFFFFFFFFFFF), np.uint64(key >> 64)
        new = bool(_add(self._slots, low, high))
        self._size += new
        return new


@jit
def _add(slots: NDArray[np.uint64], low: np.uint64, high: np.uint64) -> bool:
    """Put a key in; (0, 0) marks an empty slot, and no hash will ever be it."""
    mask = np.uint64(len(slots) - 1)
    at = low & mask  # keys are hashes: their bits need no further mixing
    while slots[at, 0] != 0 or slots[at, 1] != 0:
        if slots[at, 0] == low and slots[at, 1] == high:
            return False
        at = (at + np.uint64(1)) & mask
    slots[at, 0], slots[at, 1] = low, high
    return True


@jit
def _move(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> None:
    """Put every key of one table into another."""
    for i in range(len(old)):
        if old[i, 0] != 0 or old[i, 1] != 0:
            _add(new, old[i, 0], old[i, 1])
