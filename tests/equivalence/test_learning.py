"""What training on tiny problems must and must not reach; the FLOP model beside torch's own count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_docs
import torch
from loading import load

from sft_dist.config.model import LoraConfig
from sft_dist.model import attention
from sft_dist.model.packed import PackedLM, to_inputs
from sft_dist.pack import CostModel

STEPS = 80


def train_on(module: PackedLM, batches: list[Any]) -> list[float]:
    """Losses of one AdamW step a batch."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=0.0)
    out = []
    for batch in batches:
        weight = float(batch.target_weights.sum())
        loss = module(*to_inputs(batch, "cpu"))[0] / weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.append(float(loss.detach()))
    return out


@pytest.fixture
def module(tiny_model: Path) -> PackedLM:
    return load(tiny_model).module


def test_one_batch_is_memorised(module: PackedLM) -> None:
    losses = train_on(module, [tiny_docs.pack(tiny_docs.documents(0)[:3], list(range(3)))] * STEPS)
    assert losses[0] == pytest.approx(np.log(tiny_docs.VOCAB), abs=0.2)
    assert losses[-1] < 0.01


def test_labels_that_mean_nothing_are_not_learned(module: PackedLM) -> None:
    """The same documents, their labels drawn anew in every step: nothing but their frequency can be learned."""
    import dataclasses

    rng = np.random.default_rng(0)
    batch = tiny_docs.pack(tiny_docs.documents(0)[:3], list(range(3)))
    shuffled = [
        dataclasses.replace(batch, target_ids=rng.integers(1, tiny_docs.VOCAB, len(batch.target_ids)))
        for _ in range(STEPS)
    ]
    assert np.mean(train_on(module, shuffled)[-10:]) > np.log(tiny_docs.VOCAB) - 0.2


QWEN3_06B = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}


def test_flops_are_those_that_torch_counts() -> None:
    """One document, on the meta device; the dense twin multiplies all T^2 pairs, where the model counts T^2 / 2."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, Qwen3Config

    from sft_dist.pipelines.train.planning import cost_of

    T, N = 2048, 512
    attention.register()
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(
            Qwen3Config(**QWEN3_06B), attn_implementation=attention.registered_name("sdpa_dense")
        )
        module = PackedLM(hf).train()
        ids = torch.zeros(1, T, dtype=torch.long)
        positions = torch.zeros(1, T, dtype=torch.long)
        cu = torch.zeros(2, dtype=torch.int32)
        targets = torch.zeros(N, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            total, _ = module(ids, positions, cu, T, targets, targets, torch.zeros(N))
            forward_and_loss = counter.get_total_flops()
            total.backward()
    cost: CostModel = cost_of(QWEN3_06B)
    assert counter.get_total_flops() == pytest.approx(cost.useful_flops(T, 2 * T**2, N), rel=0.01)
    head = 3 * cost.head_flops_per_target * N  # its gradients are made in the forward pass
    assert forward_and_loss == pytest.approx(cost.row_cost(T, 2 * T**2) + head, rel=0.01)


@pytest.mark.parametrize("model_type", ["qwen3_5_text", "falcon_h1", "mamba2", "gpt2"])
def test_flops_of_layers_with_state_are_those_that_torch_counts(model_type: str) -> None:
    """Of tiny models most is recurrence. The counter sees no loop over a chunk, and every family adds small products of its own."""
    import tiny
    from torch.utils.flop_counter import FlopCounterMode

    from sft_dist.cluster.estimate.memory import Shape
    from sft_dist.pipelines.train.planning import cost_of

    T = 128
    hf = tiny.build(model_type)
    shape = hf.config.to_dict()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hf(torch.zeros(1, T, dtype=torch.long), use_cache=False)
    cost = cost_of(shape)
    assert counter.get_total_flops() == pytest.approx(cost.row_cost(T, 2 * T**2, T), rel=0.12)
    assert (cost.attention_flops_per_pair == 0) == (model_type == "mamba2")  # no layer attends: no squares
    assert Shape.of(shape).parameters == pytest.approx(sum(p.numel() for p in hf.parameters()), rel=0.06)


@pytest.mark.parametrize(
    "model_type",
    [
        "deepseek_v3",
        "falcon",
        "granitemoehybrid",
        "jamba",
        "kimi_linear",
        "lfm2",
        "lfm2_moe",
        "nemotron_h",
        "recurrent_gemma",
    ],
)
def test_flops_of_families_with_layers_of_several_kinds(model_type: str) -> None:
    """Dense layers beside experts, latent attention, no gate, one key-value head. The counter knows products of experts one by one only."""
    import tiny
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    from sft_dist.pipelines.train.planning import cost_of

    T = 96
    config = tiny.config_of(model_type)
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hf(torch.randint(1, 100, (1, T)), use_cache=False)
    assert cost_of(config.to_dict()).row_cost(T, 2 * T**2, T) == pytest.approx(
        counter.get_total_flops(), rel=0.1
    )


SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "intermediate_size": 384,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize(
    "trained",
    [
        {},
        {"freeze": ("embeddings",)},
        {"trainable": ("layers[4:]",)},
        {"trainable": ("head",)},
        {"trainable": ("*norm*",)},
        {"lora": LoraConfig(rank=4, alpha=8)},
        {
            "lora": LoraConfig(
                rank=16, alpha=8, target_modules=("q_proj", "v_proj"), modules_to_save=("lm_head",)
            )
        },
    ],
    ids=["all", "no embeddings", "upper half", "head", "norms", "lora", "lora and head"],
)
def test_flops_of_what_is_trained_are_those_that_torch_counts(trained: dict[str, Any]) -> None:
    """The lowest layer counts its first products in full: 3 % at eight layers."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, Qwen3Config

    from sft_dist.model import adapters, trainable
    from sft_dist.pipelines.train.planning import cost_of

    T, N = 256, 64
    attention.register()
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(
            Qwen3Config(**SMALL), attn_implementation=attention.registered_name("sdpa_dense")
        )
        module = PackedLM(hf).train()
        if "lora" in trained:
            adapters.add(hf, trained["lora"], 0)
        else:
            trainable.set_trainable(hf, trained.get("trainable", ()), trained.get("freeze", ()))
        ids = torch.zeros(1, T, dtype=torch.long)
        positions = torch.zeros(1, T, dtype=torch.long)
        cu = torch.zeros(2, dtype=torch.int32)
        targets = torch.zeros(N, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            module(ids, positions, cu, T, targets, targets, torch.zeros(N))[0].backward()
    cost = trainable.with_backward(cost_of(SMALL), hf)
    counted = counter.get_total_flops()
    assert cost.useful_flops(T, 2 * T**2, N) == pytest.approx(counted, rel=0.035)
    if trained and "freeze" not in trained:
        assert counted < 0.8 * cost_of(SMALL).useful_flops(T, 2 * T**2, N)
