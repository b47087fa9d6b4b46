"""What a run writes down while it trains: one line a step, evaluation and event, its status, its tracker."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from sft_dist.checkpoint.background import Saved
from sft_dist.core.errors import UserError
from sft_dist.core.files import append_jsonl
from sft_dist.core.process import logger
from sft_dist.core.records import StepMetrics
from sft_dist.core.runfolder import RunFolder
from sft_dist.train.tracker import Tracker

log = logger(__name__)

TASK_SERIES_BYTES = 16_000_000  # that the losses of all tasks take in metrics.jsonl, over the whole run
NUMBER_BYTES = 24  # of one of them beside its name: a number, quotes, a comma
STATUS_S = 1.0  # status.json is made durable at each writing, which short steps on a network disk should not wait for


class RunLogger:
    """Writes into the run folder on rank 0; on the other ranks every call does nothing.

    Args:
        folder: The run folder.
        tracker: Weights & Biases, or nothing.
        is_main: True on rank 0.
        steps: Optimizer steps of the whole run.
        log_every: Steps between lines that the tracker gets.
        remote: Where checkpoints are copied to, for the events.
        tasks: Names of the tasks in the mixture. With many of them, losses by task are written every few steps only, each the mean
            of the steps since the last time in which the task occurred, so that metrics.jsonl stays small.
    """

    def __init__(
        self,
        folder: RunFolder,
        tracker: Tracker,
        *,
        is_main: bool,
        steps: int,
        log_every: int,
        remote: str | None,
        tasks: Sequence[str] = (),
    ) -> None:
        self._folder, self._tracker, self._is_main = folder, tracker, is_main
        self._steps, self._log_every, self._remote = steps, log_every, remote
        self._said = -math.inf
        line_bytes = sum(len(json.dumps(name)) + NUMBER_BYTES for name in tasks)
        self._task_every = max(1, math.ceil(line_bytes * steps / TASK_SERIES_BYTES))
        self._task_sums: dict[str, tuple[float, int]] = {}
        self._identity = _identity(folder) if is_main else None

    def event(self, kind: str, **facts: Any) -> None:
        """Append to events.jsonl."""
        self._write(self._folder.event, kind, **facts)

    def step(self, metrics: StepMetrics) -> None:
        """Append a step to metrics.jsonl, and say in status.json how far the run is, once in STATUS_S.

        Raises:
            UserError: When the run folder is gone: nothing that is trained now could be kept.
        """
        if self._is_main and _identity(self._folder) != self._identity:
            raise UserError(
                f"{self._folder.path} was removed, renamed or replaced while the run was writing to it, so nothing more can be saved; "
                "put it back under its name, and the same command continues from its newest checkpoint"
            )
        if not self._is_main:
            return
        values = {name: finite(value) for name, value in asdict(metrics).items()}
        values["task_loss"] = self._since_last(metrics)
        self._line("train", values, track=metrics.step % self._log_every == 0)
        if time.monotonic() - self._said >= STATUS_S or metrics.step == self._steps:
            self._said = time.monotonic()
            self._write(self._folder.set_status, "running", step=metrics.step, steps=self._steps)

    def _since_last(self, metrics: StepMetrics) -> dict[str, float]:
        """Return the mean loss of each task since it was last written, when it is time; else nothing."""
        for name, loss in metrics.task_loss.items():
            total, steps = self._task_sums.get(name, (0.0, 0))
            self._task_sums[name] = (total + loss, steps + 1)
        if metrics.step % self._task_every and metrics.step != self._steps:
            return {}
        means = {name: total / steps for name, (total, steps) in self._task_sums.items()}
        self._task_sums = {}
        return means

    def evaluation(self, step: int, scores: dict[str, Any]) -> None:
        """Append the losses of the evaluation sets to metrics.jsonl."""
        self._line("eval", {"step": step, **scores}, track=True)

    def saved(self, saved: Saved) -> None:
        """Say what became of a checkpoint."""
        step = saved.position.step
        facts = {"step": step, "seconds": round(saved.seconds, 3)}
        if saved.folder is None:
            log.warning("the checkpoint of step %d failed (%s); the last good one stays", step, saved.error)
            self.event("save_failed", reason=saved.error, **facts)
        elif saved.phase == "commit":
            self.event("saved", stall_s=round(saved.stall_s, 3), **facts)
        elif saved.error:
            log.warning("step %d was not copied to checkpoint.remote: %s", step, saved.error)
            self.event("upload_failed", url=self._remote, reason=saved.error, **facts)
        elif saved.phase == "publish":
            self.event("uploaded", url=self._remote, **facts)

    def _line(self, kind: str, facts: dict[str, Any], *, track: bool) -> None:
        line = {"kind": kind, "time": time.time(), **facts}
        self._write(append_jsonl, self._folder.metrics, line)
        if track and self._is_main:
            self._tracker.log(line)

    def _write(self, write: Callable[..., None], *arguments: Any, **facts: Any) -> None:
        """Write a small file on rank 0; a full disk costs the line, not the run."""
        if not self._is_main:
            return
        try:
            write(*arguments, **facts)
        except OSError as error:
            log.warning("%s; this line of the run's record is lost, training goes on", error)


def _identity(folder: RunFolder) -> tuple[int, int] | None:
    try:
        found = folder.path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def finite(value: Any) -> Any:
    """Return a value as JSON has it: NaN and infinity are null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
