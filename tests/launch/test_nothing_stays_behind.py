"""Real processes: the command, launch/node.sh, torchrun and two ranks. Whichever is killed, the others end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMMAND = """
import sys
from pathlib import Path
from sft_dist.cluster.local_ranks import run_ranks
from sft_dist.core.runfolder import RunFolder
code = run_ranks(RunFolder(Path(sys.argv[1])), "victim_rank", nproc=2, port=None, watch=lambda: None)
Path(sys.argv[1], "code").write_text(str(code))
"""


def until(there: Callable[[], bool]) -> None:
    """Wait; how long is the machine's business, a hang is pytest's time-out."""
    while not there():
        time.sleep(0.05)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("victim", "number", "interrupt"),
    [
        ("command", signal.SIGKILL, signal.SIG_DFL),
        ("script", signal.SIGKILL, signal.SIG_DFL),
        ("torchrun", signal.SIGKILL, signal.SIG_DFL),
        ("command", signal.SIGTERM, signal.SIG_DFL),
        ("command", signal.SIGTERM, signal.SIG_IGN),  # in the background of a script
        ("torchrun", signal.SIGHUP, signal.SIG_DFL),
    ],
)
def test_every_process_ends_when_one_is_killed(
    tmp_path: Path, victim: str, number: signal.Signals, interrupt: signal.Handlers
) -> None:
    (tmp_path / "control").mkdir()
    env = os.environ | {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path)],
        env=env,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),  # noqa: PLW1509  one system call
    )
    pids = {"command": command.pid}
    for rank in range(2):
        until((tmp_path / f"rank-{rank}.pid").exists)
        pids[f"rank {rank}"] = int((tmp_path / f"rank-{rank}.pid").read_text())
    pids["torchrun"] = parent_of(pids["rank 0"])
    pids["script"] = parent_of(pids["torchrun"])
    assert parent_of(pids["script"]) == command.pid
    os.kill(pids[victim], number)
    command.wait()
    until(lambda: not any(alive(pid) for pid in pids.values()))
    if victim != "torchrun" or number != signal.SIGKILL:  # the ranks were asked for a checkpoint, not killed
        assert (tmp_path / "asked-0").exists()
        assert (tmp_path / "asked-1").exists()
        assert (tmp_path / "control" / "stop").exists()
