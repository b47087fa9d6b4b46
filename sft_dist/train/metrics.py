"""Micro-batches -> sums over all ranks in one reduction -> what a step measured, one line of metrics.jsonl.

The reduced vector (fp64) holds, in this order: the loss sum, `COUNTED`, `FLAGS`, what each rank says of its pace, loss sums by task
and by source, weights by task and by source. The loss is plain cross-entropy, whatever options of it are trained on.

A figure more in the step line: an entry in `STEP_METRICS`, a field of core.records.StepMetrics, and, where it is
counted over micro-batches, an entry in `COUNTED`.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sft_dist.core.records import Batch, StepMetrics, StepPlan
from sft_dist.model.packed import MicroBatch
from sft_dist.pack import devices
from sft_dist.train.pace import IDLE, Own

# What is counted of each micro-batch, on the host.
COUNTED: dict[str, Callable[[Batch], int]] = {
    "tokens": lambda batch: len(batch.input_ids) - batch.padding,
    "targets": lambda batch: len(batch.target_ids),
    "pairs": lambda batch: batch.doc_cost_tokens,
}
# What a rank says once a step; the sum is the number of ranks that say so.
FLAGS = ("stop", "save", "written", "failed")
PLACES = {name: place for place, name in enumerate(("loss", *COUNTED, *FLAGS))}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sums:
    """The reduced figures of one global batch.

    Attributes:
        total: The loss sum and each of `COUNTED`, over all ranks.
        ranks: Of each flag, how many ranks raised it.
        task_loss: Mean loss per target token of each task present in the batch.
        source_loss: The same of each source.
        pace: Of each rank, how it spends its time.
    """

    total: dict[str, float]
    ranks: dict[str, int]
    task_loss: dict[str, float]
    source_loss: dict[str, float]
    pace: list[Own]


class Meter:
    """Adds up the micro-batches of this rank and reduces them over all.

    Args:
        tasks: Their names.
        device: Where sums are added up.
        sources: Their names.
        ranks: This rank, and their number.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        device: torch.device,
        sources: Sequence[str] = (),
        ranks: tuple[int, int] = (0, 1),
    ) -> None:
        self._rank, self._world = ranks
        self._first = len(PLACES) + len(Own._fields) * self._world
        self._names = [*tasks, *sources]
        self._n_tasks = len(tasks)
        self._vector = torch.zeros(self._first + 2 * len(self._names), dtype=torch.float64, device=device)
        first, n = self._first, len(self._names)
        self._losses, self._weights = self._vector[first : first + n], self._vector[first + n :]
        self._counts = dict.fromkeys(COUNTED, 0)

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
        self._vector[0] += loss_N.sum()
        for name, count in COUNTED.items():
            self._counts[name] += count(batch)
        for codes_N in micro.codes_KN:
            self._losses.index_add_(0, codes_N, loss_N)
            self._weights.index_add_(0, codes_N, weights_N.double())

    def reduce(self, pace: Own = IDLE, **flags: bool) -> Sums:
        """Sum over ranks (one collective), and start anew.

        Args:
            pace: How this rank spends its time.
            flags: Of `FLAGS`, those that this rank raises.
        """
        paces = [pace if r == self._rank else (0, 0) for r in range(self._world)]
        on_host = [*self._counts.values(), *(flags.get(name, False) for name in FLAGS), *chain(*paces)]
        known = torch.tensor(on_host, dtype=torch.float64, pin_memory=self._vector.is_cuda)
        self._vector[1 : self._first].copy_(known, non_blocking=True)
        self._counts = dict.fromkeys(COUNTED, 0)
        dist.all_reduce(self._vector)
        values = self._vector.tolist()
        self._vector.zero_()
        first, n = self._first, len(self._names)
        means = [
            loss / weight if weight > 0 else None
            for loss, weight in zip(values[first : first + n], values[first + n :], strict=True)
        ]
        named = [(name, mean) for name, mean in zip(self._names, means, strict=True)]
        return Sums(
            total={name: values[PLACES[name]] for name in ("loss", *COUNTED)},
            ranks={name: int(values[PLACES[name]]) for name in FLAGS},
            task_loss={name: mean for name, mean in named[: self._n_tasks] if mean is not None},
            source_loss={name: mean for name, mean in named[self._n_tasks :] if mean is not None},
            pace=[Own(values[i], int(values[i + 1])) for i in range(len(PLACES), first, 2)],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What is known of a step after its update.

    Attributes:
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
        router_load: Of each layer with experts, see StepMetrics.
    """

    plan: StepPlan
    sums: Sums
    step: int
    lr: float
    grad_norm: float
    skipped: bool
    step_s: float
    data_wait_s: float
    useful_flops: float
    peak_flops: float | None
    device: torch.device
    router_load: Mapping[str, float] = field(default_factory=dict)


STEP_METRICS: dict[str, Callable[[Step], Any]] = {
    "step": lambda s: s.step,
    "epoch": lambda s: s.plan.epoch,
    "loss": lambda s: s.sums.total["loss"] / s.plan.target_weight,
    "grad_norm": lambda s: s.grad_norm,
    "lr": lambda s: s.lr,
    "tokens": lambda s: int(s.sums.total["tokens"]),
    "target_tokens": lambda s: int(s.sums.total["targets"]),
    "tokens_per_s": lambda s: s.sums.total["tokens"] / s.step_s,
    "target_tokens_per_s": lambda s: s.sums.total["targets"] / s.step_s,
    "mfu": lambda s: s.useful_flops / s.step_s / s.peak_flops if s.peak_flops else None,
    "fill": lambda s: s.plan.fill,
    "imbalance": lambda s: s.plan.imbalance,
    "step_s": lambda s: s.step_s,
    "data_wait_s": lambda s: s.data_wait_s,
    "memory_bytes": lambda s: memory_bytes(s.device),
    "skipped": lambda s: s.skipped,
    "task_loss": lambda s: s.sums.task_loss,
    "source_loss": lambda s: s.sums.source_loss,
    "router_load": lambda s: s.router_load,
}


def step_metrics(step: Step) -> StepMetrics:
    """Return the line of a step."""
    return StepMetrics(**{name: value(step) for name, value in STEP_METRICS.items()})


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
