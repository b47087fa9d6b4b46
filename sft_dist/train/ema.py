"""An exponential moving average of the fp32 weights, each rank of its own part, in host memory.

It lies among the optimizer's states, so checkpoints save, re-slice and restore it like a moment, and costs a copy to the
host every few steps: 4 bytes a parameter over the ranks. Training never reads it; an export may (`train.export_ema`).
"""

from __future__ import annotations

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
        for flat, state in self._states:
            state["ema"] = flat.detach().to("cpu", torch.float32, copy=True)

    def after(self, step: int) -> None:
        """Take in the weights after optimizer step `step` (one-based), if it is time."""
        if step % self._every == 0:
            for flat, state in self._states:
                state["ema"].lerp_(flat.detach().to("cpu"), self._share)
