"""Starts the ranks of one machine through launch/node.sh and shows how they are doing until they end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

from sft_dist.core.errors import UserError
from sft_dist.core.parent import end_with_parent
from sft_dist.core.process import resource
from sft_dist.core.runfolder import RunFolder

POLL_S = 0.5
TAIL_LINES = 25


def gpus() -> int:
    """Return the visible CUDA devices without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip()])
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=20)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def ranks_of(nproc: int | str) -> int:
    """Return the ranks to start on this machine."""
    return max(1, gpus()) if nproc == "auto" else int(nproc)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def log_file(folder: RunFolder, module: str) -> Path:
    """Return the file that keeps what rank 0 printed: train.log for pipelines.train.worker, by the package of the module."""
    return folder.path / "logs" / f"{module.split('.')[-2:][0]}.log"


def run_ranks(
    folder: RunFolder, module: str, *, nproc: int, port: int | None, watch: Callable[[], object]
) -> int:
    """Run `module` under torchrun on this machine; return the launcher's exit code.

    Ctrl-C, TERM or HUP once asks the ranks to stop with a checkpoint; twice ends them. They end with this process, too.

    Args:
        folder: The run folder; the ranks' output goes below its logs/.
        module: Python module of a rank; it gets `--run-dir`.
        nproc: Ranks.
        port: Rendezvous port; None takes a free one.
        watch: Called every half second, to show progress.
    """
    script = resource("launch") / "node.sh"
    environment = {
        **os.environ,
        "RUN_DIR": str(folder.path),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port or free_port()),
        "NPROC": str(nproc),
        "PYTHON": sys.executable,
        "TOKENIZERS_PARALLELISM": "false",
    }
    console = log_file(folder, module)
    console.parent.mkdir(parents=True, exist_ok=True)
    with console.open("a") as output:
        command = ["bash", str(script), "-m", module, "--run-dir", str(folder.path)]
        # its own session: Ctrl-C reaches this process alone, which then asks politely
        with _as_interrupts(signal.SIGTERM, signal.SIGHUP):
            ranks = subprocess.Popen(
                command,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, signal.SIGTERM, os.getpid()),  # noqa: PLW1509  one system call
            )
            said = False
            while True:
                try:
                    code = ranks.poll()
                    watch()
                    if code is not None:
                        return code
                    time.sleep(POLL_S)
                except KeyboardInterrupt:
                    # node.sh asks the ranks, also those that do not listen yet, through control/stop; the second time it ends them.
                    # Not INT: where this command runs in the background of a script, INT is ignored, and bash cannot trap it then.
                    os.kill(ranks.pid, signal.SIGTERM)
                    if not said:
                        sys.stderr.write(
                            "\nstopping at the next step, with a checkpoint; once more to end at once\n"
                        )
                    said = True


@contextmanager
def _as_interrupts(*numbers: signal.Signals) -> Iterator[None]:
    """Take these signals for Ctrl-C; one that is ignored (nohup) stays ignored, and so it is in another thread than the main one."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    ours = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in numbers if ours and signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def failure(folder: RunFolder, module: str, code: int) -> UserError | RuntimeError:
    """Return the error for ranks that failed: the reason they gave, else the end of the log."""
    status = folder.status()
    if status.get("state") == "fatal" and "reason" in status:
        return UserError(status["reason"])
    log = log_file(folder, module)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    tail = "\n".join(lines[-TAIL_LINES:])
    return RuntimeError(
        f"the ranks ended with code {code}; the end of {log}:\n{tail}\n(the full output of every rank lies in {log.parent})"
    )


def mistake(folder: RunFolder, module: str) -> UserError | None:
    """Return a user's mistake that a rank wrote to its log, for ranks that keep no status."""
    log = log_file(folder, module)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    said = next((line.partition("error: ")[2] for line in reversed(lines) if "error: " in line[:24]), "")
    return UserError(said) if said else None
