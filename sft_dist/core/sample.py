"""A random sample of a stream that depends on the seed and the keys, not on their order: those with the smallest hashes."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

import xxhash

T = TypeVar("T")


class Sample(Generic[T]):
    """Keeps `size` items of a stream; of equal keys the first.

    Args:
        size: Items that are kept.
        seed: Of the hash (`core.seeds.derive`).
    """

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._heap: list[tuple[int, str]] = []  # (minus hash, key): the largest kept hash is on top
        self._items: dict[str, T] = {}

    def add(self, key: str, item: T) -> None:
        """Offer an item."""
        entry = (-xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"), seed=self._seed), key)
        if key in self._items or (len(self._heap) == self._size and entry < self._heap[0]):
            return
        if len(self._heap) < self._size:
            heapq.heappush(self._heap, entry)
        else:
            del self._items[heapq.heapreplace(self._heap, entry)[1]]
        self._items[key] = item

    def items(self) -> list[T]:
        """Return what was kept, by rising hash."""
        return [self._items[key] for _, key in sorted(self._heap, reverse=True)]
