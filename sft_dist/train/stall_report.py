"""What a rank that makes no progress says of itself: where its main thread stands, on which host, since when.

A thread of its own asks, so it works while the main thread waits inside a collective. A rank that is frozen as a whole
says nothing: that is how others tell it from those that wait for it (core/heartbeat.py).
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from sft_dist.core.files import write_json
from sft_dist.core.heartbeat import stall_file

PACKAGE = f"{os.sep}sft_dist{os.sep}"
UNKNOWN = "start or end of the run"
REDUCTION = "the reduction of a step's sums"

# (part of the path, function or "" for any) -> phase, looked for from the innermost frame of ours outwards
PHASES = {
    ("train/metrics.py", "reduce"): REDUCTION,
    ("train/zero.py", "update"): "the optimizer's update",
    ("train/loop.py", "prefetched"): "waiting for data",
    ("train/evaluate.py", ""): "evaluation",
    ("checkpoint/", ""): "a checkpoint",
    ("model/load.py", ""): "loading the model",
    ("pipelines/train/engine.py", ""): "loading the model",
    ("train/loop.py", "run"): "forward and backward",
}
PHASE_NAMES = (*dict.fromkeys(PHASES.values()), UNKNOWN)

# Frames inside of which a rank waits for others: part of the path, function or "" for any.
COLLECTIVES = (
    (f"{os.sep}torch{os.sep}distributed{os.sep}", ""),
    (f"{os.sep}deepspeed{os.sep}comm{os.sep}", ""),
    (f"{os.sep}deepspeed{os.sep}", "wait"),
)


class Place(NamedTuple):
    """Where a stack stands: the phase; the innermost line of ours, with that of others below it; whether it waits for ranks."""

    phase: str
    at: str
    waits: bool


def place_of(frame: FrameType | None) -> Place:
    """Return where a stack stands; `at` is such as `train/loop.py:102 run > hooks.py:8 forward`."""
    own: list[tuple[str, str, int]] = []
    inner, waits = "", False
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if PACKAGE in file:
            own.append((file.rsplit(PACKAGE, 1)[1].replace(os.sep, "/"), name, frame.f_lineno))
        elif not own:
            inner = inner or f"{Path(file).name}:{frame.f_lineno} {name}"
            waits = waits or any(part in file and function in ("", name) for part, function in COLLECTIVES)
        frame = frame.f_back
    at = f"{own[0][0]}:{own[0][2]} {own[0][1]}" if own else "outside of sft_dist"
    at = f"{at} > {inner}" if inner else at
    for file, name, _ in own:
        for (part, function), phase in PHASES.items():
            if file.startswith(part) and function in ("", name):
                return Place(phase, at, waits or phase == REDUCTION)
    return Place(UNKNOWN, at, waits)


def main_thread() -> FrameType | None:
    """Return the innermost frame of the main thread."""
    return sys._current_frames().get(threading.main_thread().ident or 0)  # noqa: SLF001  CPython's own way


def write_stall_report(run_dir: Path, rank: int, silent_s: float) -> None:
    """Write where this rank stands, after so many seconds without progress."""
    place = place_of(main_thread())._asdict()
    write_json(
        stall_file(run_dir, rank),
        {"rank": rank, "host": socket.gethostname(), **place, "silent_s": round(silent_s, 1)},
    )
