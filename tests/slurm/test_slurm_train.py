"""slurm/train.sbatch on a real Slurm: two nodes, two ranks each, real signals, requeues and power cuts.

The trainer is the stand-in under fake/: the chain from signal to resume is what is tested here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

import pytest
from slurm_machine import FAKE, REPOSITORY, Cluster, wait_until

from sft_dist.cluster.slurm.sbatch import Job, render
from sft_dist.config.cluster import SiteProfile

pytestmark = pytest.mark.cluster
SCRIPT = str(REPOSITORY / "slurm" / "train.sbatch")


def train(
    cluster: Cluster, folder: Path, *overrides: str, options: tuple[str, ...] = (), **environment: str
) -> tuple[str, Path]:
    """Submit a run on both nodes; return its job and run folder."""
    job = cluster.submit(folder, "--nodes=2", *options, SCRIPT, *overrides, PYTHONPATH=FAKE, **environment)
    return job, Path(environment.get("RUN_DIR", folder / "runs" / f"sft-{job}"))


def steps_of(run: Path) -> list[int]:
    """Return the steps that were done, in the order in which they were done."""
    trace = run / "trace"
    return [int(line.split()[0]) for line in trace.read_text().splitlines()] if trace.exists() else []


def wait_for_step(run: Path, step: int) -> None:
    wait_until(lambda: step in steps_of(run))


def log_of(folder: Path, job: str) -> str:
    return (folder / f"sft-{job}.out").read_text()


def status_of(run: Path) -> dict:
    return json.loads((run / "status.json").read_text())


def rank_logs(run: Path, attempt: str, node: int) -> list[Path]:
    return sorted((run / "logs" / f"attempt-{attempt}" / f"node-{node}").glob("*/attempt_0/*/*.log"))


def test_two_nodes_finish(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=20")
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert status_of(run) == {"state": "finished", "step": 20}
    assert (run / "trace").read_text().splitlines()[-1] == "20 4"  # the all-reduce saw four ranks
    log = log_of(tmp_path, job)
    assert "0: [default0]:rank 0 on" in log
    assert "1: [default0]:rank 2 on" in log
    assert len(rank_logs(run, "0.1", 0)) == len(rank_logs(run, "0.1", 1)) == 4  # two ranks, stdout and stderr
    assert not list((cluster.root / "local").iterdir())


def test_environment_on_the_disk_of_each_node(cluster, tmp_path):
    """Packed on the login node, unpacked by each node on its own disk; the ranks run from there; old ones make room."""
    made = tmp_path / "made"
    venv.create(made, with_pip=False, symlinks=True)
    site = next((made / "lib").glob("python*/site-packages"))
    (site / "here.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")) + "\n")
    archive = tmp_path / "env.tar"
    subprocess.run(["tar", "-C", str(made), "-cf", str(archive), "."], check=True)
    names = [f"{cluster.environment['PFX']}-node{node}" for node in (1, 2)]
    place = f"{cluster.root}/local/sft_dist-env-$(id -un)"
    for name in names:
        cluster.call(
            "srun", "-w", name, "bash", "-c", f"mkdir -p {place}/old/.jobs && touch {place}/old/.jobs/1"
        )
    job, run = train(cluster, tmp_path, "steps=5", STAGE_ENV=str(archive))
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert status_of(run)["state"] == "finished"
    for name in names:
        used = cluster.call("srun", "-w", name, "bash", "-c", f"ls -d {place}/*/.jobs/*")
        found, _, number = used.partition("/.jobs/")
        assert number == job  # and `old` is gone
        cluster.call("srun", "-w", name, "bash", "-c", f"rm -rf {cluster.root}/local/*")
    said = [p.read_text() for p in run.glob("logs/attempt-0.1/*/*/attempt_0/*/stdout.log")]
    assert len(said) == 4
    assert all(f" by {found}/bin/python\n" in text for text in said)


def test_blanks_and_quotes_in_names_reach_the_ranks(cluster, tmp_path):
    """From the profile through the #SBATCH lines, the batch script, srun and node.sh."""
    folder = tmp_path / 'it\'s "a" #50% run'
    folder.mkdir()
    run, note = folder / "run one", "note=a b'c\"d $HOME"
    job = Job(
        kind="train",
        name="odd",
        folder=folder,
        arguments=("steps=5", note),
        exports={"RUN_DIR": str(run), "PYTHONPATH": FAKE},
        nodes=2,
    )
    (folder / "train.sbatch").write_text(render(SiteProfile(time="10"), job))
    number = cluster.submit(folder, str(folder / "train.sbatch"))
    fields = cluster.wait(number)
    said = [p.name for p in folder.iterdir()]
    assert f"odd-{number}.out" in said
    assert fields["JobState"] == "COMPLETED", (folder / f"odd-{number}.out").read_text()
    assert json.loads((run / "config.json").read_text())["overrides"] == ["steps=5", note]
    assert len(rank_logs(run, "0.1", 1)) == 4


