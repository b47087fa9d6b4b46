"""What a step measured: summed over ranks in one reduction, turned into one line of metrics.jsonl.

Layout of the reduced vector (fp64): [loss sum, tokens, targets, pairs, stop, save, written, failed] + loss sums by task
and by source + weights by task and by source. The loss is plain cross-entropy, whatever options of it are trained on.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sft_dist.core.records import Batch, StepMetrics, StepPlan
from sft_dist.model.packed import MicroBatch
from sft_dist.pack import devices

FIXED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The reduced figures of one global batch; how many ranks have ended their part of a checkpoint, or failed in it."""

    loss: float
    tokens: int
    targets: int
    pairs: int
    stop: bool
    save: bool
    written: int
    failed: int
    task_loss: dict[str, float]
    source_loss: dict[str, float]


class Meter:
    """Adds up the micro-batches of this rank and reduces them over all."""

    def __init__(self, tasks: Sequence[str], device: torch.device, sources: Sequence[str] = ()) -> None:
        self._names = [*tasks, *sources]
        self._n_tasks = len(tasks)
        self._sums = torch.zeros(FIXED + 2 * len(self._names), dtype=torch.float64, device=device)
        self._counts = [0, 0, 0]  # tokens, targets, pairs: known on the host

    def codes(self, batch: Batch) -> NDArray[np.int64]:
        """Return places in the vector of names for each target, [K, N]: that of its task, and that of its source.

        To be uploaded with the batch (model.packed.upload), by the thread that prepares it.
        """
        found = [batch.target_tasks]
        if len(self._names) > self._n_tasks:
            doc_N = batch.cu_seqlens[1:].searchsorted(batch.offset + batch.target_positions, side="right")
            found.append(self._n_tasks + np.array(batch.doc_sources, np.int64)[doc_N])
        return np.stack(found).astype(np.int64)

    def add(self, micro: MicroBatch, nll_N: Tensor) -> None:
        """Add one micro-batch that was uploaded with its `codes`; nothing here waits for the device."""
        batch, weights_N = micro.batch, micro.weights_N
        loss_N = (nll_N * weights_N).double()
        self._sums[0] += loss_N.sum()
        self._counts[0] += len(batch.input_ids) - batch.padding
        self._counts[1] += len(batch.target_ids)
        self._counts[2] += batch.doc_cost_tokens
        n = len(self._names)
        for codes_N in micro.codes_KN:
            self._sums[FIXED : FIXED + n].index_add_(0, codes_N, loss_N)
            self._sums[FIXED + n :].index_add_(0, codes_N, weights_N.double())

    def reduce(
        self, *, stop: bool = False, save: bool = False, written: bool = False, failed: bool = False
    ) -> Sums:
        """Sum over ranks (one collective), and start anew."""
        known = torch.tensor(
            [*self._counts, stop, save, written, failed], dtype=torch.float64, pin_memory=self._sums.is_cuda
        )
        self._sums[1:FIXED].copy_(known, non_blocking=True)
        self._counts = [0, 0, 0]
        dist.all_reduce(self._sums)
        values = self._sums.tolist()
        self._sums.zero_()
        n, n_tasks = len(self._names), self._n_tasks
        means = [
            (name, loss / weight if weight > 0 else None)
            for name, loss, weight in zip(
                self._names, values[FIXED : FIXED + n], values[FIXED + n :], strict=True
            )
        ]
        return Sums(
            loss=values[0],
            tokens=int(values[1]),
            targets=int(values[2]),
            pairs=int(values[3]),
            stop=values[4] > 0,
            save=values[5] > 0,
            written=int(values[6]),
            failed=int(values[7]),
            task_loss={name: mean for name, mean in means[:n_tasks] if mean is not None},
            source_loss={name: mean for name, mean in means[n_tasks:] if mean is not None},
        )


def step_metrics(
    plan: StepPlan,
    sums: Sums,
    *,
    step: int,
    lr: float,
    grad_norm: float,
    skipped: bool,
    step_s: float,
    data_wait_s: float,
    useful_flops: float,
    peak_flops: float | None,
    device: torch.device,
) -> StepMetrics:
    """Return the line of a step.

    Args:
        plan: Of its global batch.
        sums: Over all ranks.
        step: Optimizer steps done, this one included.
        lr: Learning rate.
        grad_norm: Before clipping.
        skipped: The update was not applied.
        step_s: Seconds of the step, waiting for data included.
        data_wait_s: Seconds of that.
        useful_flops: Of the global batch, forward and backward.
        peak_flops: Of all devices together, or None.
        device: This rank's.
    """
    return StepMetrics(
        step=step,
        epoch=plan.epoch,
        loss=sums.loss / plan.target_weight,
        grad_norm=grad_norm,
        lr=lr,
        tokens=sums.tokens,
        target_tokens=sums.targets,
        tokens_per_s=sums.tokens / step_s,
        mfu=useful_flops / step_s / peak_flops if peak_flops else None,
        fill=plan.fill,
        imbalance=plan.imbalance,
        step_s=step_s,
        data_wait_s=data_wait_s,
        memory_bytes=memory_bytes(device),
        skipped=skipped,
        task_loss=sums.task_loss,
        source_loss=sums.source_loss,
        target_tokens_per_s=sums.targets / step_s,
    )


def peak_flops(device: torch.device) -> float | None:
    """Return the dense bf16 peak of the device, or None where it is not known."""
    if device.type != "cuda":
        return None
    known = devices.find_device(torch.cuda.get_device_name(device))
    return known.peak_flops if known else None


def memory_bytes(device: torch.device) -> int:
    """Return peak allocated device memory, or on CPU the peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
