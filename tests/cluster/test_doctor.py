"""What a node finds out about itself, who is heard and who is missed, and one machine from end to end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from sft_dist.cluster.doctor import checks
from sft_dist.cluster.doctor.diagnose import checks_of, compare_versions, diagnose_steps
from sft_dist.cluster.doctor.rendezvous import (
    RendezvousClient,
    RendezvousServer,
    make_secret,
    read_secret,
)
from sft_dist.cluster.local_ranks import free_port
from sft_dist.pipelines.cluster.doctor import Place, _unseen
from sft_dist.pipelines.cluster.doctor_step import rounds

SMALL = [
    "experiment=demo",
    "model.shape.layers=1",
    "pack.seq_len=64",
    "train.tokens_per_step=512",
    "launch.nproc=1",
]


def test_disk_free_space_and_failures(tmp_path):
    assert checks.disk("run_root", tmp_path).level in ("pass", "warn")  # warn: a slow disk
    assert list(tmp_path.iterdir()) == []
    short = checks.disk("run_root", tmp_path, need_bytes=1 << 60)
    assert (short.level, "keep_last" in short.remedy) == ("fail", True)
    (tmp_path / "file").touch()
    broken = checks.disk("data.dir", tmp_path / "file" / "below")
    assert (broken.level, broken.remedy) == ("fail", "set data.dir to a disk that this node can write")


@pytest.mark.parametrize(("offset_s", "level"), [(0.1, "pass"), (-3.0, "warn"), (100.0, "fail")])
def test_clock(offset_s, level):
    assert checks.clock(offset_s).level == level


def test_interface():
    assert checks.network("127.0.0.1", several=False).level == "pass"
    assert (
        checks.network("127.0.0.1", several=True).level == "fail"
    )  # several nodes cannot meet on a loopback


def test_an_interface_that_this_node_lacks(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib9")
    found = checks.network("127.0.0.1", several=True)
    assert (found.level, "ib9 is not on this node (lo" in found.found) == ("fail", True)


def test_a_broken_package_is_one_failed_check(tmp_path, monkeypatch):
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").write_text("raise ImportError('undefined symbol: planted')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found, versions = checks.packages()
    broken = next(c for c in found if c.name.startswith("deepspeed"))
    assert (broken.level, broken.found) == ("fail", "ImportError: undefined symbol: planted")
    assert "torch" in versions


def test_the_silent_node_is_missed_and_the_clock_is_compared(tmp_path):
    port, secret = free_port(), tmp_path / "secret"
    desk = RendezvousServer(port, make_secret(secret))
    visitor = RendezvousClient("127.0.0.1", port, index=1, secret_file=secret, wait_s=5)
    assert abs(visitor.clock_offset_s()) < 0.5
    visitor.send(1, {"host": "a"})
    assert desk.collect(1, {1, 2}, wait_s=0.5) == {1: {"host": "a"}}  # 2 never came
    threading.Timer(0.1, desk.broadcast, [{"verdict": 1}]).start()
    assert visitor.receive(5) == {"verdict": 1}
    assert desk.address == "127.0.0.1"


def test_a_stranger_is_not_heard_and_gives_no_orders(tmp_path):
    port, ours, theirs = free_port(), tmp_path / "secret", tmp_path / "guessed"
    desk = RendezvousServer(port, make_secret(ours))
    make_secret(theirs)
    with pytest.raises(OSError, match=r"hung up|signed|reset"):
        RendezvousClient("127.0.0.1", port, index=1, secret_file=theirs, wait_s=0.2)
    assert desk.collect(1, {1}, wait_s=0.2) == {}
    forged = free_port()
    impostor = RendezvousServer(forged, theirs.read_text())
    with pytest.raises(OSError, match=r"hung up|signed|reset"):
        RendezvousClient("127.0.0.1", forged, index=1, secret_file=ours, wait_s=0.2)
    assert impostor.collect(1, {1}, wait_s=0.2) == {}


def test_a_line_without_end_or_heard_before_is_not_read(tmp_path):
    port, secret = free_port(), tmp_path / "secret"
    desk = RendezvousServer(port, make_secret(secret))
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.settimeout(10)
        stranger.sendall(b"0" * 32 + b"\n" + b"x" * (1 << 21))
        with suppress(ConnectionError):
            while stranger.recv(1 << 16):
                pass
    visitor = RendezvousClient("127.0.0.1", port, index=1, secret_file=secret, wait_s=5)
    visitor._line._sent -= 1  # as one who repeats what was overheard
    visitor.send(1, {})
    assert desk.collect(1, {1}, wait_s=0.3) == {}


def test_a_secret_that_others_can_read_is_not_believed(tmp_path):
    secret = tmp_path / "secret"
    make_secret(secret)
    assert secret.stat().st_mode & 0o777 == 0o600
    secret.chmod(0o644)
    with pytest.raises(OSError, match="read by others"):
        read_secret(secret)


def test_alone_it_listens_on_loopback(tmp_path):
    desk = RendezvousServer(0, "s", alone=True)
    assert desk._server.getsockname()[0] == "127.0.0.1"


def test_rounds_meet_every_pair_once():
    assert rounds(2) == [[(0, 1)]]
    met = [pair for meeting in rounds(5) for pair in meeting]
    assert sorted(met) == [(a, b) for a in range(5) for b in range(a + 1, 5)]
    assert len(rounds(64)) == 7
    assert all(len(meeting) == 32 for meeting in rounds(64))


def result(*pairs: tuple[int, int, float]) -> dict:
    found = [{"nodes": [a, b], "gb_s": speed, "latency_us": 5.0} for a, b, speed in pairs]
    step = {"step_s": 1.0, "tokens": 8, "memory_bytes": 0, "loss": 1.0, "finite": True, "backend": "nccl"}
    return {"code": 0, "result": {"all": {"ranks": 3, "gb_s": 9.0, "latency_us": 7.0}, "pairs": found} | step}


def test_the_node_that_is_slow_with_most_is_named():
    steps = {0: result((0, 1, 10.0), (0, 2, 1.0)), 1: result((1, 2, 1.1)), 2: result()}
    judged = diagnose_steps(steps, [0, 1, 2], ["a", "b", "c"], "logs")
    levels = {i: {c.name: c.level for c in found}["pairs"] for i, found in judged.items()}
    assert levels == {0: "pass", 1: "pass", 2: "warn"}
    assert next(c for c in judged[2] if c.name == "pairs").found == "a 1.00 GB/s 5 us, b 1.10 GB/s 5 us"


def test_the_first_failure_of_a_common_step_is_the_cause():
    steps = {
        0: {"code": 1, "time": 20.0, "error": "connection reset"},
        1: {"code": 1, "time": 10.0, "error": "CUDA error: uncorrectable ECC"},
    }
    judged = diagnose_steps(steps, [0, 1, 2], ["a", "b", "c"], "logs")
    assert [(c.level, c.found) for found in judged.values() for c in found] == [
        ("warn", "ended with b"),
        ("fail", "CUDA error: uncorrectable ECC"),
        ("fail", "no answer"),
    ]


def test_versions_are_those_of_most_nodes():
    parts = {i: {"versions": {"torch": v}, "checks": []} for i, v in enumerate(("2.13", "2.12", "2.13"))}
    compare_versions(parts)
    assert [len(p["checks"]) for p in parts.values()] == [0, 1, 0]
    assert parts[1]["checks"][0]["found"] == "2.12; others have 2.13"


def test_a_node_that_says_nothing_fails():
    (check,) = checks_of(None, 180)
    assert (check.level, check.found) == ("fail", "none within 180 s")


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, ""),
        ({"SLURM_JOB_NUM_NODES": "1"}, ""),
        (
            {"SLURM_JOB_NUM_NODES": "4"},
            "all 4 nodes of the allocation: srun --ntasks-per-node=1 sft-dist doctor",
        ),
        ({"SLURM_JOB_NUM_NODES": "4", "WORLD_SIZE": "4", "RANK": "0", "MASTER_PORT": "2"}, ""),
    ],
)
def test_one_node_of_an_allocation_is_not_taken_for_all(monkeypatch, environment, said):
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _unseen(Place.find()).endswith(said)
    assert bool(_unseen(Place.find())) == bool(said)


def doctor(folder, *words: str, prefix: tuple[str, ...] = ()) -> tuple[int, dict]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*(prefix or (sys.executable,)), "-m", "sft_dist", "doctor", "--json", *words],
        env=environment | {"OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    start = done.stdout.find("{")
    assert start >= 0, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout[start:])


@pytest.mark.slow
def test_one_machine(tmp_path):
    code, said = doctor(tmp_path, *SMALL)
    (checks_found,) = said["nodes"].values()
    assert (code, said["fit"]) == (0, True), said
    assert "training step" in {c["name"] for c in checks_found}
    assert list((tmp_path / "runs").iterdir()) == []  # nothing is left behind


@pytest.mark.slow
def test_two_ranks_of_torchrun(tmp_path):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    code, said = doctor(tmp_path, *SMALL, prefix=torchrun)
    assert (code, list(said["nodes"])) == (0, ["rank 0", "rank 1"]), said
    names = [{c["name"] for c in found} for found in said["nodes"].values()]
    assert "clock" in names[1]
    assert {"training step", "all-reduce"} <= names[0]


@pytest.mark.slow
def test_a_model_that_cannot_train_fails_with_its_reason(tmp_path):
    code, said = doctor(tmp_path, *SMALL, "model.attention=flash")
    (found,) = said["nodes"].values()
    step = next(c for c in found if c["name"] == "training step")
    assert (code, step["level"]) == (1, "fail")
    assert "it needs a CUDA device" in step["found"]
