"""`sft-dist submit` on a real Slurm: the whole chain from one command, with the project itself made small."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from slurm_machine import Cluster, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture
def profiles(tmp_path) -> Path:
    """The user's folder of site profiles, with one for the cluster of these tests."""
    folder = tmp_path / "clusters"
    folder.mkdir()
    profile = {
        "time": "00:10:00",
        "signal_s": 20,
        "env": {"OMP_NUM_THREADS": "1", "POLL_S": "0.5"},
        "run_root": str(tmp_path / "runs"),
        "prepare": {"time": "00:05:00", "cpus_per_task": 1},
        "evaluate": {"time": "00:05:00"},
    }
    (folder / "two.yaml").write_text(yaml.safe_dump(profile))
    return folder


def submit(cluster: Cluster, folder: Path, *overrides: str) -> str:
    """Run the command where Slurm's clients work; return what it printed."""
    settings = [
        "cluster=two",
        "name=small",
        f"data.dir={folder / 'data'}",
        "data.sources.demo.examples_per_task=40",
        "data.shard_examples=200",
        "launch.nproc=1",
        "launch.nodes=2",
        "train.tokens_per_step=2048",
        "eval.max_examples_per_task=1",
        "eval.max_new_tokens=2",
    ]
    return cluster.call(
        *(sys.executable, "-m", "sft_dist", "submit", "experiment=demo", *settings, *overrides),
        cwd=folder,
        SFT_DIST_CLUSTERS=str(folder / "clusters"),
    )


def jobs_of(run: Path) -> dict[str, str]:
    return json.loads((run / "slurm" / "jobs.json").read_text())


def logs(run: Path) -> str:
    return "\n".join(f"{p.name}:\n{p.read_text()}" for p in sorted((run / "slurm").glob("*.out")))


def test_one_command_from_data_to_scores(cluster: Cluster, tmp_path, profiles):
    said = submit(cluster, tmp_path, "submit.prepare_tasks=2", "submit.evaluate=true", "submit.doctor=true")
    run = tmp_path / "runs" / "small"
    jobs = jobs_of(run)
    assert list(jobs) == ["facts", "selection", "slices", "stores", "train", "evaluate"]
    assert f"sft-dist watch {run}" in said
    assert f"job {jobs['train']}" in said
    shown = cluster.show(jobs["train"])
    assert (shown["JobName"], shown["NumNodes"][0], shown["TimeLimit"]) == ("small", "2", "00:10:00")

    assert cluster.wait(jobs["stores"], timeout_s=180)["JobState"] == "COMPLETED", logs(run)
    metrics = run / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2, timeout_s=240)
    cluster.call("scancel", "--signal=USR1", "--batch", jobs["train"])
    for name in ("train", "evaluate"):
        assert cluster.wait(jobs[name], timeout_s=400)["JobState"] == "COMPLETED", logs(run)
    assert "doctor: fit for training" in logs(run)
    assert cluster.show(jobs["train"])["Restarts"] == "1"  # and went on with what it was submitted with
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"train"' in line]
    assert steps == list(range(1, steps[-1] + 1))
    assert json.loads((run / "config.json").read_text())["launch"]["nodes"] == 2
    assert list((run / "eval").rglob("*.json*"))
    assert len(list((run / "slurm").glob("small-slices-*.out"))) == 2


def test_a_run_in_the_queue_is_not_submitted_again(cluster: Cluster, tmp_path, profiles):
    profile = profiles / "two.yaml"
    profile.write_text(profile.read_text() + "gpus_per_node: 2\ngpu_request: gres\n")
    submit(cluster, tmp_path, "submit.prepare_tasks=1", "submit.sbatch=['--hold']")
    run = tmp_path / "runs" / "small"
    jobs = jobs_of(run)
    assert "gpu:2" in cluster.show(jobs["train"])["TresPerNode"]
    assert "gpu" not in cluster.show(jobs["slices"] + "_0").get("TresPerNode", "")
    with pytest.raises(AssertionError, match="its job .* has not ended"):
        submit(cluster, tmp_path, "submit.prepare_tasks=1")
    cluster.call("scancel", *jobs.values())


def test_a_refused_job_takes_the_others_with_it(cluster: Cluster, tmp_path, profiles):
    with pytest.raises(AssertionError, match=r"error: sbatch refused .*train.sbatch .*submit section"):
        submit(cluster, tmp_path, "submit.prepare_tasks=1", "submit.sbatch=['--partition=nowhere']")
    wait_until(lambda: not cluster.call("squeue", "-h", "-n", "small-slices,small-stores,small"))
