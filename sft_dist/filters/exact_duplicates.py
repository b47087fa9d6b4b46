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
    """A growing map of 128-bit keys to the 128-bit id that came first, in 64 to 128 bytes each; Python's own takes 250."""

    def __init__(self) -> None:
        self._slots = np.zeros((1 << 10, 4), np.uint64)  # key, then id
        self._size = 0

    def first(self, key: int, example_id: str) -> str | None:
        """Return the id that came with this key before; None when the key is new, and `example_id` is the first."""
        if 2 * self._size >= len(self._slots):
            grown = np.zeros((2 * len(self._slots), 4), np.uint64)
            _move(self._slots, grown)
            self._slots = grown
        low, high = np.uint64(key & 0xFFFFFFFFFFFFFFFF), np.uint64(key >> 64)
        slot = _slot_of(self._slots, low, high)
        if self._slots[slot, 0] or self._slots[slot, 1]:
            return f"{int(self._slots[slot, 2]):016x}{int(self._slots[slot, 3]):016x}"
        self._slots[slot] = low, high, int(example_id[:16], 16), int(example_id[16:], 16)
        self._size += 1
        return None


@jit
def _slot_of(slots: NDArray[np.uint64], low: np.uint64, high: np.uint64) -> int:
    """Return where a key lies, or the empty slot where it belongs; (0, 0) marks an empty slot, and no hash will ever be it."""
    mask = np.uint64(len(slots) - 1)
    at = low & mask  # keys are hashes: their bits need no further mixing
    while slots[at, 0] != 0 or slots[at, 1] != 0:
        if slots[at, 0] == low and slots[at, 1] == high:
            break
        at = (at + np.uint64(1)) & mask
    return int(at)


@jit
def _move(old: NDArray[np.uint64], new: NDArray[np.uint64]) -> None:
    """Put every key of one table into another."""
    for i in range(len(old)):
        if old[i, 0] != 0 or old[i, 1] != 0:
            new[_slot_of(new, old[i, 0], old[i, 1])] = old[i]
