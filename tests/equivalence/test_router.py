"""The load-balance loss is that of the global batch: for any ranks, micro-steps and packing, padding left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases_router
import pytest
import tiny_docs
import torch
from cases_router import COEFFICIENT, Balance
from loading import load
from torch.nn import functional as F

from sft_dist.core.errors import UserError
from sft_dist.model.router_balance import RouterBalance, own_coefficient

Outcome = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cases_router.save_model(tmp_path_factory.mktemp("routed"))


def plain(folder: Path, coefficient: float) -> tuple[torch.Tensor, list[float]]:
    """Gradient and load by transformers' eager attention, one document at a time, one process."""
    from transformers import Qwen3MoeForCausalLM

    hf = Qwen3MoeForCausalLM.from_pretrained(folder, attn_implementation="eager")
    total, weight, logits = torch.zeros(()), 0.0, []
    for doc in tiny_docs.documents(0):
        out = hf(torch.tensor([doc]), output_router_logits=True)
        ce = F.cross_entropy(out.logits[0][:-1], torch.tensor(doc[1:]), reduction="none")
        w = torch.tensor(tiny_docs.weights_of(doc)[1:])
        total, weight = total + (ce * w).sum(), weight + float(w.sum())
        logits.append(out.router_logits)
    loss, loads = total / weight, []
    for layer in zip(*logits, strict=True):
        p = torch.cat(layer).softmax(-1)
        n, experts = p.shape
        counts = torch.bincount(p.topk(2).indices.flatten(), minlength=experts)
        loss = loss + coefficient / len(logits[0]) * experts * ((counts / n) * (p.sum(0) / n)).sum()
        loads.append(float(counts.max() / counts.float().mean()))
    loss.backward()
    return torch.cat([x.grad.flatten() for x in hf.parameters()]), loads


@pytest.mark.parametrize(
    ("world", "case"),
    [
        (1, Balance(stage=3, micro_steps=1)),
        (1, Balance(stage=0, micro_steps=4)),
        (2, Balance(stage=3, micro_steps=1, checkpointing=True)),
        (2, Balance(stage=3, micro_steps=16)),  # half of the micro-batches are empty
    ],
)
def test_gradient_and_load_are_those_of_plain_torch(
    outcome: Outcome, model: Path, world: int, case: Balance
) -> None:
    seen = outcome(case, world)
    g, loads = plain(model, COEFFICIENT)
    ours = torch.load(seen["file"])
    assert float((ours - g).norm() / g.norm()) < 1e-5
    assert list(seen["load"].values()) == pytest.approx(loads)
    assert list(seen["load"]) == ["layers.0.mlp.gate", "layers.1.mlp.gate"]
    without, _ = plain(model, 0.0)
    assert float((ours - without).norm() / g.norm()) > 1e-2


def test_a_model_whose_routers_no_loss_balances_is_refused(tiny_model: Path) -> None:
    module = load(tiny_model).module
    with pytest.raises(UserError, match="llama has no routers that a loss balances"):
        RouterBalance(module.hf, 0.01)


def test_the_coefficient_may_be_the_models_own(model: Path) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(model)
    assert own_coefficient(hf) == hf.config.router_aux_loss_coef > 0
    dense = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20
    )
    assert own_coefficient(LlamaForCausalLM(dense)) is None
