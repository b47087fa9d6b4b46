"""When the loop evaluates, saves and ends: by epochs, and before its schedule when the validation loss does not fall."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from sft_dist.config.load import validate
from sft_dist.config.train import CheckpointConfig, TrainConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Position
from sft_dist.pipelines.train.planning import total_steps
from sft_dist.train import loop
from sft_dist.train.guard import since_lowest

EPOCH = 5


class _Saver:
    """Stands for checkpoint.background.Saver, without an engine."""

    def __init__(self, losses: dict[int, float] | None = None, saved_at: Position | None = None) -> None:
        self.losses, self.saved_at, self.begun_at = losses or {}, saved_at, saved_at
        self.saves: list[int] = []
        self.asked: list[int] = []

    @property
    def best(self) -> int:
        return min(self.losses, key=lambda s: (self.losses[s], -s), default=0)

    def begin(self, position: Position, _facts: Any) -> None:
        self.saved_at = self.begun_at = position
        self.saves.append(position.step)

    def scored(self, step: int, loss: float) -> bool:
        self.losses[step] = loss
        return False

    def flags(self) -> tuple[bool, bool]:
        return False, False

    def agree(self, _written: int, _failed: int) -> None: ...

    def finish(self) -> None: ...


def _run(
    monkeypatch: pytest.MonkeyPatch, train: TrainConfig, losses: list[float], saver: _Saver, **checkpoint: Any
) -> tuple[Position, str, str]:
    """Run two epochs of five steps with the given validation losses; nothing is computed."""
    nothing = SimpleNamespace
    ranks = {"save": 0, "stop": 0, "written": 0, "failed": 0}
    sums = nothing(ranks=ranks, total={"loss": 1.0, "tokens": 1, "targets": 1, "pairs": 1}, pace=[])
    start = saver.saved_at or Position()
    monkeypatch.setattr(loop, "dist", nothing(get_world_size=lambda: 1, get_rank=lambda: 0))
    monkeypatch.setattr(loop, "prefetched", lambda work, _ready: work)
    monkeypatch.setattr(loop, "_update", lambda *_: ("", 1.0))
    monkeypatch.setattr(loop, "_largest", lambda _: None)
    monkeypatch.setattr(loop, "step_metrics", lambda step: step)
    queue = iter(losses)

    def evaluate(step: int) -> float:
        saver.asked.append(step)
        return next(queue) if step else 0.5  # the model before training may be the best of all

    work = [
        (Position(step=s, epoch=s // EPOCH, epoch_step=s % EPOCH), nothing(target_weight=1.0), [], 0.0)
        for s in range(start.step + 1, 2 * EPOCH + 1)
    ]
    engine = nothing(
        device="cpu", module=nothing(balance=None), train=lambda: None, optimizer=nothing(param_groups=[])
    )
    steps = loop.Steps(start=start, total=2 * EPOCH, in_epoch=EPOCH, lr_of=lambda _: 1.0)
    options: Any = {
        "train": train, "seed": 0, "clip": None, "saver": saver,
        "checkpoint": CheckpointConfig(save_every_minutes=None, **checkpoint), "meter": nothing(reduce=lambda *_, **__: sums),
        "guards": nothing(
            requests=nothing(poll=lambda: (False, False), served=lambda: None), spikes=nothing(losses=[]),
            heartbeat=nothing(progress=lambda: None, slowest=lambda _: None, pace=nothing(own=lambda: None)),
        ),
        "hooks": loop.Hooks(log=lambda _: None, event=lambda *_, **__: None, evaluate=evaluate),
        "flops": loop.Flops(useful=lambda *_: 0.0, peak=None),
    }  # fmt: skip
    return loop.run(engine, work, steps, **options)  # type: ignore[arg-type]


def test_curves_begin_before_the_first_step_which_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    saver = _Saver()
    _run(monkeypatch, TrainConfig(), [2.0], saver)
    assert (saver.asked, saver.losses) == ([0, 10], {10: 2.0})
    again = _Saver({}, Position(step=5, epoch=1))  # continued: it was measured then
    _run(monkeypatch, TrainConfig(), [2.0], again)
    assert again.asked == [10]


def test_marks_of_an_epoch_are_spread_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    saver = _Saver()
    train = TrainConfig(evals_per_epoch=2)
    position, state, why = _run(monkeypatch, train, [5.0, 4.0, 3.0, 2.0], saver, saves_per_epoch=1)
    assert (position.step, state, why) == (10, "finished", "")
    assert sorted(saver.losses) == [3, 5, 8, 10]
    assert saver.saves == [5, 10]


def test_a_validation_loss_that_does_not_fall_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    train = TrainConfig(eval_every_steps=1, patience_evaluations=2, patience_nats=0.1)
    saver = _Saver()
    position, state, why = _run(monkeypatch, train, [3.0, 2.0, 1.95, 1.94], saver)
    assert (position.step, state) == (4, "finished")
    assert "2 evaluations have not lowered the validation loss (lowest 1.9400, at step 4)" in why
    assert saver.saves == [4]
    again = _Saver(dict(saver.losses), saver.saved_at)  # its status was lost: nothing is trained
    assert _run(monkeypatch, train, [], again) == (position, state, why)
    longer = TrainConfig(eval_every_steps=1, patience_evaluations=3, patience_nats=0.1)
    position, *_ = _run(monkeypatch, longer, [1.5] * 6, _Saver(dict(saver.losses), saver.saved_at))
    assert position.step == 8


def test_evaluations_since_the_lowest() -> None:
    assert since_lowest({}, 0.0) == 0
    assert since_lowest({1: 2.0, 2: 1.0, 3: 1.5, 4: 1.0}, 0.0) == 2
    assert since_lowest({1: 2.0, 2: 1.5, 3: 1.0}, 0.6) == 0


@pytest.mark.parametrize(("epochs", "steps"), [(0.5, 3), (1, 6), (1.5, 10), (2, 14), (0.001, 1)])
def test_a_part_of_an_epoch(epochs: float, steps: int) -> None:
    plans = [SimpleNamespace(n_steps=6), SimpleNamespace(n_steps=8)]
    config: Any = SimpleNamespace(train=TrainConfig(epochs=epochs))
    assert total_steps(config, SimpleNamespace(epoch=plans.__getitem__), plans[0]) == steps  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": {"patience_evaluations": 2}}, "the validation loss is measured at the end only"),
        ({"train": {"patience_evaluations": 2, "evals_per_epoch": 1}}, "there is no validation set"),
        ({"train": {"export_best": True}}, "checkpoint.keep_best=0 keeps none"),
        ({"train": {"epochs": math.inf}}, "infinite"),
        ({"train": {"epochs": 0}}, "greater than 0"),
    ],
)
def test_what_could_not_work_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate({"model": {"path": "x"}, **values})
