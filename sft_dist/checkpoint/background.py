"""Writes checkpoints while training goes on: the loop waits for the copy to the CPU only.

A checkpoint passes through phases. In each, every rank works in a thread of its own (or has nothing to do), and the
phase ends when all ranks have ended it, which they learn from the reduction of a later step: no thread ever takes part
in a collective, and no rank acts on what another does not know yet.

    write    all ranks   copy -> files, flushed, with checksums
    commit   rank 0      index, rename, LATEST, retention
    upload   all ranks   (checkpoint.remote) own files -> URL
    publish  rank 0      (checkpoint.remote) index, LATEST, retention there
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist

from sft_dist.checkpoint import io as store
from sft_dist.checkpoint.remote import Remote
from sft_dist.config.train import CheckpointConfig
from sft_dist.core import process
from sft_dist.core.collectives import gather_to_main
from sft_dist.core.records import Position

log = process.logger(__name__)

Phase = Literal["write", "commit", "upload", "publish"]
PHASES: tuple[Phase, ...] = ("write", "commit", "upload", "publish")
JOIN_S = 5.0
PATIENCE_S = 3600.0  # a save that is waited for longer than this does not count as progress: its disk hangs


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What became of a checkpoint. Errors are told to rank 0; the other ranks know that there was one.

    Attributes:
        position: Of the checkpoint.
        folder: Where it lies; None when it could not be written.
        error: Why not; or, with `phase` upload or publish, why it did not reach the remote place.
        phase: The last phase that ran.
        seconds: From the request until now.
        stall_s: Seconds of these that the loop stood still.
    """

    position: Position
    folder: Path | None
    error: str
    phase: Phase
    seconds: float
    stall_s: float


