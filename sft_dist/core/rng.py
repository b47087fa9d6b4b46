"""One seed in the config, any number of independent streams: derive(seed, *names)."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and every name, and on nothing else (no rank, no time)."""
    text = "\x1f".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return a numpy generator (PCG64, stable across numpy versions) for the derived seed."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))
