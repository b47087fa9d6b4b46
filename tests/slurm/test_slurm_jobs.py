"""The chain prepare -> train -> evaluate on a real Slurm, with the stand-in trainer."""

from __future__ import annotations

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
