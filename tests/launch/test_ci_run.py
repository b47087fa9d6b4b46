""".ci/run: every phase runs, the last line is pytest's over all of them, a failure anywhere is the exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = REPOSITORY / ".ci" / "run"


@pytest.fixture
def ci(tmp_path):
    """Run .ci/run with a `make` that prints given lines and a machine that has Slurm (or has not)."""
    (tmp_path / "bin").mkdir()

    def add(name: str, text: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*, slurm: bool = True, **phases: tuple[str, int]) -> subprocess.CompletedProcess:
        add("id", "echo 1000")
        for name in ("slurmctld", "munged", "ip") if slurm else ():
            add(name, "true")
        cases = [
            f'{target.replace("_", "-")}) echo "{line}"; exit {code} ;;'
            for target, (line, code) in phases.items()
        ]
        add("make", f'echo "make $1" >> "{tmp_path}/calls"\ncase $1 in\n' + "\n".join(cases) + "\nesac")
        path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
        return subprocess.run(
            ["bash", RUN],
            env={"PATH": path, "CI": "true", "HOME": os.environ.get("HOME", "/")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    run.calls = lambda: (tmp_path / "calls").read_text().split("\n")[:-1]
    return run


def last_line(done: subprocess.CompletedProcess) -> str:
    return re.sub(r"in \d+\.00s$", "in Ns", done.stdout.splitlines()[-1])


def test_all_well(ci):
    done = ci(
        test=("==== 50 passed, 2 skipped, 9 deselected, 1 warning in 61.20s (0:01:01) ====", 0),
        test_cluster=("16 passed, 50 deselected in 300.00s (0:05:00)", 0),
        test_slow=("\033[32m3 passed\033[0m, 60 deselected in 9.00s", 0),
    )
    assert (done.returncode, last_line(done)) == (0, "69 passed, 2 skipped in Ns")
    assert ci.calls() == ["make test", "make test-cluster", "make test-slow"]


def test_a_failure_in_any_phase_fails_but_the_others_still_run(ci):
    done = ci(
        test=("2 failed, 48 passed in 60.00s", 2),
        test_cluster=("16 passed in 300.00s", 0),
        test_slow=("1 failed, 2 errors in 9.00s", 2),
    )
    assert (done.returncode, last_line(done)) == (1, "3 failed, 64 passed, 2 errors in Ns")
    assert len(ci.calls()) == 3


def test_a_phase_that_breaks_off_or_lint_alone_counts_as_an_error(ci):
    done = ci(
        test=("50 passed in 60.00s", 2), test_cluster=("Killed", 137), test_slow=("3 passed in 9.00s", 0)
    )
    assert (done.returncode, last_line(done)) == (1, "53 passed, 2 errors in Ns")


@pytest.mark.skipif(
    any(Path(p).exists() for p in ("/usr/bin/slurmctld", "/bin/slurmctld")),
    reason="Slurm lies on the basic path",
)
def test_without_slurm_or_root_the_reason_is_said(ci):
    done = ci(slurm=False, test=("50 passed in 60.00s", 0), test_slow=("3 passed in 9.00s", 0))
    assert (done.returncode, last_line(done)) == (0, "53 passed in Ns")
    assert "cluster tests skipped: Slurm is not installed, and installing it needs root" in done.stdout
    assert ci.calls() == ["make test", "make test-slow"]


@pytest.mark.parametrize(("left_s", "outcome"), [(-1, "1 skipped"), (470, "1 skipped"), (3600, "1 passed")])
def test_nothing_begins_that_may_not_end_in_time(left_s, outcome):
    environment = {**os.environ, "SFT_END_BY": str(time.time() + left_s)}
    test = f"{__file__}::test_last_line_is_what_it_says"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", test],
        env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert outcome in done.stdout
    assert ("no time was left for it (SFT_END_BY)" in done.stdout) == (outcome == "1 skipped")


def test_last_line_is_what_it_says():
    """Begun by the test above."""
    done = subprocess.CompletedProcess([], 0, stdout="x\n1 passed in 12.00s\n")
    assert last_line(done) == "1 passed in Ns"
