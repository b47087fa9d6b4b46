"""A window of optimizer steps -> a trace that chrome://tracing or Perfetto opens: rank 0, CPU and GPU activities."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Profiler:
    """Records optimizer steps `first` to `last` (one-based, both included) and writes one trace.

    Args:
        window: (first, last), or None: nothing is recorded.
        folder: Where the trace is written; made when it is.
        done: Steps that are already done.
    """

    def __init__(self, window: tuple[int, int] | None, folder: Path, *, done: int) -> None:
        self._window = window
        self._folder = folder
        self._running: Any = None
        self._last = done
        self.after(done)

    def after(self, step: int) -> None:
        """Take note that optimizer step `step` is done: start before the first of the window, end after its last."""
        if self._window is None:
            return
        self._last = step
        first, last = self._window
        if self._running is None and step == first - 1:
            self._start()
        elif step >= last:
            self.close()

    def close(self) -> None:
        """Write what has been recorded, if anything."""
        if self._running is None or self._window is None:
            return
        self._running.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._running.export_chrome_trace(str(self._folder / f"steps-{self._window[0]}-{self._last}.json.gz"))
        self._running = None

    def _start(self) -> None:
        import torch
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self._running = profile(activities=kinds)
        self._running.start()
