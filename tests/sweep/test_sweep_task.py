"""pipelines/sweep/trial.py: one trial from its settings to its record; training itself is played by a few files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from planted_sweep import add, definition

from sft_dist.cluster.sweep.folder import SweepFolder, Trial
from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.heartbeat import write_beat
from sft_dist.pipelines.sweep import trial as sweep_task
from sft_dist.pipelines.sweep.define import define
from sft_dist.pipelines.sweep.trial import NOTHING, Pruner, begin, due, end, main, open_words, run_here

RATES = ["sweep.name=lr", "optim.lr=1e-3,2e-3", "launch.nproc=1"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def built(monkeypatch) -> list[bool]:
    """Preparation and run folder without reading any data; holds whether stores were to be built."""
    calls: list[bool] = []
    monkeypatch.setattr(sweep_task, "prepare", lambda config, build: calls.append(build))

    def set_up(config, prepared, run):
        (run.path / "control").mkdir(parents=True, exist_ok=True)
        run.config.write_text(json.dumps(config.model_dump(mode="json")))

    monkeypatch.setattr(sweep_task, "set_up", set_up)
    return calls


def trained(monkeypatch, state: str, losses: list[tuple[int, float]], **facts) -> list[Path]:
    """Let training leave these files; returns the run folders that were trained."""
    runs: list[Path] = []

    def run_ranks(run, module, *, nproc, port, watch):
        runs.append(run.path)
        lines = [{"kind": "eval", "step": s, "loss": v, "task_loss": {}} for s, v in losses]
        run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
        run.set_status(state, step=losses[-1][0] if losses else 0, steps=50, **facts)
        watch()

    monkeypatch.setattr(sweep_task, "run_ranks", run_ranks)
    return runs


def test_a_trial_that_finishes(built, monkeypatch):
    folder = define(None, RATES)
    runs = trained(monkeypatch, "finished", [(25, 2.0), (50, 1.5)])
    found = run_here(folder, 1)
    assert (found.state, found.value, found.step, found.attempts, found.failures) == (
        "finished",
        1.5,
        50,
        1,
        0,
    )
    assert runs == [folder.path / "trial-001"]
    assert built == [True]
    assert json.loads((runs[0] / "config.json").read_text())["optim"]["lr"] == 0.002
    assert run_here(folder, 1) == found  # and is not begun again
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("state", "facts", "expected"),
    [
        ("fatal", {"reason": "the loss is not finite"}, ("failed", True, 1, "the loss is not finite")),
        ("running", {}, ("failed", False, 1, "RuntimeError: planted")),
        ("stopped", {}, ("interrupted", False, 0, "")),
    ],
)
def test_a_trial_that_does_not(built, monkeypatch, state, facts, expected):
    folder = define(None, RATES)
    trained(monkeypatch, state, [(25, 2.0)], **facts)
    errors = folder.run(0).path / "logs" / "attempt-0.1" / "node-0" / "error.json"
    errors.parent.mkdir(parents=True)
    errors.write_text(
        json.dumps(
            {"message": {"message": "RuntimeError: planted", "extraInfo": {"timestamp": "1700000000"}}}
        )
    )
    found = run_here(folder, 0)
    assert (found.state, found.fatal, found.failures, found.reason) == expected


def test_a_trial_without_a_figure_has_failed(built, monkeypatch):
    folder = define(None, RATES)
    trained(monkeypatch, "finished", [])
    found = run_here(folder, 0)
    assert found.state == "failed"
    assert "no validation loss" in found.reason


def test_a_metric_of_generations_evaluates_the_trial(built, monkeypatch):
    folder = define(None, [*RATES, "sweep.metric=validation"])
    trained(monkeypatch, "finished", [(50, 1.0)])

    def evaluate(run, console):
        (run.path / "eval").mkdir()
        (run.path / "eval" / "scores.json").write_text(
            json.dumps({"sets": {"validation": {"macro": {"score": {"model": {"mean": 0.75}}}}}})
        )

    monkeypatch.setattr(sweep_task, "evaluate", evaluate)
    assert run_here(folder, 0).value == 0.75

    def broken(run, console):
        raise RuntimeError("no export")

    monkeypatch.setattr(sweep_task, "evaluate", broken)
    found = run_here(folder, 1)
    assert found.state == "failed"
    assert "its evaluation failed: no export" in found.reason


def test_a_mistake_in_one_trial_is_its_own(monkeypatch):
    folder = define(None, RATES)

    def refuse(config, build):
        raise UserError("no such file")

    monkeypatch.setattr(sweep_task, "prepare", refuse)
    with pytest.raises(UserError, match="no such file"):
        begin(folder, 0, build=True)
    found = folder.trial(0)
    assert (found.state, found.reason, found.fatal) == ("failed", "no such file", True)


def test_a_trial_that_another_process_holds_is_left_alone(monkeypatch):
    folder = define(None, RATES)
    before = folder.trial(0)

    def busy(config, build):
        raise BusyError("in use")

    monkeypatch.setattr(sweep_task, "prepare", busy)
    with pytest.raises(BusyError):
        begin(folder, 0, build=True)
    assert folder.trial(0) == before


def test_a_trial_belongs_to_one_command_from_beginning_to_end(built, monkeypatch):
    """Its ranks take their lock only seconds after its status was removed."""
    folder = define(None, RATES)
    runs = trained(monkeypatch, "finished", [(50, 1.5)])
    with folder.hold(0):
        with pytest.raises(BusyError, match="trained by another command"):
            run_here(folder, 0)
        run_here(folder, 1)
    assert [r.name for r in runs] == ["trial-001"]
    assert run_here(folder, 0).state == "finished"


def test_a_search_asks_once_and_remembers(built):
    pytest.importorskip("optuna")
    words = ["sweep.method=optuna", "sweep.trials=2", "optim.lr=tag(log,interval(1e-4,1e-2))"]
    folder = define(None, words)
    first = begin(folder, 0, build=False).optim.lr
    assert folder.trial(0).settings == {"optim.lr": repr(first)}
    assert begin(folder, 0, build=False).optim.lr == first
    assert folder.trial(0).attempts == 2
    assert built == [False, False]
    with pytest.raises(UserError, match=r"--array=0-1"):
        begin(folder, 2, build=False)
    other = define(None, ["sweep.name=again", *words])
    assert begin(other, 0, build=False).optim.lr == first  # the seed decides


@pytest.mark.parametrize(
    ("trial", "expected"),
    [
        (None, True),
        (Trial(number=0, settings={}), True),
        (Trial(number=0, settings={}, state="interrupted"), True),
        (Trial(number=0, settings={}, state="finished"), False),
        (Trial(number=0, settings={}, state="pruned"), False),
        (Trial(number=0, settings={}, state="failed", failures=1), True),
        (Trial(number=0, settings={}, state="failed", failures=2), False),
    ],
)
def test_due(trial, expected):
    assert due(trial, retries=1) is expected


def search_with_a_live_trial(tmp_path) -> SweepFolder:
    folder = SweepFolder(tmp_path / "search")
    folder.path.mkdir()
    space = {"optim.lr": "interval(0.0,1.0)"}
    folder.define(definition(method="optuna", space=space, trials=9, pruning="median", cwd=str(tmp_path)))
    for i in range(3):
        curve = [(s, 1.0 + 10 / s) for s in (10, 20, 30, 40, 50)]
        add(folder, i, "finished", value=1.2, curve=curve, settings={"optim.lr": "0.5"})
    run = add(folder, 3, "running", curve=[(10, 9.0), (20, 9.0)], settings={"optim.lr": "0.9"})
    (run / "control").mkdir()
    folder.run(3).set_status("running", step=20, steps=50)
    write_beat(folder.run(3).path, moved=1, silent_s=0.0)
    return folder


def test_a_hopeless_trial_is_asked_to_stop_and_marked(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(sweep_task, "LOOK_S", 0.0)
    folder = search_with_a_live_trial(tmp_path)
    pruner = Pruner(folder, 3)
    assert pruner.poll()
    run = folder.run(3)
    assert run.asked("stop")
    assert (folder.trial(3).state, folder.trial(3).step) == ("pruned", 20)
    assert '"pruned"' in run.events.read_text()
    run.set_status("stopped", step=21, steps=50)
    assert end(folder, 3).state == "pruned"
    run.set_status("finished", step=50, steps=50)  # it came to its end before it heard
    assert end(folder, 3).state == "finished"


def test_a_trial_that_leads_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(sweep_task, "LOOK_S", 0.0)
    folder = search_with_a_live_trial(tmp_path)
    metrics = folder.run(3).metrics
    metrics.write_text(metrics.read_text().replace("9.0", "0.5"))
    assert not Pruner(folder, 3).poll()
    assert not folder.run(3).asked("stop")


def test_commands_of_the_batch_script(built, monkeypatch, capsys, tmp_path):
    def call(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["sweep_task", *words])
        return main()

    assert call("begin", "1", "--", *RATES) == 0
    run = tmp_path / "runs" / "lr" / "trial-001"
    assert capsys.readouterr().out == f"SWEEP={run.parent}\nTRIAL={run}\n"
    add(SweepFolder(run.parent), 1, "running", curve=[(9, 1.0)], settings={"optim.lr": "0.002"}, attempts=1)
    SweepFolder(run.parent).run(1).set_status("running", step=5)
    assert call("end", str(run.parent), "1") == sweep_task.AGAIN  # it crashed, and one more try is left
    SweepFolder(run.parent).run(1).set_status("finished", step=9)
    assert call("end", str(run.parent), "1") == 0
    assert call("begin", "1", "--", str(run.parent)) == NOTHING
    assert call("begin", "7", "--", str(run.parent)) == 2
    assert "--array=0-1" in capsys.readouterr().err


def test_words(tmp_path):
    folder = define(None, RATES)
    assert open_words([str(folder.path)]) == folder
    assert open_words(RATES) == folder
    with pytest.raises(UserError, match="is not a sweep"):
        open_words([str(tmp_path)])


def test_a_killed_trial_is_no_longer_running(tmp_path):
    folder = SweepFolder(tmp_path / "s")
    run = add(folder, 0, "running", settings={})
    write_beat(run, moved=1, silent_s=0.0)
    folder.run(0).set_status("running", step=7)
    assert (folder.trial(0).state, folder.trial(0).step) == ("running", 7)
    write_beat(run, moved=1, silent_s=2000.0)
    assert folder.trial(0).state == "interrupted"
    write_beat(run, moved=1, silent_s=0.0)
    folder.run(0).set_status("stopped", step=7)
    assert folder.trial(0).state == "interrupted"


def test_places_divide_the_devices(monkeypatch):
    from sft_dist.pipelines.sweep import run as sweep

    def places(count: int, nproc: object, gpus: int, cores: int = 8, visible: str = ""):
        monkeypatch.setattr(sweep, "gpus", lambda: gpus)
        monkeypatch.setattr(sweep.os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return sweep._places(SimpleNamespace(max_parallel=count, base={"launch": {"nproc": nproc}}))

    assert places(1, "auto", 8) == [{}]
    assert places(2, 1, 0) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert [p["CUDA_VISIBLE_DEVICES"] for p in places(2, "auto", 4)] == ["0,1", "2,3"]
    assert [p["CUDA_VISIBLE_DEVICES"] for p in places(2, 1, 3, visible="4,6,7")] == ["4", "6"]
    with pytest.raises(UserError, match="max_parallel=2"):
        places(3, 2, 4)


def test_ranges_of_an_array():
    from sft_dist.pipelines.sweep.run import _ranges

    assert _ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert _ranges([3]) == "3"
