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
from sft_dist.core.heartbeat import BEAT_S, host_of, stall_file, who_stalls, write_beat
from sft_dist.core.process import current, logger
from sft_dist.core.records import Batch
from sft_dist.core.runfolder import RunFolder
from sft_dist.train.pace import Own, Pace
from sft_dist.train.stall_report import write_stall_report

log = logger(__name__)

STALL_S, START_S = 120.0, 300.0
MOVES = 256  # of which the longest says what is usual
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
    """Writes the heartbeat of the run on rank 0; says on every rank where it stands once it has not moved for too long.

    A thread looks every few seconds, so a short step costs no write. Too long is 3 times the longest of the last moves, at least
    STALL_S (START_S before the second step: compilers), at most half of `limit_s`, at which a launcher ends the run. Rank 0 then
    names the rank that the others wait for, in the log and in events.jsonl. The clock is one that nobody can set.

    Args:
        folder: The run folder.
        limit_s: Seconds without progress at which the launcher ends the run; HEARTBEAT_MAX of slurm/train.sbatch.
        pace: Finds the rank that the others wait for in every step.
    """

    def __init__(self, folder: RunFolder, limit_s: float | None = None, pace: Pace | None = None) -> None:
        self._folder, self._rank = folder, current().rank
        self._limit_s = limit_s or float(os.environ.get("HEARTBEAT_MAX", "1800"))
        self._look_s = min(BEAT_S, self._limit_s / 8)
        self._last, self._moved = time.monotonic(), 0
        self._moves: deque[float] = deque(maxlen=MOVES)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.pace = pace or Pace()

    def __enter__(self) -> Self:
        self._thread.start()
        if current().world_size > 1:
            self.pace.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.pace.__exit__()
        self._done.set()
        self._thread.join()

    def progress(self) -> None:
        """Say that the loop moved."""
        now = time.monotonic()
        self._moves.append(now - self._last)
        self._last, self._moved = now, self._moved + 1

    def slowest(self, shares: Sequence[Own]) -> dict[str, Any] | None:
        """Return what an event says of the rank that the others have been waiting for; None: there is none, or it was named."""
        found = self.pace.compare(shares)
        if found is None:
            return None
        host = host_of(self._folder.path, found.rank)
        reason = (
            f"rank {found.rank}{f' on {host}' if host else ''} is slower than the others: they wait for it {found.share - found.others:.0%} "
            f"of the time, which it spends mostly in {found.phase}"
        )
        if self._rank == 0:
            log.warning("%s", reason)
        return {
            "rank": found.rank,
            "host": host,
            "share": round(found.share, 3),
            "others": round(found.others, 3),
            "reason": reason,
        }

    @property
    def patience_s(self) -> float:
        """Seconds without progress after which this rank says where it stands."""
        least = STALL_S if self._moved > 2 else START_S  # the first evaluation and the first step
        return min(max(least, 3 * max(self._moves, default=0.0)), self._limit_s / 2)

    def _beat(self) -> None:
        said_at, told = None, False
        with suppress(OSError):
            stall_file(self._folder.path, self._rank).unlink(missing_ok=True)  # of an earlier attempt
        while True:
            moved, silent_s = self._moved, time.monotonic() - self._last
            with suppress(OSError):  # a full disk must not end the run here
                if said_at is not None and moved != said_at:
                    stall_file(self._folder.path, self._rank).unlink(missing_ok=True)
                    said_at, told = None, False
                if said_at is None and silent_s > self.patience_s and self._folder.path.is_dir():
                    said_at = moved
                    write_stall_report(self._folder.path, self._rank, silent_s)
                if self._rank == 0:  # the others move with it, and need not write to a shared disk
                    write_beat(self._folder.path, moved, silent_s)
                    if said_at is not None and not told and silent_s > self.patience_s + 3 * self._look_s:
                        told = True  # by now every rank that can has said where it stands
                        log.warning("%s", who_stalls(self._folder.path))
                        self._folder.event("stalled", reason=who_stalls(self._folder.path))
            if self._done.wait(self._look_s):
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
