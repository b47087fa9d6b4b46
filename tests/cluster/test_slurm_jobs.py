"""The chain prepare -> train -> evaluate and an array of trials on a real Slurm, with the stand-in trainer."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from slurm_machine import FAKE, REPOSITORY

pytestmark = pytest.mark.cluster
SLURM = REPOSITORY / "slurm"


def chain(cluster, folder: Path, *overrides: str) -> tuple[list[str], Path]:
    """Submit a chain; return its four jobs and the run folder."""
    run = folder / "chained"
    done = cluster.call(
        *("bash", str(SLURM / "chain.sh"), f"store={folder / 'store'}", *overrides),
        cwd=folder,
        SLICES="3",
        RUN_DIR=str(run),
        TRAIN_OPTIONS="--nodes=2",
        PYTHONPATH=FAKE,
    )
    follow = re.search(r"^follow .* (\S+)$", done, re.MULTILINE)
    return follow[1].split(","), run


@pytest.mark.timeout(300)
def test_chain(cluster, tmp_path):
    jobs, run = chain(cluster, tmp_path, "steps=10", "nproc=1")
    for job in jobs[1:]:
        assert cluster.wait(job, timeout_s=150)["JobState"] == "COMPLETED", [
            p.read_text() for p in tmp_path.glob("*.out")
        ]
    names = sorted(p.name for p in (tmp_path / "store").iterdir())
    assert names == ["manifest", "slice-0-of-3", "slice-1-of-3", "slice-2-of-3"]
    assert (run / "evaluated").exists()


@pytest.mark.timeout(300)
def test_chain_ends_when_training_fails(cluster, tmp_path):
    jobs, run = chain(cluster, tmp_path, "steps=10", "fatal=1", "nproc=1")
    assert cluster.wait(jobs[2], timeout_s=150)["JobState"] == "FAILED"
    assert cluster.wait(jobs[3])["JobState"] == "CANCELLED"
    assert not (run / "evaluated").exists()


@pytest.mark.timeout(300)
def test_sweep(cluster, tmp_path):
    """Trials run side by side on the same nodes; a failed one stops no other, and the same command repeats it alone."""
    (tmp_path / "rates.txt").write_text("lr=1\nlr=2 fatal=1\nlr=3\n")
    options = ("--array=1-3", "--nodes=1", "--cpus-per-task=2")
    command = (str(SLURM / "sweep.sbatch"), "rates.txt", "steps=20", "nproc=1")
    first = cluster.submit(tmp_path, *options, *command, PYTHONPATH=FAKE)
    states = [cluster.wait(f"{first}_{n}", timeout_s=150)["JobState"] for n in (1, 2, 3)]
    logs = [(tmp_path / f"sft-sweep-{first}_{n}.out").read_text() for n in (1, 2, 3)]
    assert states == ["COMPLETED", "FAILED", "COMPLETED"], logs
    runs = [tmp_path / "runs" / "rates" / f"trial-{n}" for n in (1, 2, 3)]
    assert [json.loads((run / "config.json").read_text())["lr"] for run in runs] == ["1", "2", "3"]
    assert (
        len({re.search(r"\(([0-9.]+:[0-9]+)\)", log)[1] for log in logs}) == 3
    )  # no two trials meet at one port

    (tmp_path / "rates.txt").write_text("lr=1\nlr=2\nlr=3\n")
    second = cluster.submit(tmp_path, *options, *command, PYTHONPATH=FAKE)
    for n in (1, 2, 3):
        assert cluster.wait(f"{second}_{n}", timeout_s=150)["JobState"] == "COMPLETED"
    again = [(tmp_path / f"sft-sweep-{second}_{n}.out").read_text() for n in (1, 2, 3)]
    assert ["has finished already" in log for log in again] == [True, False, True]
