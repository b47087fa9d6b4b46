"""One source of random order for every planning stage: equal on every machine and with every version of numpy.

Numpy promises the same bits from a bit generator, not the same permutation from a `Generator`; a plan must come
out equal when a run is resumed with another version, so the few lines stand here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.pack.jit import jit

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # splitmix64: the state advances by this, `_below` mixes it


def shuffle(values: NDArray[Any], seed: int) -> None:
    """Permute `values` in place, uniformly, as a function of `seed` and the length alone."""
    _fisher_yates(values, np.uint64(seed))


def sample_segments(
    values: NDArray[Any], first: NDArray[np.int64], counts: NDArray[np.int64], seed: int
) -> None:
    """Bring a random sample to the front of every segment of `values`, in place.

    Args:
        values: [P] segments end to end.
        first: [C+1] where each segment begins, then P.
        counts: [C] size of each sample, at most that of its segment.
        seed: Of all samples.
    """
    _partial_fisher_yates(values, first, counts, np.uint64(seed))


@jit
def _below(state: np.uint64, n: int) -> int:
    """Return a number of at least 0 and below `n` < 2**32 (bias below 2**-32): splitmix64's output for `state`."""
    z = state
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    # The high 64 bits of the product z * n.
    wide = np.uint64(n)
    low = ((z & np.uint64(0xFFFFFFFF)) * wide) >> np.uint64(32)
    return np.int64(((z >> np.uint64(32)) * wide + low) >> np.uint64(32))  # type: ignore[return-value]


@jit
def _fisher_yates(values: NDArray[Any], seed: np.uint64) -> None:
    state = seed
    for i in range(len(values) - 1, 0, -1):
        state += GOLDEN
        j = _below(state, i + 1)
        values[i], values[j] = values[j], values[i]


@jit
def _partial_fisher_yates(
    values: NDArray[Any], first: NDArray[np.int64], counts: NDArray[np.int64], seed: np.uint64
) -> None:
    state = seed
    for c in range(len(counts)):
        for i in range(first[c], first[c] + counts[c]):
            state += GOLDEN
            j = i + _below(state, first[c + 1] - i)
            values[i], values[j] = values[j], values[i]
