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
from sft_dist.core.runfolder import SILENT_S, RunFolder
from sft_dist.report.formatting import duration
from sft_dist.report.run_files import MARKS

SHOWN = (("lr", "lr"), ("norm", "grad_norm"))  # title -> field of metrics.jsonl, beside loss and speed
QUIET_EVERY_S = 20.0  # without a terminal, a line this often


class Watcher:
    """Reads new lines of metrics.jsonl at each `poll` and shows them."""

    def __init__(self, folder: RunFolder, console: Console, *, from_start: bool = False) -> None:
        self._folder, self._console = folder, console
        self._offset = folder.metrics.stat().st_size if folder.metrics.exists() and not from_start else 0
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
        for line in self._new_lines():
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

    def _new_lines(self) -> list[dict[str, Any]]:
        path = self._folder.metrics
        if not path.exists():
            return []
        with path.open("rb") as f:
            f.seek(self._offset)
            data = f.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        out = []
        for line in whole.split(b"\n"):
            with suppress(ValueError, RecursionError):  # one that a full disk or a kill tore
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
    with Watcher(folder, console, from_start=True) as watcher:
        while True:
            watcher.poll()
            state = str(folder.status().get("state", "not started"))
            if state == "not started" and _is_coming(folder):
                if not told:
                    console.print(
                        "not started yet; squeue --me shows its jobs, Ctrl-C ends this command only"
                    )
                told = True
                time.sleep(1.0)
                continue
            if state == "running" and _silent_s(folder) > SILENT_S:
                state = f"silent: it says running, but its heartbeat is {_silent_s(folder):.0f} s old"
            if state != "running":
                watcher.poll()
                return state
            time.sleep(1.0)


def _is_coming(folder: RunFolder) -> bool:
    """Say whether a run without a status will have one: it was submitted, or is between two attempts."""
    begun = (folder.path / "heartbeat").exists()
    return _silent_s(folder) <= SILENT_S if begun else (folder.path / FOLDER / "jobs.json").is_file()


def _silent_s(folder: RunFolder) -> float:
    beat = folder.path / "heartbeat"
    return time.time() - beat.stat().st_mtime if beat.exists() else 0.0
