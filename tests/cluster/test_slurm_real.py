"""The project itself on a real Slurm: two nodes, ZeRO-3, the embedded instruction set made small."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from slurm_machine import REPOSITORY, Cluster, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SCRIPT = str(REPOSITORY / "slurm" / "train.sbatch")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # sums in one order


def settings(folder: Path) -> list[str]:
    return [
        f"data.dir={folder / 'data'}",
        "data.sources.demo.examples_per_task=40",
        "launch.nproc=1",
        "train.epochs=3",
        "train.tokens_per_step=2048",
        "train.export=false",
        "checkpoint.save_every_steps=10",
    ]


def losses(run: Path) -> dict[int, tuple[float, float]]:
    """Return loss and gradient norm of each step; a step that was repeated after a restart counts as it was last."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"}


def rank_process(run: Path, rank: int) -> int:
    """Return the process number, as this machine sees it, of one rank of a run."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if (
            b"RANK=%d" % rank in environment
            and b"sft_dist.pipelines.rank" in command
            and str(run).encode() in command
        ):
            return int(process.name)
    raise AssertionError(f"no rank {rank} of {run}")


def test_unprepared_data_are_refused_with_the_command(cluster: Cluster, tmp_path):
    job = cluster.submit(tmp_path, SCRIPT, *settings(tmp_path))
    assert cluster.wait(job)["ExitCode"] == "2:0"
    assert "sft-dist prepare data.dir=" in (tmp_path / f"sft-{job}.out").read_text()


def test_preempted_and_broken_run_equals_an_undisturbed_one(cluster: Cluster, tmp_path):
    whole = cluster.submit(tmp_path, "--nodes=2", SCRIPT, *settings(tmp_path), PREPARE="1", **ONE_THREAD)
    assert cluster.wait(whole, timeout_s=300)["JobState"] == "COMPLETED", (
        tmp_path / f"sft-{whole}.out"
    ).read_text()
    expected = losses(tmp_path / "runs" / f"sft-{whole}")
    assert len(expected) > 25

    job = cluster.submit(tmp_path, "--nodes=2", SCRIPT, *settings(tmp_path), **ONE_THREAD)
    run, log = tmp_path / "runs" / f"sft-{job}", tmp_path / f"sft-{job}.out"
    wait_until(lambda: 12 in losses(run), timeout_s=180)
    cluster.call("scancel", "--signal=USR1", "--batch", job)  # as Slurm does before the time limit
    wait_until(lambda: 23 in losses(run), timeout_s=240)
    assert cluster.show(job)["Restarts"] == "1"
    os.kill(rank_process(run, 1), signal.SIGKILL)
    lost = time.monotonic()
    wait_until(lambda: "attempt 1.1 ended" in log.read_text(), timeout_s=60)  # not a collective's time-out
    assert time.monotonic() - lost < 60
    assert cluster.wait(job, timeout_s=300)["JobState"] == "COMPLETED", log.read_text()
    assert losses(run) == expected  # to the last bit
