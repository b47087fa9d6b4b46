"""This process: rank and world from the environment (torchrun's names), logger, CPU limit, shipped files. No torch."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """Where this process stands. One process alone is rank 0 of 1."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def is_main(self) -> bool:
        """True on the one process that writes shared files."""
        return self.rank == 0


def current() -> Process:
    """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE."""
    env = {
        k: int(os.environ.get(k, d))
        for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    }
    return Process(
        rank=env["RANK"],
        world_size=env["WORLD_SIZE"],
        local_rank=env["LOCAL_RANK"],
        local_world_size=env["LOCAL_WORLD_SIZE"],
    )


def logger(name: str = "sft_dist") -> logging.Logger:
    """Return the logger of a module of the package: INFO on rank 0, WARNING on the others, the rank in every line of several.

    `python -m` gives a module the name __main__, which lies outside the package: its spec knows the true one.
    """
    spec = sys.modules["__main__"].__spec__ if name == "__main__" else None
    log = logging.getLogger(spec.name if spec else name)
    root = logging.getLogger("sft_dist")
    if not root.handlers:
        me = current()
        handler = _Stderr()
        prefix = f"[rank {me.rank}] " if me.world_size > 1 and me.rank else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.setLevel(logging.INFO if me.is_main else logging.WARNING)
        root.propagate = False
    return log


class _Stderr(logging.Handler):
    """Writes to what `sys.stderr` is when a line is logged: a program that calls us, or a notebook, may exchange it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001  a line of a log ends no run
            self.handleError(record)


@contextmanager
def cpu_limit(seconds: float, error: Callable[[str], Exception]) -> Iterator[None]:
    """Raise `error` after `seconds` of this process' CPU time; in other threads than the main one, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal module's protocol
        raise error(f"it takes more than {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def resource(name: str) -> Path:
    """Return the folder `name`, from the repository of an editable install or from inside an installed wheel."""
    for root in (PACKAGE.parent, PACKAGE / "_resources"):
        if (root / name).is_dir() and (root != PACKAGE.parent or (root / "pyproject.toml").is_file()):
            return root / name
    raise FileNotFoundError(f"{name}/ lies neither beside the package nor inside it; reinstall sft-dist")
