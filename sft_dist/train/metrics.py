"""What a step measured: summed over ranks in one reduction, turned into one line of metrics.jsonl.

Layout of the reduced vector (fp64): [loss sum, tokens, targets, pairs, stop, save] + per task [loss sum, weight].
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from sft_dist.core.records import Batch

FIXED = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The reduced figures of one global batch."""

    loss: float
    tokens: int
    targets: int
    pairs: int
    stop: bool
    save: bool
    task_loss: dict[str, float]


class Meter:
    """Adds up the micro-batches of this rank and reduces them over all."""

    def __init__(self, tasks: Sequence[str], device: torch.device) -> None:
        self._tasks = list(tasks)
        self._sums = torch.zeros(FIXED + 2 * len(self._tasks), dtype=torch.float64, device=device)

    def add(self, batch: Batch, loss_sum: Tensor, nll_N: Tensor, weights_N: Tensor) -> None:
        """Add one micro-batch; nothing here waits for the device."""
        self._sums[0] += loss_sum.detach()
        self._sums[1] += (
            len(batch.input_ids) if batch.doc_ids else 0
        )  # the stand-in of an idle rank is no data
        self._sums[2] += len(batch.target_ids)
        self._sums[3] += batch.doc_cost_tokens
        if len(batch.target_ids):
            tasks_N = torch.from_numpy(batch.target_tasks).to(self._sums.device)
            n = len(self._tasks)
            self._sums[FIXED : FIXED + n].index_add_(0, tasks_N, (nll_N * weights_N).double())
            self._sums[FIXED + n :].index_add_(0, tasks_N, weights_N.double())

    def reduce(self, *, stop: bool, save: bool) -> Sums:
        """Sum over ranks (one collective), and start anew."""
        self._sums[4], self._sums[5] = float(stop), float(save)
        dist.all_reduce(self._sums)
        values = self._sums.tolist()
        self._sums.zero_()
        n = len(self._tasks)
        losses, weights = values[FIXED : FIXED + n], values[FIXED + n :]
        return Sums(
            loss=values[0],
            tokens=int(values[1]),
            targets=int(values[2]),
            pairs=int(values[3]),
            stop=values[4] > 0,
            save=values[5] > 0,
            task_loss={t: a / w for t, a, w in zip(self._tasks, losses, weights, strict=True) if w > 0},
        )


# Dense bf16 peak of one device, FLOP/s, from the vendors' data sheets. MFU is not reported for others.
PEAK_FLOPS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10G": 70e12,
    "L4": 121e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of the device, or None where it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)


def memory_bytes(device: torch.device) -> int:
    """Return peak allocated device memory, or on CPU the peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
