"""Handles on the Slurm that conftest.py starts: submit, wait, cut a node's power."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
MACHINE = HERE / "machine"
FAKE = str(HERE / "fake")  # the stand-in for the package
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Two nodes with their own addresses and names; `root` holds Slurm's files, `local` a disk of each node."""

    root: Path
    environment: dict[str, str]
    proctrack: str

    def call(self, *command: str, cwd: Path | None = None, **environment: str) -> str:
        """Run a Slurm client; return what it prints."""
        done = subprocess.run(
            [str(self.root / "bin" / "s"), *command],
            cwd=cwd,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, folder: Path, *arguments: str, **environment: str) -> str:
        """Call sbatch in `folder`; return the job's number."""
        return self.call("sbatch", "--parsable", *arguments, cwd=folder, **environment)

    def show(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`."""
        words = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return dict(w.split("=", 1) for w in words if "=" in w)

    def wait(self, job: str, *states: str, timeout_s: float = 120) -> dict[str, str]:
        """Wait until the job is in one of `states` (default: it has ended); return its fields."""
        end = time.monotonic() + timeout_s
        while (fields := self.show(job))["JobState"] not in (states or ENDED):
            assert time.monotonic() < end, f"job {job} is still {fields['JobState']} after {timeout_s} s"
            time.sleep(0.5)
        return fields

    def power(self, command: str, node: int) -> None:
        """`crash` cuts a node's power, `up` switches it on again."""
        subprocess.run(
            ["bash", str(MACHINE / "node.sh"), command, str(node)],
            env=self.environment,
            check=True,
            timeout=30,
        )

    def idle(self, timeout_s: float = 60) -> None:
        """Wait until every node is idle."""
        end = time.monotonic() + timeout_s
        while len(set(self.call("sinfo", "-h", "-N", "-t", "idle", "-o", "%N").split())) < 2:
            assert time.monotonic() < end, self.call("sinfo", "-N")
            time.sleep(0.5)


def wait_until(condition, timeout_s: float = 90):
    """Poll until `condition()` is true and return its value."""
    end = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {timeout_s} s"
        time.sleep(0.2)
    return value