def test_signal_stops_requeues_and_resumes_with_the_same_arguments(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=100", "note=a b'c", STEP_NOTE="kept")
    for restarts, step in ((1, 10), (2, 30)):  # preempted twice
        wait_for_step(run, step)
        cluster.call("scancel", "--signal=USR1", "--batch", job)
        wait_until(lambda n=restarts: cluster.show(job)["Restarts"] == str(n))
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert steps_of(run) == list(range(1, 101))  # no step lost, none repeated
    assert json.loads((run / "config.json").read_text())["overrides"] == ["steps=100", "note=a b'c"]
    assert {p.name for p in (run / "logs").iterdir()} == {"attempt-0.1", "attempt-1.1", "attempt-2.1"}


def test_a_preempted_job_saves_in_its_grace_time_and_comes_back(cluster, tmp_path):
    """Slurm sends TERM to everything and kills after the grace time; a script that ends by itself is not requeued."""
    job, run = train(cluster, tmp_path, "steps=60")
    wait_for_step(run, 10)
    urgent = cluster.submit(tmp_path, "--nodes=2", "--exclusive", "--partition=urgent", "--wrap", "sleep 3")
    assert cluster.wait(urgent)["JobState"] == "COMPLETED"
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert cluster.show(job)["Restarts"] == "1"
    assert steps_of(run) == list(range(1, 61)), log_of(tmp_path, job)  # no step lost, none repeated


def test_a_cancelled_job_does_not_come_back(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=2000")
    wait_for_step(run, 5)
    cluster.call("scancel", job)
    assert cluster.wait(job)["JobState"] == "CANCELLED"
    cluster.idle()
    assert cluster.show(job)["JobState"] == "CANCELLED"
    assert cluster.show(job)["Restarts"] == "0"


def test_stop_before_the_ranks_have_handlers(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=30")
    wait_until((run / "logs").exists)  # torchrun imports now
    cluster.call("scancel", "--signal=USR1", "--batch", job)
    assert cluster.wait(job)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert cluster.show(job)["Restarts"] == "1"
    assert steps_of(run) == list(range(1, 31))
    assert "stopped at step 1" in log_of(tmp_path, job)


@pytest.mark.timeout(300)
def test_time_limit(cluster, tmp_path):
    # Slurm signals up to a minute early, so the run of two minutes is asked between seconds 15 and 75.
    job, run = train(
        cluster,
        tmp_path,
        "steps=2000",
        "step_s=0.1",
        options=("--time=2", "--signal=B:USR1@45"),
        MAX_RESTARTS="1",
    )
    wait_until(lambda: cluster.show(job)["Restarts"] == "1", timeout_s=150)
    done = steps_of(run)
    assert done == list(range(1, len(done) + 1))
    assert status_of(run) == {"state": "stopped", "step": done[-1]}
    cluster.call("scancel", job)
    cluster.wait(job)
    cluster.idle()


def test_control_file_ends_without_requeue(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=1000")
    wait_for_step(run, 3)
    (run / "control" / "stop").touch()
    fields = cluster.wait(job)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), log_of(tmp_path, job)
    assert status_of(run)["state"] == "stopped"
    assert "by control/stop" in log_of(tmp_path, job)


@pytest.mark.parametrize("how", ["kill_at", "raise_at"])
def test_rank_lost(cluster, tmp_path, how):
    job, run = train(cluster, tmp_path, "steps=40", f"{how}=25")
    wait_until((run / f"{how}.done").exists)
    lost = time.monotonic()
    wait_until(
        lambda: "attempt 0.1 ended" in log_of(tmp_path, job), timeout_s=60
    )  # not a collective's time-out
    assert time.monotonic() - lost < 60
    fields = cluster.wait(job)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "0"), log_of(
        tmp_path, job
    )  # the same allocation
    assert steps_of(run) == [*range(1, 25), *range(21, 41)]  # resumed from the checkpoint of step 20
    if how == "raise_at":
        assert "node-0/error.json RuntimeError: planted at step 25" in log_of(tmp_path, job)


def test_same_failure_again_ends_the_job(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=40", "raise_at=25")
    for _ in range(2):
        wait_until((run / "raise_at.done").exists)
        (run / "raise_at.done").unlink()
    fields = cluster.wait(job)
    assert (fields["JobState"], fields["ExitCode"]) == ("FAILED", "1:0"), log_of(tmp_path, job)
    assert "two attempts in a row came no further" in log_of(tmp_path, job)


@pytest.mark.timeout(300)
def test_power_cut(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=60", "step_s=0.1")
    wait_for_step(run, 25)
    cluster.power("crash", 2)
    try:
        wait_until(lambda: cluster.show(job)["Restarts"] != "0", timeout_s=120)
    finally:
        cluster.power("up", 2)
    assert cluster.wait(job, timeout_s=150)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    done = steps_of(run)
    again = done.index(21, 25)  # from the checkpoint of step 20
    assert done[again:] == list(range(21, 61))
    cluster.idle()


def slurmstepd_of(job: str, step: int, node: str) -> int:
    """Return the process number of the daemon that holds one step on one node."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if title.startswith(f"slurmstepd: [{job}.{step}]") and (
                process / "ns" / "uts"
            ).readlink() == node_uts(node):
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"no slurmstepd of {job}.{step} on {node}")


def node_uts(node: str) -> Path:
    """Return the UTS namespace of the slurmd of `node`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            if command[0].endswith(b"slurmd") and node.encode() in command:
                return (process / "ns" / "uts").readlink()
        except OSError:
            continue
    raise AssertionError(f"no slurmd of {node}")


@pytest.mark.timeout(300)
def test_dead_slurmstepd_is_ended_by_the_heartbeat(cluster, tmp_path):
    """Slurm shows the job as RUNNING for ever, whatever --kill-on-bad-exit says."""
    job, run = train(
        cluster, tmp_path, "steps=60", "step_s=0.2", "hang_at=25", HEARTBEAT_MAX="25", END_S="10"
    )
    wait_until((run / "hang_at.done").exists)
    steps = [
        int(s.split(".")[1])
        for s in cluster.call("squeue", "-h", "-s", "-j", job, "-o", "%i").split()
        if s[-1].isdigit()
    ]
    os.kill(slurmstepd_of(job, max(steps), f"{cluster.environment['PFX']}-node2"), signal.SIGKILL)
    assert cluster.wait(job, timeout_s=200)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    assert cluster.show(job)["Restarts"] == "1"
    assert steps_of(run) == [*range(1, 25), *range(21, 61)]
    cluster.idle()


@pytest.mark.timeout(300)
def test_hung_rank_leaves_stacks(cluster, tmp_path):
    job, run = train(cluster, tmp_path, "steps=40", "hang_at=25", HEARTBEAT_MAX="25")
    assert cluster.wait(job, timeout_s=200)["JobState"] == "COMPLETED", log_of(tmp_path, job)
    stacks = [p.read_text() for p in rank_logs(run, "0.1", 0) if p.name == "stderr.log"]
    assert "in mishap" in stacks[1]  # rank 1, and the line on which it hangs
    assert "no heartbeat" in log_of(tmp_path, job)
    assert steps_of(run) == [*range(1, 25), *range(21, 41)]


def test_refused_config_and_fatal_run_are_not_repeated(cluster, tmp_path):
    refused, _ = train(cluster, tmp_path, "mistake=1")
    fatal, run = train(cluster, tmp_path, "steps=5", "fatal=1")
    for job in (refused, fatal):
        fields = cluster.wait(job)
        assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "2:0", "0"), log_of(
            tmp_path, job
        )
    assert "mistake: unknown key" in log_of(tmp_path, refused)
    assert status_of(run)["state"] == "fatal"


def test_second_job_on_one_run_folder_is_refused(cluster, tmp_path):
    shared = str(tmp_path / "run")
    first, run = train(cluster, tmp_path, "steps=1000", RUN_DIR=shared)
    wait_for_step(run, 1)
    second = cluster.submit(tmp_path, "--nodes=1", SCRIPT, "steps=5", PYTHONPATH=FAKE, RUN_DIR=shared)
    assert cluster.wait(second)["ExitCode"] == "2:0"
    assert f"belongs to job {first}" in log_of(tmp_path, second)
    cluster.call("scancel", first)
    cluster.wait(first)
    third, _ = train(cluster, tmp_path, "steps=5", RUN_DIR=shared)  # an owner that has ended is none
    assert cluster.wait(third)["JobState"] == "COMPLETED", log_of(tmp_path, third)
