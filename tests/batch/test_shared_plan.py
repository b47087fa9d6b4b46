"""The ranks of a node share one plan: the same as each would make, and each makes it where the other fails."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sft_dist.batch import Planner
from sft_dist.batch.shared_plan import PREFIX, NodePlans
from sft_dist.pack import CostModel

COST = CostModel(linear_flops_per_token=1000.0, attention_flops_per_pair=20.0, head_flops_per_target=10.0)


def planner(corpus: Any, shared: NodePlans | None) -> Planner:
    return Planner(corpus, seq_len=256, rows_per_step=8, world_size=2, cost=COST, seed=0, shared=shared)


def plans(root: Path, *, leads: bool, patience_s: float = 0.0) -> NodePlans:
    return NodePlans.of_run("token", leads=leads, patience_s=patience_s, root=root)


def test_the_others_map_what_the_first_planned(
    random_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = random_corpus(200)
    leader = planner(corpus, plans(tmp_path, leads=True))
    follower = planner(corpus, plans(tmp_path, leads=False, patience_s=30))
    alone = [planner(corpus, None).epoch(e) for e in range(4)]
    for epoch in range(4):
        leader.epoch(epoch)
    monkeypatch.setattr(follower, "_plan", lambda epoch: pytest.fail("it planned for itself"))
    for epoch in (2, 3):  # those before are gone: they would fill the memory of the node
        found = follower.epoch(epoch)
        assert found.hash == alone[epoch].hash
        assert found.counts == alone[epoch].counts
        assert isinstance(found.docs, np.memmap)
    assert len(list(tmp_path.glob(f"{PREFIX}*/*.npy"))) == 4


def test_a_rank_plans_for_itself_where_no_plan_comes(random_corpus: Any, tmp_path: Path) -> None:
    corpus = random_corpus(200)
    follower = planner(corpus, plans(tmp_path, leads=False, patience_s=0.1))
    assert follower.epoch(0).hash == planner(corpus, None).epoch(0).hash


def test_a_rank_plans_for_itself_where_there_is_no_room(
    random_corpus: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = random_corpus(200)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    leader = planner(corpus, plans(tmp_path, leads=True))
    leader.epoch(0)
    assert list(tmp_path.glob(f"{PREFIX}*/*.npy")) == []
    follower = planner(corpus, plans(tmp_path, leads=False, patience_s=30))
    assert follower.epoch(0).hash == leader.epoch(0).hash


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    left = plans(tmp_path, leads=True).folder
    (left / "pid").write_text("999999999")
    mine = NodePlans.of_run("another", leads=True, patience_s=0, root=tmp_path).folder
    assert not left.exists()
    assert [p.name.startswith(PREFIX) for p in tmp_path.iterdir()] == [True]
    assert mine.is_dir()
