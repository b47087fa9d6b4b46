"""An exponential moving average of the fp32 weights, each rank of its own part, in host memory.

It lies among the optimizer's states, so checkpoints save, re-slice and restore it like a moment. The loop waits for a copy of
the weights every few steps; averaging runs in a thread beside the steps that follow. 8 bytes a parameter over the ranks, of
which the copy has half. Training never reads it; an export may (`train.export_ema`).
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from sft_dist.checkpoint import slices


class Ema:
    """The average of weights over optimizer steps.

    Args:
        engine: The engine, with its initial weights; a checkpoint is loaded after this.
        decay: Share of the average that one step keeps.
        every: Steps between updates; each counts for as many steps, so that `decay` keeps its meaning.
    """

    def __init__(self, engine: Any, *, decay: float, every: int) -> None:
        slices.allocate_states(engine)  # an optimizer that finds any state makes no moments
        self._states = list(slices.flat_states(engine))
        self._every = every
        self._share = 1 - decay**every
        self._thread = ThreadPoolExecutor(1, "ema")
        self._pending: Future[None] | None = None
        self._weights = []
        for flat, state in self._states:
            state["ema"] = flat.detach().to("cpu", torch.float32, copy=True)
            self._weights.append(torch.empty_like(state["ema"], pin_memory=flat.is_cuda))

    def after(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (one-based), if it is time; the average is that of `settle`."""
        if step % self._every:
            return
        self.settle()
        for (flat, _), weights in zip(self._states, self._weights, strict=True):
            weights.copy_(flat.detach(), non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        self._pending = self._thread.submit(self._take_in)

    def settle(self) -> None:
        """Wait until the last update is in the average: before it is read or saved."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _take_in(self) -> None:
        for (_, state), weights in zip(self._states, self._weights, strict=True):
            state["ema"].lerp_(weights, self._share)
