"""`sft-dist doctor` on two real nodes: fit ones, one with a full disk, one with a broken package, the prologue of a job."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from slurm_machine import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SMALL = [
    "experiment=demo",
    "data.sources.demo.examples_per_task=5",
    "launch.nproc=1",
    "launch.nodes=2",
    "model.shape.layers=1",
    "pack.seq_len=64",
    "train.tokens_per_step=512",
]


@pytest.fixture
def second(cluster: Cluster) -> Iterator[str]:
    """The name of the second node; its local disk is empty before and after."""
    name = f"{cluster.environment['PFX']}-node2"
    yield name
    clean = f"umount {cluster.root}/local/* 2>/dev/null; rm -rf {cluster.root}/local/*"
    cluster.call("srun", "-w", name, "bash", "-c", clean)


def doctor(cluster: Cluster, folder: Path, **environment: str) -> dict:
    """Run it on both nodes; return its JSON, which the exit code must agree with."""
    command = [sys.executable, "-m", "sft_dist", "doctor", "--json", f"run_root={folder / 'runs'}", *SMALL]
    job = cluster.submit(
        folder,
        *("--nodes=2", "--ntasks-per-node=1", "--output=doctor.out", "--error=doctor.err"),
        *("--wrap", shlex.join(["srun", "--kill-on-bad-exit=1", *command])),
        OMP_NUM_THREADS="1",
        CUDA_VISIBLE_DEVICES="",
        **environment,
    )
    state = cluster.wait(job, timeout_s=400)["JobState"]
    text = (folder / "doctor.out").read_text()
    assert "{" in text, (folder / "doctor.err").read_text()
    said = json.loads(text[text.index("{") :])
    assert state == ("COMPLETED" if said["fit"] else "FAILED"), said
    return said


def found(said: dict, node: str, check: str) -> dict:
    return next(c for c in said["nodes"][node] if c["name"] == check)


def test_fit_nodes(cluster: Cluster, tmp_path, second):
    said = doctor(cluster, tmp_path)
    assert said["fit"], said
    first = second.replace("node2", "node1")
    assert list(said["nodes"]) == [first, second]
    assert found(said, second, "interface")["found"].startswith("eth0 towards")
    assert found(said, second, "clock")["level"] == "pass"
    assert f"{second} " in found(said, first, "pairs")["found"]
    assert "over 2 ranks (gloo)" in found(said, first, "all-reduce")["found"]
    assert found(said, second, "training step")["level"] == "pass"


def test_the_node_with_a_full_disk_is_named(cluster: Cluster, tmp_path, second):
    small = cluster.root / "local" / "small"
    cluster.call(
        "srun", "-w", second, "bash", "-c", f"mkdir -p {small} && mount -t tmpfs -o size=1m tmpfs {small}"
    )
    said = doctor(cluster, tmp_path, LOCAL_SCRATCH=str(small))
    assert said["bad_nodes"] == [second]
    full = found(said, second, "LOCAL_SCRATCH")
    assert (full["level"], "No space left" in full["found"]) == ("fail", True)


def test_the_prologue_names_the_node_with_a_broken_package(cluster: Cluster, tmp_path, second):
    site = cluster.root / "local" / "site"
    broken = "raise ImportError('undefined symbol: planted')"
    plant = f'mkdir -p {site}/deepspeed && echo "{broken}" > {site}/deepspeed/__init__.py'
    cluster.call("srun", "-w", second, "bash", "-c", plant)
    profiles = tmp_path / "clusters"
    profiles.mkdir()
    profile = {
        "time": "10",
        "prepare": {"time": "5"},
        "env": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(site)},
        "run_root": str(tmp_path / "runs"),
    }
    (profiles / "two.yaml").write_text(yaml.safe_dump(profile))
    settings = [
        "cluster=two",
        "submit.doctor=true",
        "submit.prepare_tasks=1",
        f"data.dir={tmp_path / 'data'}",
    ]
    cluster.call(
        *(sys.executable, "-m", "sft_dist", "submit", *SMALL, *settings),
        cwd=tmp_path,
        SFT_DIST_CLUSTERS=str(profiles),
    )
    slurm = tmp_path / "runs" / "demo" / "slurm"
    job = json.loads((slurm / "jobs.json").read_text())["train"]
    fields = cluster.wait(job, timeout_s=400)
    log = (slurm / f"demo-{job}.out").read_text()
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "1:0", "0"), log
    assert f"doctor: NOT FIT: {second}" in log
    assert "undefined symbol: planted" in log
    assert not (tmp_path / "runs" / "demo" / "metrics.jsonl").exists()
