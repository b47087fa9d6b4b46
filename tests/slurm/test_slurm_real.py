"""The project itself on a real Slurm: two nodes, ZeRO-3, the embedded instruction set made small."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from slurm_machine import REPOSITORY, Cluster, wait_until

from sft_dist.core.files import read_jsonl

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
    lines = read_jsonl(run / "metrics.jsonl")  # a line that is being written is left out
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"}


def damage_newest(run: Path) -> Path:
    """Turn a byte in the middle of the largest file of the newest checkpoint; return its folder."""
    newest = max((run / "checkpoints").glob("step-*"))
    with max(newest.iterdir(), key=lambda p: p.stat().st_size).open("r+b") as f:
        f.seek(f.seek(0, 2) // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 1]))
    return newest


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
            and b"sft_dist.pipelines.train.worker" in command
            and str(run).encode() in command
        ):
            return int(process.name)
    raise AssertionError(f"no rank {rank} of {run}")


def test_unprepared_data_are_refused_with_the_command(cluster: Cluster, tmp_path):
    job = cluster.submit(tmp_path, SCRIPT, *settings(tmp_path))
    assert cluster.wait(job)["ExitCode"] == "2:0"
    assert "sft-dist prepare data.dir=" in (tmp_path / f"sft-{job}.out").read_text()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory) -> tuple[Path, dict[int, tuple[float, float]]]:
    """Train on both nodes without any mishap; return the folder, whose stores others use, and the losses."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = cluster.submit(folder, "--nodes=2", SCRIPT, *settings(folder), PREPARE="1", **ONE_THREAD)
    assert cluster.wait(job, timeout_s=400)["JobState"] == "COMPLETED", log_of(folder, job)
    expected = losses(folder / "runs" / f"sft-{job}")
    assert len(expected) > 25
    return folder, expected


def log_of(folder: Path, job: str) -> str:
    return (folder / f"sft-{job}.out").read_text()


def start(
    cluster: Cluster,
    folder: Path,
    undisturbed,
    *options: str,
    words: tuple[str, ...] = (),
    **environment: str,
) -> tuple[str, Path]:
    """Submit the same run as the undisturbed one; return its job and run folder."""
    given = ONE_THREAD | environment
    job = cluster.submit(
        folder, *(options or ("--nodes=2",)), SCRIPT, *settings(undisturbed[0]), *words, **given
    )
    return job, Path(environment.get("RUN_DIR", folder / "runs" / f"sft-{job}"))


def test_preempted_twice_and_broken_equals_undisturbed(cluster: Cluster, tmp_path, undisturbed):
    job, run = start(cluster, tmp_path, undisturbed)
    wait_until(lambda: 4 in losses(run), timeout_s=240)
    for restarts, step in ((1, 6), (2, 14)):
        wait_until(lambda n=step: n in losses(run), timeout_s=240)
        cluster.call("scancel", "--signal=USR1", "--batch", job)  # as Slurm does before the time limit
        wait_until(lambda n=restarts: cluster.show(job)["Restarts"] == str(n), timeout_s=120)
    damaged = damage_newest(run)  # before the third attempt reads it
    wait_until(lambda: 23 in losses(run), timeout_s=240)
    os.kill(rank_process(run, 1), signal.SIGKILL)
    lost = time.monotonic()
    log = tmp_path / f"sft-{job}.out"
    wait_until(lambda: "attempt 2.1 ended" in log.read_text(), timeout_s=60)  # not a collective's time-out
    assert time.monotonic() - lost < 60
    assert cluster.wait(job, timeout_s=400)["JobState"] == "COMPLETED", log.read_text()
    assert losses(run) == undisturbed[1]  # to the last bit
    passed = [e["path"] for e in read_jsonl(run / "events.jsonl") if e["kind"] == "bad_checkpoint"]
    assert set(passed) == {damaged.name}


