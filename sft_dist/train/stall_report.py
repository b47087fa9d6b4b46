"""What a rank that makes no progress says of itself: where its main thread stands, on which host, since when.

A thread of its own asks, so it works while the main thread waits inside a collective. A rank that is frozen as a whole
says nothing: that is how the launcher tells it from those that wait for it.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from sft_dist.core.files import write_json

PACKAGE = f"{os.sep}sft_dist{os.sep}"
UNKNOWN = "start or end of the run"

# (part of the path, function or "" for any) -> phase, looked for from the innermost frame of ours outwards
PHASES = {
    ("train/metrics.py", "reduce"): "the reduction of a step's sums",
    ("train/zero.py", "update"): "the optimizer's update",
    ("train/loop.py", "prefetched"): "waiting for data",
    ("train/evaluate.py", ""): "evaluation",
    ("checkpoint/", ""): "a checkpoint",
    ("model/load.py", ""): "loading the model",
    ("pipelines/train/engine.py", ""): "loading the model",
    ("train/loop.py", "run"): "forward and backward",
}


def phase_of(frame: FrameType | None) -> tuple[str, str]:
    """Return the phase that a stack stands in, and the innermost line of ours, such as `loop.py:102 run`."""
    own: list[tuple[str, str, int]] = []
    while frame is not None:
        file = frame.f_code.co_filename
        if PACKAGE in file:
            own.append(
                (file.rsplit(PACKAGE, 1)[1].replace(os.sep, "/"), frame.f_code.co_name, frame.f_lineno)
            )
        frame = frame.f_back
    at = f"{own[0][0]}:{own[0][2]} {own[0][1]}" if own else "outside of sft_dist"
    for file, name, _ in own:
        for (part, function), phase in PHASES.items():
            if file.startswith(part) and function in ("", name):
                return phase, at
    return UNKNOWN, at


def path_of(run_dir: Path, rank: int) -> Path:
    """Return the file in which a rank says that it makes no progress; slurm/train.sbatch reads it."""
    return run_dir / "logs" / f"silent-rank-{rank}.json"


def write_stall_report(run_dir: Path, rank: int, since: float) -> None:
    """Write where this rank stands. `since` is the time of its last progress, seconds since the epoch."""
    phase, at = phase_of(sys._current_frames().get(threading.main_thread().ident or 0))  # noqa: SLF001  CPython's own way
    facts = {
        "rank": rank,
        "host": socket.gethostname(),
        "phase": phase,
        "at": at,
        "silent_s": round(time.time() - since),
    }
    write_json(path_of(run_dir, rank), facts)
