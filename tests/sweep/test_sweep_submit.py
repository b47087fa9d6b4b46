"""pipelines/sweep/run.py on Slurm: one array job over what is due, after the stores where they are asked for."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from sft_dist.cluster.sweep.folder import SweepFolder
from sft_dist.core.errors import UserError
from sft_dist.pipelines.sweep.define import define, trial_config
from sft_dist.pipelines.sweep.run import submit_sweep

SBATCH = """#!/bin/bash
echo "$@" >> {calls}
echo 71
"""


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A cluster whose sbatch takes everything; returns the file of its calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.yaml").write_text(
        "account: p1\ngpus_per_node: 4\nwandb_offline: true\nrun_root: %s\n" % (tmp_path / "scratch")
    )
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "sbatch"
    script.write_text(SBATCH.format(calls=calls))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return calls


def sweep(*words: str) -> SweepFolder:
    return define(
        None,
        ["cluster=here.yaml", "sweep.name=lr", "sweep.max_parallel=2", "optim.lr=1e-3,2e-3,3e-3", *words],
    )


def submitted(folder: SweepFolder, *, dry_run: bool = False) -> str:
    out = io.StringIO()
    submit_sweep(folder, Console(file=out, width=200), dry_run=dry_run)
    return out.getvalue()


def test_one_array_job_over_what_is_due(site):
    folder = sweep("launch.nodes=3", "submit.time=2:00:00")
    folder.write(folder.trial(1).ended(state="finished", value=1.0))
    said = submitted(folder)
    file = (folder.path / "slurm" / "sweep.sbatch").read_text()
    for line in (
        "--array=0,2%2",
        "--nodes=3",
        "--time=2:00:00",
        "--account=p1",
        "--gpus-per-node=4",
        "--job-name=lr",
    ):
        assert f"#SBATCH {line}\n" in file
    assert f"slurm/sweep.sbatch {folder.path}\n" in file
    assert site.read_text().count("\n") == 1
    assert "2 trials, 2 at a time" in said
    assert f"so far        sft-dist report --sweep {folder.path}\n" in said
    assert "queue         squeue -j 71\n" in said


def test_stores_are_built_before_on_cpus(site):
    folder = sweep("submit.prepare_tasks=4")
    submitted(folder)
    calls = site.read_text().splitlines()
    assert [c.split("/")[-1] for c in calls] == [
        "facts.sbatch",
        "selection.sbatch",
        "slices.sbatch",
        "stores.sbatch",
        "sweep.sbatch",
    ]
    assert "--dependency=afterok:71" in calls[2]


def test_what_the_site_decides_reaches_the_trials(site):
    folder = sweep("wandb.mode=auto", "launch.nproc=auto")
    assert folder.path.parent.name == "runs"
    submitted(folder)
    definition = folder.definition()
    config = trial_config(folder, definition, {"optim.lr": "1e-3"}, "trial-000")
    assert (config.wandb.mode, config.launch.nproc) == ("offline", 4)


def test_a_dry_run_shows_and_submits_nothing(site):
    folder = sweep()
    said = submitted(folder, dry_run=True)
    assert "#SBATCH --array=0-2%2" in said
    assert not site.exists()


def test_nodes_are_examined_before_each_trial_where_it_is_asked_for(site):
    folder = sweep("submit.doctor=true")
    submitted(folder)
    assert "export DOCTOR=1" in (folder.path / "slurm" / "sweep.sbatch").read_text()


def test_trials_with_stores_of_their_own_build_them(site):
    folder = sweep("seed=0,1")
    submitted(folder)
    assert "export PREPARE=1" in (folder.path / "slurm" / "sweep.sbatch").read_text()


def test_no_cluster_and_nothing_to_do(site):
    folder = define(None, ["optim.lr=1e-3,2e-3"])
    with pytest.raises(UserError, match="cluster=NAME"):
        submitted(folder)
    folder = sweep()
    for trial in folder.trials():
        folder.write(trial.ended(state="finished", value=1.0))
    assert "every trial" in submitted(folder)
    assert not site.exists()