def test_second_job_on_the_run_folder_of_a_live_one_is_refused(cluster: Cluster, tmp_path, undisturbed):
    """By the batch script; and by the ranks themselves, where no batch script looks."""
    long = ("train.epochs=40",)  # it is to outlive both attempts, on a busy machine too
    job, run = start(cluster, tmp_path, undisturbed, "--nodes=1", words=long)
    wait_until(lambda: 3 in losses(run), timeout_s=240)
    second, _ = start(cluster, tmp_path, undisturbed, "--nodes=1", RUN_DIR=str(run))
    assert cluster.wait(second)["ExitCode"] == "2:0"
    assert f"belongs to job {job}" in log_of(tmp_path, second)
    beside = cluster.submit(
        *(tmp_path, "--nodes=1", "--wrap", f"bash {REPOSITORY}/launch/local.sh"),
        RUN_DIR=str(run), NPROC="1", ATTEMPT="9.9", **ONE_THREAD,
    )  # fmt: skip
    assert cluster.wait(beside, timeout_s=200)["JobState"] == "FAILED"
    assert "is in use by another run" in (tmp_path / f"slurm-{beside}.out").read_text()
    assert json.loads((run / "status.json").read_text())["state"] == "running"
    cluster.call("scancel", job)
    cluster.wait(job)
    cluster.idle()


def test_power_cut_equals_undisturbed(cluster: Cluster, tmp_path, undisturbed):
    job, run = start(cluster, tmp_path, undisturbed)
    wait_until(lambda: 13 in losses(run), timeout_s=240)
    cluster.power("crash", 2)
    try:
        wait_until(lambda: cluster.show(job)["Restarts"] != "0", timeout_s=180)
    finally:
        cluster.power("up", 2)
    assert cluster.wait(job, timeout_s=400)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert losses(run) == undisturbed[1]
    cluster.idle()


def test_hung_rank_is_ended_with_stacks_and_the_run_goes_on(cluster: Cluster, tmp_path, undisturbed):
    """Rank 1 freezes; rank 0 waits for it in a collective whose time-out is half an hour, and both are named."""
    job, run = start(cluster, tmp_path, undisturbed, HEARTBEAT_MAX="40", END_S="10")
    wait_until(lambda: 12 in losses(run), timeout_s=240)
    os.kill(rank_process(run, 1), signal.SIGSTOP)
    log = tmp_path / f"sft-{job}.out"
    wait_until(lambda: "no heartbeat" in log.read_text(), timeout_s=180)
    assert cluster.wait(job, timeout_s=400)["JobState"] == "COMPLETED", log.read_text()
    said = log.read_text()
    prefix = cluster.environment["PFX"]
    assert f"rank 1 on {prefix}-node2: says nothing" in said
    assert re.search(rf"rank 0 on {prefix}-node1: no progress in [a-z' ]+ \(\S+\.py:\d+ .+\)", said)
    attempt = run / "logs" / "attempt-0.1"
    stacks = "".join(p.read_text() for p in attempt.glob("node-0/*/attempt_0/0/stderr.log"))
    assert "most recent call first" in stacks
    assert "loop.py" in stacks  # where rank 0 stands
    assert losses(run) == undisturbed[1]
    cluster.idle()


def test_two_ranks_then_one_then_four(cluster: Cluster, tmp_path, undisturbed):
    """The same global batches in the same order, from checkpoints that were written by another number of ranks."""
    shared = str(tmp_path / "run")
    run = Path(shared)
    for options, nproc, until in (
        (("--nodes=2",), "1", 8),
        (("--nodes=1",), "1", 16),
        (("--nodes=2",), "2", None),
    ):
        job, _ = start(cluster, tmp_path, undisturbed, *options, RUN_DIR=shared, NPROC=nproc)
        if until:
            wait_until(lambda n=until: n in losses(run), timeout_s=240)
            (run / "control" / "stop").touch()
        assert cluster.wait(job, timeout_s=400)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    resumed = [(e["saved_world_size"], e["world_size"]) for e in events if e["kind"] == "resumed"]
    assert resumed == [(2, 1), (1, 4)]
    found, expected = losses(run), undisturbed[1]
    assert list(found) == list(expected)
    for step, (loss, norm) in expected.items():
        assert found[step] == pytest.approx((loss, norm), rel=1e-4), step
