"""A step that the spike policy skips is not applied, whatever its first micro-batch holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sft_dist.batch.collate import EMPTY
from sft_dist.config.train import TrainConfig
from sft_dist.core.records import Batch
from sft_dist.model.packed import upload
from sft_dist.train import loop
from sft_dist.train.guard import SpikeDetector


class Frozen(nn.Module):
    """A trained embedding under a frozen head: an empty micro-batch gives it no gradient at all."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9).requires_grad_(False)

    def forward(self, ids_1T: Any, _p: Any, _c: Any, _m: Any, at_N: Any, ids_N: Any, weights_N: Any) -> Any:
        nll_N = nn.functional.cross_entropy(self.head(self.embed(ids_1T[0])[at_N]), ids_N, reduction="none")
        return (nll_N * weights_N).sum(), nll_N


@pytest.mark.parametrize("empty_first", [True, False])
def test_a_skipped_step_is_dropped_where_the_first_micro_batch_is_empty(
    monkeypatch: pytest.MonkeyPatch, empty_first: bool
) -> None:
    torch.manual_seed(0)
    module = Frozen()
    optimizer = torch.optim.SGD([module.embed.weight], lr=1.0)
    engine: Any = module
    engine.backward = lambda loss, scale_wrt_gas: loss.backward()
    ids = torch.arange(6).numpy()
    real = Batch.of_documents(ids, [6], ids[1:])
    batches = [upload(b, "cpu") for b in ((EMPTY, real) if empty_first else (real, EMPTY))]
    assert loop._largest(batches).batch is real
    before = module.embed.weight.detach().clone()
    for micro in batches:
        module(*micro.arrive())[0].backward()

    def update(engine: Any, clip: float | None) -> tuple[bool, float]:
        norm = float(module.embed.weight.grad.norm())
        if torch.isfinite(torch.tensor(norm)):
            optimizer.step()
            return True, norm
        return False, norm

    monkeypatch.setattr(loop, "update", update)
    spikes = SpikeDetector(TrainConfig(on_spike="skip"), [1.0] * 16)
    cause, _ = loop._update(engine, None, spikes, 99.0, loop._largest(batches))
    assert cause == "spike"
    assert torch.equal(module.embed.weight, before)
    assert 99.0 not in spikes.losses


def test_largest_is_the_same_for_ranks_that_share_rows() -> None:
    whole = SimpleNamespace(batch=SimpleNamespace(cu_seqlens=[0, 5, 9], target_ids=[]))
    small = SimpleNamespace(batch=SimpleNamespace(cu_seqlens=[0, 4], target_ids=[1, 2]))
    assert loop._largest([small, whole]) is whole  # its targets lie in another rank's slice
