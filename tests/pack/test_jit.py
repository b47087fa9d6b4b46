"""Kernels compile with a cache, and without one where no folder can be written."""

import numba

from sft_dist.pack.jit import jit


def double(n):
    return 2 * n


def test_cached():
    assert jit(double)(4) == 8


def test_no_folder_for_a_cache(monkeypatch):
    njit = numba.njit

    def refuse_cache(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", refuse_cache)
    assert jit(double)(4) == 8
