"""Requests to stop or save, heard on any rank and agreed on by all; heartbeat; what to do with non-finite steps."""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Self

from sft_dist.core.runfolder import RunFolder

HEARTBEAT_S = 5.0


class Requests:
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
    """Touches the heartbeat file while steps go on; silent when the loop has not moved for `limit_s`.

    A thread, so that a long evaluation or save does not look dead; bound to progress, so that a hang does.
    """

    def __init__(self, folder: RunFolder, limit_s: float = 600.0) -> None:
        self._folder, self._limit_s = folder, limit_s
        self._last = time.monotonic()
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
        self._last = time.monotonic()

    def _beat(self) -> None:
        while True:
            if time.monotonic() - self._last < self._limit_s:
                with suppress(OSError):  # a full disk must not end the run here
                    self._folder.heartbeat()
            if self._done.wait(HEARTBEAT_S):
                return
