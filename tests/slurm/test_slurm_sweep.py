"""A sweep as one array job on a real Slurm, with real training, tiny."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_machine import REPOSITORY, Cluster, wait_until
from test_slurm_real import ONE_THREAD, losses, settings

from sft_dist.cluster.sweep.folder import SweepFolder, Trial
from sft_dist.core.files import read_jsonl, write_json
from sft_dist.report.sweep import write_sweep

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
SCRIPT = str(REPOSITORY / "slurm" / "sweep.sbatch")
OPTIONS = ("--nodes=1", "--cpus-per-task=4")


def logs(folder: Path, job: str) -> str:
    return "\n".join(p.read_text() for p in sorted(folder.glob(f"sft-sweep-{job}_*.out")))


def test_array_of_trials_one_diverges_one_is_preempted(cluster: Cluster, tmp_path):
    """No Python on the login node: the elements themselves define the sweep, which the first to come writes down."""
    words = [*settings(tmp_path), "sweep.name=lr", "optim.lr=2e-3,1e30", "train.max_skipped_steps=2"]
    job = cluster.submit(tmp_path, "--array=0-1%2", *OPTIONS, SCRIPT, *words, PREPARE="1", **ONE_THREAD)
    folder = SweepFolder(tmp_path / "runs" / "lr")
    wait_until(lambda: 3 in losses(folder.run(0).path), timeout_s=300)
    cluster.call("scancel", "--signal=USR1", "--batch", f"{job}_0")  # as Slurm does before the time limit
    assert cluster.wait(f"{job}_1", timeout_s=300)["JobState"] == "FAILED", logs(tmp_path, job)
    assert cluster.wait(f"{job}_0", timeout_s=300)["JobState"] == "COMPLETED", logs(tmp_path, job)
    assert cluster.show(f"{job}_0")["Restarts"] == "1"
    first, second = folder.trials()
    assert (first.state, first.failures) == ("finished", 0)
    assert first.value is not None
    assert any(e["kind"] == "resumed" for e in read_jsonl(folder.run(0).events))
    assert (second.state, second.fatal) == ("failed", True)
    assert "trial-001" in write_sweep(folder.path).read_text()

    again = cluster.submit(tmp_path, "--array=0-1", *OPTIONS, SCRIPT, str(folder.path), **ONE_THREAD)
    assert cluster.wait(f"{again}_0", timeout_s=120)["JobState"] == "COMPLETED", logs(tmp_path, again)
    assert "trial 0 has nothing to do" in logs(tmp_path, again)
    cluster.call("scancel", again)
    cluster.idle()


def test_live_trial_of_an_array_is_pruned(cluster: Cluster, tmp_path):
    """Beside three planted trials that ended far below, the fourth is stopped through its control file."""
    pytest.importorskip("optuna")
    words = [
        *settings(tmp_path),
        "sweep.name=s",
        "sweep.method=optuna",
        "sweep.trials=4",
        "sweep.pruning=median",
    ]
    words += ["optim.lr=tag(log,interval(1e-4,1e-2))", "train.eval_every_steps=2"]
    folder = SweepFolder(tmp_path / "runs" / "s")
    for i in range(3):
        run = folder.run(i).path
        run.mkdir(parents=True)
        lines = [f'{{"kind": "eval", "step": {s}, "loss": 0.1}}\n' for s in range(2, 200, 2)]
        (run / "metrics.jsonl").write_text("".join(lines))
        folder.write(Trial(number=i, settings={"optim.lr": "0.001"}, state="finished", value=0.1))
        write_json(run / "status.json", {"state": "finished", "step": 200})
    job = cluster.submit(tmp_path, "--array=3", *OPTIONS, SCRIPT, *words, PREPARE="1", **ONE_THREAD)
    assert cluster.wait(f"{job}_3", timeout_s=400)["JobState"] == "COMPLETED", logs(tmp_path, job)
    trial, status = folder.trial(3), folder.run(3).status()
    assert trial.state == "pruned", logs(tmp_path, job)
    assert status["state"] == "stopped"
    assert status["step"] < status["steps"]
    assert cluster.show(f"{job}_3")["Restarts"] == "0"
