"""torchrun with our signals: `python -m sft_dist.cluster.agent <arguments of torchrun>`, started by launch/node.sh.

    TERM, HUP     the ranks are asked to stop with a checkpoint (USR1, and control/stop for those that have no handler yet).
                  It comes from a person, or from the kernel because launch/node.sh has ended.
    QUIT, or a second TERM or HUP, or ranks that do not stop within STOP_S: torchrun ends the ranks

The ranks end with this process (core/parent.py).
"""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from sft_dist.core.parent import AGENT, end_with_parent

STOP_S = 1800.0  # a step, an evaluation and a checkpoint


def main() -> None:
    """Run torchrun in this process."""
    end_with_parent(signal.SIGTERM, os.getppid())
    os.environ[AGENT] = str(os.getpid())
    asked: list[float] = []

    def on_stop(number: int, _frame: FrameType | None) -> None:
        asked.append(time.monotonic())
        if len(asked) > 1:
            _end_ranks(number)
        _ask_ranks()
        timer = threading.Timer(STOP_S, os.kill, (os.getpid(), signal.SIGQUIT))
        timer.daemon = True
        timer.start()

    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, on_stop)
    signal.signal(signal.SIGQUIT, lambda number, _frame: _end_ranks(number))
    if "-m" in sys.argv:  # the module of the ranks; torchrun's own options have no such flag before it
        sys.argv.insert(sys.argv.index("-m") + 1, "sft_dist.core.parent")
    sys.argv[0] = "torchrun"
    runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)


def _ask_ranks() -> None:
    if folder := os.environ.get("RUN_DIR"):
        try:
            (Path(folder) / "control" / "stop").write_text(f"{time.time():.0f}\n")
        except OSError as error:  # gone, or full: the signal is left
            sys.stderr.write(f"{folder}/control/stop cannot be written ({error})\n")
    for task in Path("/proc/self/task").glob("*/children"):
        for child in task.read_text().split():
            os.kill(int(child), signal.SIGUSR1)


def _end_ranks(number: int) -> None:
    """Let torchrun end its ranks, by the exception that its own handlers raise; before it has any, just end."""
    if not isinstance(sys.modules.get("torch"), type(sys)):
        os._exit(128 + number)
    module = importlib.import_module("torch.distributed.elastic.multiprocessing.api")
    error: Callable[..., Exception] = module.SignalException
    raise error(f"ended by {signal.Signals(number).name}", signal.SIGTERM)


if __name__ == "__main__":
    main()
