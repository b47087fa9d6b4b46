"""train/tracker.py: whether W&B is used when the config leaves it open; what W&B and TensorBoard get."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import wandb

from sft_dist.core.files import append_jsonl
from sft_dist.core.process import logger
from sft_dist.core.records import single_turn
from sft_dist.evals.baselines import Baselines
from sft_dist.evals.score import score_examples, scores
from sft_dist.evals.splits import Generation
from sft_dist.evals.tracker_tables import figures, tables
from sft_dist.train.tracker import Tracker, resolve_mode


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "disabled"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "offline"}, "offline"),  # nodes without internet have no key either
        ("online", {"WANDB_MODE": "offline"}, "online"),
    ],
)
def test_mode(monkeypatch, mode, environment, expected):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert resolve_mode(mode) == expected


LINES = [
    {"kind": "train", "time": 1.0, "step": 1, "loss": 2.5, "mfu": None, "task_loss": {"a": 2.0}},
    {"kind": "eval", "time": 2.0, "step": 2, "loss": 2.25, "set_loss": {"seen": 2.125}},
]


def test_both_boards_get_steps_scores_and_tables(tmp_path, monkeypatch):
    """The real clients, offline."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_SILENT", "true")
    table = (["task", "score"], [["plural|x", 0.75]])
    options = {"name": "n", "project": "p", "entity": None, "group": None, "tags": (), "config": {"lr": 1.0}}
    with Tracker.start(
        tmp_path, mode="offline", tensorboard=True, done=0, job="evaluate", **options
    ) as tracker:
        for line in LINES:
            tracker.log(line)
        tracker.results(2, {"eval_seen/model": 0.625}, {"eval_tasks": table})
    wandb.teardown()  # its service writes behind us
    (record,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    written = record.read_bytes()
    assert all(
        name in written for name in (b"train/loss", b"eval_set/seen", b"eval_seen/model", b"eval_tasks")
    )
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/table/eval_tasks_*.json"))) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == {
        "train/loss": [(1, 2.5)], "train_task/a": [(1, 2.0)], "eval/loss": [(2, 2.25)], "eval_set/seen": [(2, 2.125)],
        "eval_seen/model": [(2, 0.625)],
    }  # fmt: skip
    (text,) = events.Tensors("eval_tasks/text_summary")
    assert b"plural\\|x" in text.tensor_proto.string_val[0]


def test_offline_attempts_are_one_run_and_the_newest_record_is_the_whole_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    options = {"name": "n", "project": "p", "entity": None, "group": None, "tags": (), "config": {}}

    def attempt(done, lines):
        with Tracker.start(tmp_path, mode="offline", tensorboard=False, done=done, **options) as tracker:
            for step, loss in lines:
                line = {"kind": "train", "time": 1.0, "step": step, "loss": loss}
                append_jsonl(tmp_path / "metrics.jsonl", line)
                tracker.log(line)

    attempt(0, [(1, 1.109375), (2, 1.203125), (3, 1.390625)])  # killed behind its checkpoint of step 2
    attempt(2, [(3, 1.453125), (4, 1.578125)])
    wandb.teardown()  # its service writes behind us
    first, second = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))  # their names begin with the time
    assert first.name == second.name == f"run-{(tmp_path / 'wandb_id').read_text()}.wandb"
    written = second.read_bytes()
    assert [x in written for x in (b"1.109375", b"1.203125", b"1.390625", b"1.453125", b"1.578125")] == [
        True,
        True,
        False,
        True,
        True,
    ]


def test_a_board_that_fails_leaves_the_other_alone(monkeypatch, caplog):
    monkeypatch.setattr(logger(), "propagate", True)  # made here at the latest

    class Broken:
        title, asked = "Broken", 0

        def log(self, values, step):
            Broken.asked += 1
            raise OSError("no network")

    got = []
    whole = SimpleNamespace(title="Whole", log=lambda values, step: got.append((step, values)))
    tracker = Tracker([Broken(), whole])
    for line in LINES:
        tracker.log(line)
    assert got == [
        (1, {"train/loss": 2.5, "train_task/a": 2.0}),
        (2, {"eval/loss": 2.25, "eval_set/seen": 2.125}),
    ]
    assert Broken.asked == 1  # it is left out from then on
    assert "Broken failed (no network)" in caplog.text


def test_what_boards_get_of_an_evaluation():
    examples = [single_turn(task="t", source="s", instruction=f"Say {i}", output=str(i)) for i in range(3)]
    said, base = (
        {e.id: Generation(id=e.id, prediction=text or e.output, stopped=True, tokens=1) for e in examples}
        for text in ("", "9")
    )
    judged = score_examples({"seen": examples}, said, Baselines([]), base, metric="exact_match")
    result = scores(judged, asked="exact_match")
    shown = figures(result)
    assert (shown["eval_seen/model"], shown["eval_seen/base"], shown["eval_seen/less_base"]) == (
        1.0,
        0.0,
        1.0,
    )
    made = tables(result, judged)
    columns, rows = made["eval_tasks"]
    assert dict(zip(columns, rows[0], strict=True))["model"] == 1.0
    columns, rows = made["eval_samples"]
    assert len(rows) == 2
    assert dict(zip(columns, rows[0], strict=True)) == {
        "set": "seen", "task": "t", "prompt": "Say 0", "right": "0", "model": "0", "base": "9", "score": 1.0,
    }  # fmt: skip
