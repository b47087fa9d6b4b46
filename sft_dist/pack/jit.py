"""How planning kernels are compiled: once for all runs where a cache can be written, else once a process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile `function` at its first call; release the interpreter lock inside.

    A cached kernel is renewed when its own file changes, so a kernel calls only kernels of its own module.
    """
    try:
        import numba
    except ImportError:  # where only a benchmark runs (bench/gpu_wheels.py): as right, and far slower
        return function
    try:
        return cast("F", numba.njit(function, cache=True, nogil=True))
    except RuntimeError:  # numba finds no writable folder: a read-only image without a home
        return cast("F", numba.njit(function, nogil=True))
