"""Children of a warm process that run real commands and are killed: imports cost seconds, a fork nothing.

Each child leads a session of its own, so one kill ends it with the workers that it started, as a power cut would.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path


def start(work: Callable[[], int], log: Path, **environment: str) -> int:
    """Run `work` in a child; return its process id, which is that of its group too."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        with log.open("ab", buffering=0) as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ.update(environment)
        code = work()
    except BaseException:  # noqa: BLE001  it ends in os._exit: the parent sees the code, the log the traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end(pids: list[int], at_s: float) -> bool:
    """Wait for the children until `at_s` seconds from now, then kill -9 those that live; return whether any lived."""
    until = time.monotonic() + at_s
    ended: dict[int, int] = {}
    while time.monotonic() < until and len(ended) < len(pids):
        for pid in (p for p in pids if p not in ended):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    assert not any(ended.values()), f"a child failed by itself: {ended}"
    alive = [p for p in pids if p not in ended]
    for pid in alive:
        os.killpg(pid, signal.SIGKILL)
    for pid in alive:
        os.waitpid(pid, 0)
    return bool(alive)


def codes(pids: list[int]) -> list[int]:
    """Wait for children that may fail; return their exit codes."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def finish(pids: list[int], limit_s: float = 300.0) -> float:
    """Wait for children that must succeed; return the seconds."""
    began = time.monotonic()
    assert not end(pids, limit_s), f"not done within {limit_s} s"
    return time.monotonic() - began


CHANGES = (
    "os.rename",
    "os.link",
    "os.symlink",
    "os.remove",
    "os.rmdir",
)  # audit events of calls that change what a folder names


def note_changes(out: Path, work: Callable[[], int]) -> int:
    """Do the work in this child; write what kind of change to a folder each was: the call, the place in our code, the names without numbers."""
    kinds: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES:
            frame, places = sys._getframe(), []
            while frame.f_back is not None:
                frame = frame.f_back
                if "sft_dist" in frame.f_code.co_filename:
                    places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            names = [re.sub(r"[0-9a-f]{8,}|[0-9]+", "#", Path(str(a)).name) for a in arguments[:2]]
            kinds.append(" ".join([event, *names, *places[:4]]))

    sys.addaudithook(watch)
    code = work()
    out.write_text(json.dumps(kinds))
    return code


def die_at(change: int, work: Callable[[], int]) -> int:
    """Do the work in this child; kill its whole group just before the change of that number, from 0, to what folders name."""
    left = [change]

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event in CHANGES:
            left[0] -= 1
            if left[0] < 0:
                os.killpg(0, signal.SIGKILL)

    sys.addaudithook(watch)
    return work()
