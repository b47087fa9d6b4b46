"""Checkpoints are written while training goes on, and only what is wanted stays."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_engine import PlainEngine, at, equal, flip, newest, save

from sft_dist.checkpoint import background
from sft_dist.checkpoint import io as store
from sft_dist.checkpoint.background import Saved, Saver
from sft_dist.config.train import CheckpointConfig
from sft_dist.core.errors import UserError


def test_training_goes_on_while_a_checkpoint_is_written(
    engine: PlainEngine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the step is what is written, whatever later steps do; the next save waits for this one."""
    may_write = threading.Event()
    real = store.save_file

    def slow(*arguments: Any) -> None:
        assert may_write.wait(20)
        real(*arguments)

    monkeypatch.setattr(store, "save_file", slow)
    outcomes: list[Saved] = []
    saver = Saver(engine, root, facts={}, keep=CheckpointConfig(keep_last=9), report=outcomes.append)
    then = engine.state()
    saver.begin(at(1))
    engine.step()  # the loop goes on
    assert saver.flags() == (False, False)
    saver.agree(written=0, failed=0)
    assert not list(root.glob("step-*"))
    assert saver.saved_at is None
    threading.Timer(0.2, may_write.set).start()
    saver.begin(at(2))  # waits
    assert saver.saved_at == at(1)
    saver.finish()
    assert [o.position.step for o in outcomes] == [1, 2]
    assert outcomes[0].seconds >= outcomes[0].stall_s
    loaded = PlainEngine(seed=5)
    store.load(loaded, root / "step-00000001")
    assert equal(loaded.state(), then)
    store.load(loaded, root / "step-00000002")
    assert equal(loaded.state(), engine.state())


def test_phases_go_on_only_when_all_ranks_have_ended(engine: PlainEngine, root: Path) -> None:
    """As the loop does it: flags into the reduction, its sums back."""
    saver = Saver(engine, root, facts={}, keep=CheckpointConfig(keep_last=9), report=lambda saved: None)
    saver.begin(at(1))
    for _ in range(500):
        written, failed = saver.flags()
        saver.agree(int(written), int(failed))
        if saver.saved_at:
            break
        time.sleep(0.01)
    assert saver.saved_at == at(1)
    assert saver.flags() == (False, False)
    assert newest(root) == ("step-00000001", [])


@pytest.mark.parametrize(("patience_s", "expected"), [(3600.0, 5), (0.0, 0)])
def test_waiting_for_the_disk_of_another_rank_is_progress_for_a_while(
    engine: PlainEngine, root: Path, monkeypatch: pytest.MonkeyPatch, patience_s: float, expected: int
) -> None:
    """No collective outlasts its time-out and the launcher sees a heartbeat, until that disk is taken for hung."""
    theirs = iter(
        [0, 0, 0, 1, 1]
    )  # the other rank ends its write at the fourth meeting; the commit is not its own
    moves: list[int] = []

    def all_reduce(counts: torch.Tensor) -> None:
        counts += torch.tensor([next(theirs), 0.0])

    saver = Saver(
        engine,
        root,
        facts={},
        keep=CheckpointConfig(keep_last=9),
        report=lambda _: None,
        moved=lambda: moves.append(1),
    )
    monkeypatch.setattr(background, "PATIENCE_S", patience_s)
    monkeypatch.setattr(background, "gather_to_main", lambda value: [value])
    monkeypatch.setattr(background.dist, "all_reduce", all_reduce)
    monkeypatch.setattr(background.dist, "get_world_size", lambda: 2)
    saver.begin(at(1))
    saver.finish()
    assert saver.saved_at == at(1)
    assert len(moves) == expected


def test_what_changes_the_state_beside_the_loop_is_waited_for(engine: PlainEngine, root: Path) -> None:
    def settle() -> None:
        for p in engine.module.parameters():
            p.data.fill_(7.0)

    saver = Saver(
        engine, root, facts={}, keep=CheckpointConfig(keep_last=9), report=lambda _: None, settle=settle
    )
    saver.begin(at(1))
    saver.finish()
    other = PlainEngine(seed=1)
    store.load(other, root / "step-00000001")
    assert all(bool((p == 7.0).all()) for p in other.module.parameters())


def test_the_best_stay_and_an_evaluation_among_them_saves(engine: PlainEngine, root: Path) -> None:
    losses = {1: 2.0, 2: 1.0, 3: 3.0, 5: 1.5}
    for step in (1, 2, 3, 4, 5, 6):
        save(
            engine,
            root,
            step,
            keep_last=1,
            keep_best=2,
            losses={s: v for s, v in losses.items() if s <= step},
        )
    assert sorted(p.name for p in root.glob("step-*")) == ["step-00000002", "step-00000005", "step-00000006"]
    assert (root / "BEST").read_text() == "step-00000002\n"
    saver = Saver(
        engine,
        root,
        facts={},
        keep=CheckpointConfig(keep_last=1, keep_best=2),
        report=lambda saved: None,
        losses=losses,
    )
    assert not saver.scored(7, 1.8)
    assert saver.scored(8, 1.2)
    assert not saver.scored(9, 1.4)
    assert not saver.scored(10, float("nan"))
    assert not saver.scored(11, None)


def test_a_removal_that_was_cut_short_does_not_stop_later_ones(engine: PlainEngine, root: Path) -> None:
    """A run that died in it, was set back and came to the same step again."""
    (root / ".removing-step-00000001").mkdir(parents=True)
    (root / ".removing-step-00000001" / "left").touch()
    for step in (1, 2, 3):
        save(engine, root, step, keep_last=1)
    assert sorted(p.name for p in root.iterdir()) == ["LATEST", "step-00000003"]


def test_weights_outlive_the_optimizer_state(engine: PlainEngine, root: Path) -> None:
    before = engine.state()
    for step in (1, 2, 3):
        save(engine, root, step, keep_last=3, optimizer_keep_last=1)
    old, new = root / "step-00000001", root / "step-00000003"
    assert sorted(p.name for p in old.iterdir()) == ["index.json", "rank-00000.weights.safetensors"]
    assert (new / "rank-00000.optimizer.safetensors").is_file()
    index = store.read_index(old)
    assert equal(
        {f"hf.{n}": store.read_parameter(old, index, n) for n in index.parameters},
        {n: t for n, t in before.items() if n.startswith("hf.")},
    )
    with pytest.raises(UserError, match="weights only"):
        store.load(PlainEngine(), old)
    flip(new / "rank-00000.weights.safetensors")
    found, bad = newest(root)
    assert found is None
    assert [name for name, _ in bad] == ["step-00000003", "step-00000002", "step-00000001"]
    assert "can be exported, not resumed" in bad[-1][1]
    assert old.is_dir()  # not damaged, so not put aside


def test_frozen_parameters_are_not_saved(engine: PlainEngine, root: Path) -> None:
    """What is frozen is that of the base model; the others come back, and another freezing is another model."""
    frozen = PlainEngine(frozen="0.weight")
    frozen.step()
    save(frozen, root, 1)
    index = json.loads((root / "step-00000001/index.json").read_text())
    assert sorted(index["parameters"]) == ["0.bias", "1.weight"]
    other = PlainEngine(frozen="0.weight")
    store.load(other, root / "step-00000001")
    assert equal(other.state(), frozen.state())
    with pytest.raises(UserError, match="another model"):
        store.load(PlainEngine(), root / "step-00000001")