class Saver:
    """Checkpoints of one run. One object a rank; `begin`, `agree` and `finish` are called by all ranks alike.

    Args:
        engine: The DeepSpeed engine.
        root: The folder of checkpoints.
        facts: What every checkpoint carries.
        keep: The section `checkpoint`, which says how many of them stay.
        report: Told on every rank what became of each.
        saved_at: The checkpoint that training started from.
        losses: Held-out loss by step, as far as it was measured before; the same on every rank.
        remote: Where checkpoints are copied to.
        moved: Called now and then while the loop waits for the disks of the ranks, for a heartbeat.
        settle: Called before the state is copied: waits for what changes it beside the loop.

    Attributes:
        saved_at: Position of the newest whole checkpoint; None before the first.
        begun_at: Position of the newest one that was begun.
    """

    def __init__(
        self,
        engine: Any,
        root: Path,
        *,
        facts: Mapping[str, Any],
        keep: CheckpointConfig,
        report: Callable[[Saved], None],
        saved_at: Position | None = None,
        losses: Mapping[int, float] | None = None,
        remote: Remote | None = None,
        moved: Callable[[], None] = lambda: None,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._root, self._facts, self._keep, self._report = engine, root, facts, keep, report
        self._losses = dict(losses or {})
        self._remote, self._moved, self._settle = remote, moved, settle
        self.saved_at = self.begun_at = saved_at
        self._current: _Checkpoint | None = None
        root.mkdir(parents=True, exist_ok=True)

    def begin(self, position: Position, facts: Mapping[str, Any] | None = None) -> None:
        """Copy the state of this step and write it in the background; one that is still being written comes first."""
        began = time.monotonic()
        self.finish()
        self._settle()
        parts, ranges = store.copy_parts(self._engine)
        current = _Checkpoint(self._root, position, began)
        measured = sorted(self._losses.items())
        current.index = store.describe(
            self._engine, position, {**self._facts, **(facts or {}), "validation_losses": measured}
        )
        current.start("write", partial(store.write_part, current.aside, dist.get_rank(), parts, ranges))
        self._current, self.begun_at = current, position
        current.stall_s = time.monotonic() - began

    def flags(self) -> tuple[bool, bool]:
        """Return whether this rank has ended its phase, and whether it failed: what the step's reduction carries."""
        return self._current.flags() if self._current else (False, False)

    def agree(self, written: int, failed: int) -> None:
        """Go on to the next phase when the step's reduction says that all ranks have ended this one."""
        if self._current and written == dist.get_world_size():
            began = time.monotonic()
            current = self._current
            self._advance(current, failed=failed > 0)
            current.stall_s += time.monotonic() - began

    def finish(self) -> None:
        """Wait until the checkpoint that is being written has passed through all phases.

        The ranks meet every few seconds instead of once: a collective that waits for the slowest disk would run into its
        time-out, and a rank 0 that waits in it has no heartbeat.
        """
        while current := self._current:
            began = time.monotonic()
            counts = torch.zeros(2)
            while counts[0] < dist.get_world_size():
                current.wait(JOIN_S)
                if time.monotonic() - began < PATIENCE_S:
                    self._moved()
                counts = torch.tensor(current.flags(), dtype=torch.float32, device=self._engine.device)
                dist.all_reduce(counts)
            self._advance(current, failed=bool(counts[1] > 0))
            current.stall_s += time.monotonic() - began

    def scored(self, step: int, loss: float | None) -> bool:
        """Take note of a validation loss; return whether it is among the lowest, so that its checkpoint is to be kept."""
        if loss is None or not math.isfinite(loss):
            return False
        self._losses[step] = loss
        return step in sorted(self._losses, key=lambda s: (self._losses[s], -s))[: self._keep.keep_best]

    @property
    def losses(self) -> Mapping[int, float]:
        """Validation losses by step, as far as they were measured."""
        return self._losses

    @property
    def best(self) -> int:
        """The step of the lowest validation loss, the later of equal ones; 0 before the first evaluation."""
        return min(self._losses, key=lambda s: (self._losses[s], -s), default=0)

    def _advance(self, current: _Checkpoint, *, failed: bool) -> None:
        """End the phase on all ranks, report, start the next."""
        phase, is_main = current.phase, dist.get_rank() == 0
        outcomes: list[Any] = (
            gather_to_main((current.result, current.error)) if phase == "write" or failed else []
        )
        error = "another rank's" if failed else ""
        if failed and is_main:
            error = next(f"rank {r}: {e}" for r, (_, e) in enumerate(outcomes) if e)
        if phase == "write" and is_main:
            current.files = {n: f for part, _ in outcomes for n, f in (part or {}).items()}
        if failed and phase in ("write", "commit") and is_main:
            shutil.rmtree(current.aside, ignore_errors=True)
        if phase == "commit" and not failed:
            self.saved_at = current.position
        last = failed or phase == ("publish" if self._remote else "commit")
        if phase != "write" or failed:
            self._report(current.outcome(error))
        if last:
            self._current = None
        else:
            self._start(current, PHASES[PHASES.index(phase) + 1], is_main=is_main)

    def _start(self, current: _Checkpoint, phase: Phase, *, is_main: bool) -> None:
        work: Callable[[], Any] | None = None
        if phase == "commit" and is_main:
            work = partial(self._commit, current)
        elif phase == "upload" and self._remote:
            mine = f"rank-{dist.get_rank():05d}."
            work = partial(self._remote.upload, current.final, mine)
        elif phase == "publish" and self._remote and is_main:
            work = partial(self._remote.publish, current.final)
        current.start(phase, work)

    def _commit(self, current: _Checkpoint) -> None:
        store.commit(current.aside, current.final, current.index, current.files)
        try:
            store.prune(self._root, current.final.name, self._keep, dict(self._losses))
        except OSError as error:  # the new checkpoint is whole all the same
            log.warning(
                "old checkpoints could not be removed (%s); they take space until the next one", error
            )


class _Checkpoint:
    """One checkpoint on its way, and this rank's thread of the phase that it is in."""

    def __init__(self, root: Path, position: Position, began: float) -> None:
        self.position = position
        self.final = root / store.folder_name(position.step)
        self.aside = root / f".saving-{self.final.name}"
        self.index: dict[str, Any] = {}
        self.files: dict[str, Any] = {}
        self.stall_s = 0.0
        self._began = began

    def start(self, phase: Phase, work: Callable[[], Any] | None) -> None:
        """Begin a phase on this rank; without work it has ended already."""
        self.phase, self.result, self.error = phase, None, ""
        self._ended = threading.Event()
        if work is None:
            self._ended.set()
        else:  # daemon: a rank that ends for another reason does not wait for its disk
            threading.Thread(target=self._run, args=(work,), name=f"checkpoint-{phase}", daemon=True).start()

    def flags(self) -> tuple[bool, bool]:
        """Return whether this rank's phase has ended, and whether it failed."""
        ended = self._ended.is_set()
        return ended, ended and bool(self.error)

    def wait(self, timeout_s: float) -> bool:
        """Return whether this rank's phase ended within `timeout_s`."""
        return self._ended.wait(timeout_s)

    def outcome(self, error: str) -> Saved:
        """Return what is known now."""
        lost = bool(error) and self.phase in ("write", "commit")
        return Saved(
            position=self.position,
            folder=None if lost else self.final,
            error=error,
            phase=self.phase,
            seconds=time.monotonic() - self._began,
            stall_s=self.stall_s,
        )

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
        except Exception as error:  # noqa: BLE001  whatever it was: the other ranks must learn that this one failed
            self.error = f"{type(error).__name__}: {error}"
        finally:
            self._ended.set()
