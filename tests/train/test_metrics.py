"""Losses by task and by source come out of the same sums, in a slice of rows too."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from sft_dist.batch import sequence_shard
from sft_dist.core.records import Batch, StepMetrics
from sft_dist.model.packed import upload
from sft_dist.train import metrics
from sft_dist.train.metrics import STEP_METRICS, Meter

# Three documents of 3 tokens, one target each at its end: sources a, b, a; tasks x, x, y.
BATCH = Batch(
    input_ids=np.arange(9),
    position_ids=np.arange(9) % 3,
    cu_seqlens=np.array([0, 3, 6, 9], np.int32),
    max_seqlen=3,
    target_positions=np.array([1, 4, 7]),
    target_ids=np.array([2, 5, 8]),
    target_weights=np.array([1.0, 1.0, 3.0], np.float32),
    target_tasks=np.array([0, 0, 1]),
    doc_ids=("p", "q", "r"),
    doc_sources=(0, 1, 0),
    doc_cost_tokens=27,
)
NLL = torch.tensor([1.0, 2.0, 5.0])


@pytest.mark.parametrize("ranks", [1, 3])
def test_loss_of_each_task_and_source(monkeypatch: pytest.MonkeyPatch, ranks: int) -> None:
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda tensor: None)
    meter = Meter(["x", "y", "unseen"], torch.device("cpu"), ["a", "b"])
    for place in range(ranks):  # what the ranks' sums would add up to
        part = sequence_shard(BATCH, place, ranks)
        meter.add(upload(part, "cpu", meter.codes(part)), NLL if ranks == 1 else NLL[place : place + 1])
    sums = meter.reduce(stop=False, save=True)
    assert sums.task_loss == {"x": 1.5, "y": 5.0}
    assert sums.source_loss == {"a": 4.0, "b": 2.0}
    assert sums.total == {"loss": 18.0, "tokens": 9, "targets": 3, "pairs": 27}
    assert sums.ranks == {"stop": 0, "save": 1, "written": 0, "failed": 0}


def test_every_field_of_the_step_line_has_an_entry_in_the_table() -> None:
    assert {f.name for f in fields(StepMetrics)} == STEP_METRICS.keys()
