"""`sft-dist sweep` with real training, tiny: resumed, one trial diverges, one is pruned while it runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from planted_sweep import add

from sft_dist.cluster.sweep.folder import SweepFolder
from sft_dist.core.files import read_json, read_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TINY = [
    "data.dir=data",
    "data.sources.demo.examples_per_task=40",
    "launch.nproc=1",
    "train.tokens_per_step=2048",
    "train.export=false",
    "train.max_skipped_steps=2",
    "checkpoint.save_every_steps=5",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sft_dist", "sweep", *words]
    return subprocess.Popen(
        command, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_sweep_is_interrupted_and_goes_on_and_a_diverged_trial_is_named(tmp_path):
    words = [*TINY, "sweep.name=lr", "optim.lr=2e-3,1e30,1e-3", "train.eval_every_steps=5", "train.epochs=3"]
    folder = SweepFolder(tmp_path / "runs" / "lr")
    first = start(tmp_path, *words)
    while not any(line["step"] >= 6 for line in read_jsonl(folder.run(0).metrics)):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(1)
    first.send_signal(signal.SIGTERM)  # as Ctrl-C, which a background process does not hear
    said = first.communicate(timeout=120)[0]
    assert first.returncode == 130, said
    assert [t.state for t in folder.trials()] == ["interrupted", "waiting", "waiting"]
    stopped_at = folder.run(0).status()["step"]

    second = start(tmp_path, str(folder.path))
    said = second.communicate(timeout=600)[0]
    assert second.returncode == 1, said  # one trial has failed
    assert [t.state for t in folder.trials()] == ["finished", "failed", "finished"]
    resumed = [e["step"] for e in read_jsonl(folder.run(0).events) if e["kind"] == "resumed"]
    assert resumed == [stopped_at]
    assert "trial-001 failed: " in said
    assert "not finite" in folder.trial(1).reason
    board = read_json(folder.path / "leaderboard.json")
    assert board["best"] == min(folder.trials(), key=lambda t: t.value or 99).name
    assert len(list(tmp_path.glob("data*"))) == 1


def test_a_live_trial_is_pruned(tmp_path):
    """Three trials that ended far below are planted beside it, so the rule must speak at the first evaluation that counts."""
    pytest.importorskip("optuna")
    words = [*TINY, "sweep.name=s", "sweep.method=optuna", "sweep.pruning=median", "sweep.trials=4"]
    words += ["optim.lr=tag(log,interval(1e-4,1e-2))", "train.eval_every_steps=2", "train.epochs=10"]
    done = subprocess.run(  # defines, and fails for want of a cluster before anything runs
        [sys.executable, "-m", "sft_dist", "sweep", *words, "--submit"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    folder = SweepFolder(tmp_path / "runs" / "s")
    for i in range(3):
        curve = [(s, 0.5) for s in range(2, 300, 2)]
        add(folder, i, "finished", value=0.5, curve=curve, settings={"optim.lr": "0.001"}, attempts=1)
    run = start(tmp_path, str(folder.path))
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said
    trial = folder.trial(3)
    assert trial.state == "pruned", said
    status = folder.run(3).status()
    assert status["state"] == "stopped"
    assert trial.step <= status["step"] < status["steps"]
    assert "1 pruned" in said
