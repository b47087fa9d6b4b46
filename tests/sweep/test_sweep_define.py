"""pipelines/sweep/define.py: a sweep is defined once, validated as a whole, lengthened, never mixed with another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_dist.cluster.sweep.folder import SweepFolder
from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.sweep.define import define, trial_config
from sft_dist.pipelines.sweep.run import due_numbers
from sft_dist.pipelines.train.run_folder import make_way

RATES = "optim.lr=1e-3,2e-3"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def settings(folder: SweepFolder) -> list[dict[str, str]]:
    return [t.settings for t in folder.trials()]


def config(folder: SweepFolder, **chosen: str):
    return trial_config(folder, folder.definition(), chosen, "trial-000")


def test_a_grid_is_written_down_before_anything_runs(tmp_path):
    folder = define(None, ["sweep.name=lr", RATES, "train.epochs=1,2", "launch.nproc=1"])
    assert folder.path == tmp_path / "runs" / "lr"
    assert settings(folder) == [
        {"optim.lr": "0.001", "train.epochs": "1"},
        {"optim.lr": "0.001", "train.epochs": "2"},
        {"optim.lr": "0.002", "train.epochs": "1"},
        {"optim.lr": "0.002", "train.epochs": "2"},
    ]
    found = folder.definition()
    assert (found.method, found.trials, found.overrides) == ("grid", 4, ["sweep.name=lr", "launch.nproc=1"])
    assert json.loads(folder.file.read_text())["space"] == {"optim.lr": "1e-3,2e-3", "train.epochs": "1,2"}


def test_no_trial_finds_the_checkpoints_of_another():
    folder = define(None, [RATES, "checkpoint.remote=s3://bucket/runs/"])
    for name in ("trial-000", "trial-001"):
        found = trial_config(folder, folder.definition(), {"optim.lr": "0.1"}, name)
        assert found.checkpoint.remote == f"s3://bucket/runs/sweep/{name}"
    assert config(define(None, [RATES, "sweep.name=here"])).checkpoint.remote is None


def test_the_same_command_changes_nothing_and_further_values_come_after():
    folder = define(None, [RATES])
    before = folder.file.read_text()
    define(None, [RATES])
    assert folder.file.read_text() == before
    define(None, ["optim.lr=3e-3,1e-3,2e-3", "sweep.retries=4", "launch.nproc=1"])
    assert settings(folder) == [{"optim.lr": "0.001"}, {"optim.lr": "0.002"}, {"optim.lr": "0.003"}]
    assert (folder.definition().trials, folder.definition().retries) == (3, 4)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([RATES, "train.epochs=2"], "train.epochs"),
        ([RATES, "sweep.metric=train_loss"], "metric"),
        (["optim.weight_decay=0.1,0.2"], "the parameters"),
    ],
)
def test_another_sweep_in_the_same_folder_is_refused(overrides, said):
    folder = define(None, [RATES])
    with pytest.raises(UserError, match=f"holds another sweep.*{said}"):
        define(None, overrides)
    assert len(folder.trials()) == 2


def test_every_mistake_is_found_before_the_first_trial(tmp_path):
    with pytest.raises(
        UserError, match=r"2 of the points(.|\n)*optim.lr=0 optim.schedule=cosine(.|\n)*greater than 0"
    ):
        define(None, ["optim.lr=1e-3,0", "optim.schedule=cosine,linear"])
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match=r"optim.learning_rate(.|\n)*optim.lr"):
        define(None, ["optim.learning_rate=1,2"])


def test_nothing_swept_is_a_mistake():
    with pytest.raises(UserError, match="nothing is swept"):
        define(None, ["optim.lr=1e-3"])


def test_a_space_in_a_file_and_further_parameters_on_the_command_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults: [{experiment: demo}]\nsweep: {name: mine, space: {optim.lr: 'choice(1e-3,2e-3)'}}\n"
    )
    folder = define(file, ["train.epochs=1,2"])
    assert folder.path.name == "mine"
    assert settings(folder)[3] == {"optim.lr": "0.002", "train.epochs": "2"}
    file.write_text("optim: {lr: 5.0}\n")  # what was defined stays
    assert config(folder, **settings(folder)[3]).optim.lr == 0.002
    assert config(folder, **settings(folder)[3]).train.epochs == 2


def test_a_trial_is_a_run_in_the_sweeps_folder():
    folder = define(None, ["sweep.name=lr", RATES, "wandb.mode=disabled"])
    found = config(folder, **{"optim.lr": "0.002"})
    assert (found.name, found.run_root) == ("trial-000", str(folder.path))
    assert (found.optim.lr, found.wandb.group, found.sweep.name) == (0.002, "lr", "sweep")


def test_trials_share_data_unless_a_parameter_changes_it():
    folder = define(None, ["data.sources.demo.weight=1,2", RATES])
    dirs = {config(folder, **point).data.dir for point in settings(folder)}
    assert dirs == {str(Path("data/demo").resolve())}
    folder = define(None, ["sweep.name=seeds", "seed=0,1,2"])
    dirs = [config(folder, **point).data.dir for point in settings(folder)]
    assert dirs[0] == str(Path("data/demo").resolve())
    assert len(set(dirs)) == 3
    assert all(d.startswith(dirs[0]) for d in dirs)


def test_groups_are_swept_like_values():
    folder = define(None, ["launch=choice(gpu8)", "sweep.name=groups"])
    assert [config(folder, **point).launch.nproc for point in settings(folder)] == [8]


def test_a_search_has_no_trials_before_it_asks_and_may_be_lengthened():
    pytest.importorskip("optuna")
    words = ["sweep.method=optuna", "optim.lr=tag(log,interval(1e-4,1e-2))"]
    folder = define(None, [*words, "sweep.trials=3"])
    assert (folder.trials(), folder.definition().trials) == ([], 3)
    define(None, [*words, "sweep.trials=5"])
    assert folder.definition().trials == 5
    with pytest.raises(UserError, match="the parameters"):
        define(None, ["sweep.method=optuna", "optim.lr=tag(log,interval(1e-4,1e-1))"])


def test_pruning_needs_evaluations_in_course():
    pytest.importorskip("optuna")
    words = ["sweep.method=optuna", "sweep.pruning=median", "optim.lr=interval(1e-4,1e-2)"]
    with pytest.raises(UserError, match=r"train\.eval_every"):
        define(None, words)
    assert define(None, [*words, "train.eval_every_steps=5"]).definition().pruning == "median"
    with pytest.raises(UserError, match=r"sweep\.method=optuna"):
        define(None, ["sweep.pruning=median", RATES])
    with pytest.raises(UserError, match=r"sweep\.metric=eval_loss"):
        define(None, [*words, "sweep.metric=validation"])


def test_a_runs_folder_is_left_alone(tmp_path):
    (tmp_path / "runs" / "lr").mkdir(parents=True)
    (tmp_path / "runs" / "lr" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is a run's folder"):
        define(None, [RATES, "sweep.name=lr"])
    assert len(list((tmp_path / "runs" / "lr").iterdir())) == 1


def test_a_submitted_run_that_waits_is_left_alone_too(tmp_path):
    (tmp_path / "runs" / "lr" / "slurm").mkdir(parents=True)
    (tmp_path / "runs" / "lr" / "slurm" / "train.sbatch").touch()
    with pytest.raises(UserError, match="is a run's folder"):
        define(None, [RATES, "sweep.name=lr"])


def test_a_run_is_not_put_into_a_sweep():
    folder = define(None, [RATES, "sweep.name=lr"])
    with pytest.raises(UserError, match="is the folder of a sweep"):
        make_way(load_config(["name=lr"]), RunFolder(folder.path))
    assert len(folder.trials()) == 2


def test_a_damaged_definition_or_record_is_named():
    folder = define(None, [RATES, "sweep.name=lr"])
    first, record = (folder.path / "trials" / f"trial-00{i}.json" for i in (0, 1))
    whole, tried = record.read_text(), settings(folder)
    record.write_text("{torn")
    with pytest.raises(UserError, match=r"trial-001\.json is damaged"):
        folder.trials()
    record.write_text(whole)
    first.unlink()
    with pytest.raises(UserError, match="no record of trial-000"):
        due_numbers(folder, folder.definition())
    define(None, [RATES, "sweep.name=lr"])  # which writes it again
    assert due_numbers(folder, folder.definition()) == [0, 1]
    assert settings(folder) == tried
    folder.file.write_text('{"method": "grid"}')
    with pytest.raises(UserError, match=r"sweep\.json is damaged"):
        folder.definition()


def test_several_nodes_are_for_slurm(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="--submit"):
        define(None, [RATES, "launch.nodes=2"])
