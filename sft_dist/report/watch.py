"""A progress bar over the files of a run folder: the run itself, or one that another process or node carries."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sft_dist.cluster.slurm.job_chain import FOLDER
from sft_dist.core.errors import UserError
from sft_dist.core.heartbeat import GONE_S, SILENT_S, Pulse, who_stalls
from sft_dist.core.runfolder import RunFolder
from sft_dist.report.formatting import duration
from sft_dist.report.run_files import MARKS

SHOWN = (("lr", "lr"), ("norm", "grad_norm"))  # title -> field of metrics.jsonl, beside loss and speed
QUIET_EVERY_S = 20.0  # without a terminal, a line this often
TOLD = ("stalled", "straggler")  # events that are shown


class Watcher:
    """Shows new lines of metrics.jsonl, ranks that hang or are slow, and a run that has fallen silent.

    Attributes:
        pulse: Times the heartbeat.
        silent: In which way a run that says running has fallen silent; empty while it has not.
    """

    def __init__(self, folder: RunFolder, console: Console, *, from_start: bool = False) -> None:
        self._folder, self._console = folder, console
        self._metrics = _Tail(folder.metrics, from_start=from_start)
        self._events = _Tail(folder.events, from_start=False)
        self.pulse, self.silent = Pulse(folder.path), ""
        self._said, self._shown = 0.0, 0
        self._last: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task("starting", total=None, figures="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def poll(self) -> None:
        """Show what is new."""
        silent = self._silence()
        if silent and not self.silent:
            self._console.print(silent, soft_wrap=True, markup=False)
        self.silent = silent
        for event in self._events.new():
            if event.get("kind") in TOLD:
                self._console.print(str(event.get("reason")), soft_wrap=True, markup=False)
        for line in self._metrics.new():
            if line["kind"] == "eval":
                losses = ", ".join(f"{name} {v:.4f}" for name, v in (line.get("set_loss") or {}).items())
                self._console.print(f"step {line['step']}: loss on {losses}")
            else:
                self._last = line
        if not self._last:
            return
        total = self._folder.status().get("steps")
        step, mfu = self._last["step"], self._last["mfu"]
        loss = self._last["loss"]
        figures = f"loss {loss:.4f}" if loss is not None else "loss not finite"
        figures += f" · {self._last['tokens_per_s']:,.0f} tok/s" + (f" · MFU {mfu:.1%}" if mfu else "")
        figures += "".join(
            f" · {title} {float(self._last[name]):.3g}"
            for title, name in SHOWN
            if self._last.get(name) is not None
        )
        self._progress.update(self._bar, description="training", total=total, completed=step, figures=figures)
        due = time.monotonic() - self._said > QUIET_EVERY_S or step == total
        if not self._console.is_terminal and due and step != self._shown:
            self._said, self._shown = time.monotonic(), step
            left = (total - step) * (self._last.get("step_s") or 0) if total else 0
            eta = f" · {duration(left)} left" if left else ""
            self._console.print(f"step {step}{f' of {total}' if total else ''}: {figures}{eta}")

    def _silence(self) -> str:
        silence = self.pulse.look()
        running = self._folder.status().get("state") == "running"
        if not running or silence is None or (silence.gone_s <= GONE_S and silence.still_s <= SILENT_S):
            return ""
        if silence.gone_s > GONE_S:
            said = f"nothing has written its heartbeat for {duration(silence.gone_s)}"
        else:
            said = f"it has not moved for {duration(silence.still_s)}"
        return "; ".join(
            part for part in (f"the run says running, but {said}", who_stalls(self._folder.path)) if part
        )


class _Tail:
    """The new lines of a file of JSON lines, at each call."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() and not from_start else 0

    def new(self) -> list[dict[str, Any]]:
        """Return the objects of whole lines that were added; one that a full disk or a kill tore is left out."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as f:
            f.seek(self._offset)
            data = f.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        out = []
        for line in whole.split(b"\n"):
            with suppress(ValueError, RecursionError):
                if isinstance(value := json.loads(line), dict):
                    out.append(value)
        return out


def watch(run_dir: Path, console: Console) -> str:
    """Follow a run until its status is no longer running; return the status. One that was submitted is waited for.

    Raises:
        UserError: When there is no such folder.
    """
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir} is not a folder, so there is no run to follow; name one under run_root, such as runs/demo"
        )
    if not any((run_dir / name).is_file() for name in (*MARKS, "heartbeat", f"{FOLDER}/jobs.json")):
        raise UserError(
            f"{run_dir} is no run folder (it has none of {', '.join(MARKS)}), so there is no run to follow; "
            "name one under run_root, such as runs/demo"
        )
    folder = RunFolder(run_dir)
    told = False
    if folder.status().get("state") == "running" and (now := who_stalls(run_dir)):
        console.print(now, soft_wrap=True, markup=False)
    with Watcher(folder, console, from_start=True) as watcher:
        while True:
            watcher.poll()
            state = str(folder.status().get("state", "not started"))
            if state == "not started" and _is_coming(folder, watcher.pulse):
                if not told:
                    console.print(
                        "not started yet; squeue --me shows its jobs, Ctrl-C ends this command only"
                    )
                told = True
                time.sleep(1.0)
                continue
            if state == "running" and watcher.silent:
                state = "silent"
            if state != "running":
                watcher.poll()
                return state
            time.sleep(1.0)


def _is_coming(folder: RunFolder, pulse: Pulse) -> bool:
    """Say whether a run without a status will have one: it was submitted, or is between two attempts."""
    silence = pulse.look()
    return silence.still_s <= SILENT_S if silence else (folder.path / FOLDER / "jobs.json").is_file()
