"""A process that ends when its parent does, whatever ended the parent: kill -9 included. Linux; elsewhere nothing changes."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

AGENT = "SFT_AGENT"  # set by cluster/agent.py: the process number of the torchrun that started this rank
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: int = signal.SIGKILL, parent: int | None = None) -> None:
    """Ask the kernel to send this process a signal when the parent (the thread that started it) ends.

    Args:
        number: The signal.
        parent: The process that started this one; when another is the parent by now, it has ended, and so does this one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if parent is not None and os.getppid() != parent:  # it ended before the kernel was asked
        os.kill(os.getpid(), number)


def main() -> None:
    """Run a module as a rank: `python -m sft_dist.core.parent MODULE ARGUMENTS`; it ends at once when its torchrun does.

    Nothing slow is imported before the kernel was asked, so a rank that is still starting ends, too.
    """
    if agent := os.environ.pop(AGENT, ""):  # what a rank starts itself has another parent
        end_with_parent(signal.SIGKILL, int(agent))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
