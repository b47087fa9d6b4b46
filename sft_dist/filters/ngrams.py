"""Text -> 64-bit codes of words, and of n consecutive words: what near duplicates and leakage are found by."""

from __future__ import annotations

import numpy as np
import xxhash
from numpy.typing import NDArray

from sft_dist.core.words import words
from sft_dist.pack.jit import jit

CACHED_WORDS = 1 << 20  # about 150 MB; a corpus of a million examples has fewer distinct words

__all__ = ["codes", "ngrams", "piece_codes", "shingles", "words"]

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: every word keeps its weight in the sum
_MIX = np.uint64(0xFF51AFD7ED558CCD)


class _Codes(dict[str, int]):
    """Code by word. Python's own `hash` differs from process to process, and what is dropped must not."""

    def __missing__(self, word: str) -> int:
        if len(self) >= CACHED_WORDS:
            self.clear()
        code = self[word] = xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))
        return code


_CODES = _Codes()


def codes(found: list[str]) -> NDArray[np.uint64]:
    """Return the code of each word, [W]."""
    return np.fromiter(map(_CODES.__getitem__, found), np.uint64, len(found))


@jit
def ngrams(codes_W: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """Return the code of each run of `n` words, [W - n + 1]; empty when there are fewer than n."""
    out = np.empty(max(0, len(codes_W) - n + 1), np.uint64)
    for i in range(len(out)):
        code = codes_W[i]
        for k in range(i + 1, i + n):
            code = code * _BASE + codes_W[k]
        code = (code ^ (code >> np.uint64(32))) * _MIX
        out[i] = code ^ (code >> np.uint64(29))
    return out


@jit
def piece_codes(codes_W: NDArray[np.uint32], size: int) -> NDArray[np.uint64]:
    """Return a rolling hash of each run of `size` codes, [W - size + 1]; empty when there are fewer."""
    out = np.empty(max(0, len(codes_W) - size + 1), np.uint64)
    power, code = np.uint64(1), np.uint64(0)
    for _ in range(size):
        power *= _BASE
    for i in range(len(codes_W)):
        code = code * _BASE + np.uint64(codes_W[i]) + np.uint64(1)
        if i >= size:
            code -= power * (np.uint64(codes_W[i - size]) + np.uint64(1))
        if i >= size - 1:
            out[i - size + 1] = code
    return out


def shingles(text: str, n: int) -> NDArray[np.uint64]:
    """Return the set of runs of `n` words as sorted codes; a text of fewer words is one run, an empty one none."""
    found = codes(words(text))
    return _distinct(np.sort(ngrams(found, min(n, len(found))))) if len(found) else found


@jit
def _distinct(ordered: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return each code of a sorted array once; it is not empty. `np.unique` spends 10 us on checks."""
    out = ordered.copy()
    size = 1
    for i in range(1, len(ordered)):
        if ordered[i] != out[size - 1]:
            out[size] = ordered[i]
            size += 1
    return out[:size]
