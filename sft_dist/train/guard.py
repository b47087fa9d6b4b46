"""Requests to stop or save, heard on any rank and agreed on by all; heartbeat; which steps are not worth their update."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any, Literal, Self

import numpy as np

from sft_dist.config.train import TrainConfig
from sft_dist.core.process import current
from sft_dist.core.records import Batch
from sft_dist.core.runfolder import RunFolder
from sft_dist.train.stall_report import path_of, write_stall_report

HEARTBEAT_S = 5.0
WINDOW_STEPS = 64  # losses that a step is compared with
MIN_STEPS = 16  # fewer say nothing about the spread
NAMED, MAX_NAMED = 8, 32  # examples that an event names
MIN_SPREAD = 0.01  # share of the median: losses that hardly vary would make a spike of every step


class StopSignals:
    """Collects stop and save requests of this rank: signals on every rank, control files on rank 0.

    A handler only sets a flag. The flags travel in the step's one reduction, so all ranks act after the same step.
    """

    def __init__(self, folder: RunFolder, *, is_main: bool) -> None:
        self._folder, self._is_main = folder, is_main
        self._stop = threading.Event()
        self._heard = ""

    def listen(self) -> None:
        """Install handlers: USR1 (launcher: the time limit is near), TERM (a hurried site), USR2 (write all stacks)."""
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        for name in (signal.SIGUSR1, signal.SIGTERM):
            signal.signal(name, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._heard = signal.Signals(number).name
        self._stop.set()

    def served(self) -> None:
        """Take a request to save away: the checkpoint is being written."""
        if self._is_main:
            self._folder.clear("save")

    def poll(self) -> tuple[bool, bool]:
        """Return (stop, save) as this rank knows them."""
        stop, save = self._stop.is_set(), False
        if self._is_main:
            stop = stop or self._folder.asked("stop")
            save = self._folder.asked("save")
        return stop, save

    @property
    def reason(self) -> str:
        """What was heard here, for the event."""
        return self._heard or (
            "control/stop" if self._is_main and self._folder.asked("stop") else "another rank"
        )


class Heartbeat:
    """Touches the heartbeat file when the loop has moved, so that its age is the time without progress.

    A thread looks every few seconds, so a short step costs no write. A rank that has not moved for half of `limit_s`
    says where it stands (train/stall_report.py), before the launcher ends the run for its old heartbeat.

    Args:
        folder: The run folder.
        limit_s: Age of the heartbeat at which the launcher ends the run; HEARTBEAT_MAX of slurm/train.sbatch.
    """

    def __init__(self, folder: RunFolder, limit_s: float | None = None) -> None:
        self._folder, self._rank = folder, current().rank
        self._limit_s = limit_s or float(os.environ.get("HEARTBEAT_MAX", "1800"))
        self._last = time.time()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def progress(self) -> None:
        """Say that the loop moved."""
        self._last = time.time()

    def _beat(self) -> None:
        beaten, said = 0.0, False
        while True:
            with suppress(OSError):  # a full disk must not end the run here
                if self._last != beaten:
                    if said or not beaten:
                        path_of(self._folder.path, self._rank).unlink(missing_ok=True)
                    beaten, said = self._last, False
                    if self._rank == 0:  # the others move with it, and need not write to a shared disk
                        self._folder.heartbeat()
                elif not said and time.time() - beaten > self._limit_s / 2:
                    write_stall_report(self._folder.path, self._rank, since=beaten)
                    said = True
            if self._done.wait(min(HEARTBEAT_S, self._limit_s / 8)):
                return


def since_lowest(losses: Mapping[int, float], least: float) -> int:
    """Return how many evaluations in a row, up to the last, have not lowered the validation loss.

    Args:
        losses: By step.
        least: Nats below the lowest before that an evaluation must lie to count as lower.
    """
    lowest, since = math.inf, 0
    for _, loss in sorted(losses.items()):
        if loss < lowest - least:
            lowest, since = loss, 0
        else:
            since += 1
    return since


class SpikeDetector:
    """Says before the update what is wrong with a step, from the loss of the global batch.

    That loss comes out of an all-reduce, so every rank judges alike. The losses that it compares with travel in the
    checkpoint, so a resumed run judges as an uninterrupted one.

    The spread is the median absolute deviation x 1.4826, the standard deviation of normal data (Hampel, "The Influence
    Curve and its Role in Robust Estimation", 1974): a spike that got through does not hide the next one.

    Args:
        policy: The section `train`: on_nonfinite, on_spike, spike_deviations.
        losses: Of the last steps before, oldest first.
    """

    def __init__(self, policy: TrainConfig, losses: Iterable[float] = ()) -> None:
        self._policy = policy
        self._losses = deque(losses, maxlen=WINDOW_STEPS)

    def wrong(self, loss: float) -> Literal["", "nonfinite", "spike"]:
        """Return what is wrong with a loss, in nats a target token."""
        if not math.isfinite(loss):
            return "nonfinite"
        if self._policy.on_spike == "off" or len(self._losses) < MIN_STEPS:
            return ""
        median = statistics.median(self._losses)
        deviation = 1.4826 * statistics.median(abs(x - median) for x in self._losses)
        spread = max(deviation, MIN_SPREAD * abs(median))
        return "spike" if loss > median + self._policy.spike_deviations * spread else ""

    def add(self, loss: float) -> None:
        """Remember the loss of a step that was applied."""
        self._losses.append(loss)

    @property
    def losses(self) -> list[float]:
        """The remembered losses, oldest first: what a checkpoint keeps."""
        return list(self._losses)

    def stops(self, cause: str) -> bool:
        """Say whether the policy ends the run for this cause."""
        return (self._policy.on_spike if cause == "spike" else self._policy.on_nonfinite) == "stop"


def example_losses(batches: Sequence[Batch], loss_N_of: Sequence[Any]) -> list[tuple[str, float, int]]:
    """Return (id, sum of weighted losses, targets) of every example of this rank's micro-batches.

    Args:
        batches: Micro-batches.
        loss_N_of: Weighted loss of each target of each of them, tensors.
    """
    out = []
    for batch, loss_N in zip(batches, loss_N_of, strict=True):
        owner_N = batch.cu_seqlens[1:].searchsorted(batch.offset + batch.target_positions, side="right")
        total_S = np.bincount(owner_N, loss_N.detach().double().cpu().numpy(), len(batch.doc_ids))
        count_S = np.bincount(owner_N, minlength=len(batch.doc_ids))
        out += [(batch.doc_ids[i], float(total_S[i]), int(count_S[i])) for i in np.flatnonzero(count_S)]
    return out


def worst_examples(parts: Iterable[tuple[str, float, int]]) -> list[str]:
    """Return ids from the worst: those whose loss is not finite, or, when all are, the 8 of the highest mean loss.

    Args:
        parts: `example_losses` of all ranks. An example may be there in several parts.
    """
    total: dict[str, list[float]] = {}
    for name, loss, targets in parts:
        entry = total.setdefault(name, [0.0, 0.0])
        entry[0] += loss
        entry[1] += targets
    mean = {n: loss / targets if math.isfinite(loss) else math.inf for n, (loss, targets) in total.items()}
    worst = sorted(mean, key=lambda n: (-mean[n], n))
    bad = [n for n in worst if math.isinf(mean[n])]
    return bad[:MAX_NAMED] if bad else worst[:NAMED]
