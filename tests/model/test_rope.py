"""Positions beyond a model's limit are refused with the remedy; rescaled ones are what transformers computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import tiny_docs
import torch
from loading import load
from torch.nn import functional as F

from sft_dist.config.model import RopeScalingConfig
from sft_dist.core.errors import UserError
from sft_dist.model import rope
from sft_dist.model.packed import to_inputs

PLAIN = {"max_position_embeddings": 4096}
OLD_YARN = {
    "max_position_embeddings": 4096,
    "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
}
LLAMA3 = {"max_position_embeddings": 131072, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}
LONG = {
    "max_position_embeddings": 131072, "original_max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "longrope", "short_factor": [], "long_factor": []},
}  # fmt: skip
LAYERED = {
    "max_position_embeddings": 1024,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default"},
        "full_attention": {"rope_type": "linear", "factor": 8.0},
    },
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(PLAIN, 4096), (OLD_YARN, 16384), (LLAMA3, 131072), (LONG, 131072), (LAYERED, 8192), ({}, None)],
)
def test_how_far_positions_reach(text: dict[str, Any], expected: int | None) -> None:
    assert rope.reach(text) == expected


@pytest.mark.parametrize(
    ("text", "scaling", "seq_len", "message"),
    [
        (PLAIN, None, 8192, "pack.seq_len=8192 is more than the 4096 positions .*pack.seq_len=4096, or set model.rope_scaling.type=yarn and model.rope_scaling.factor=2"),
        (PLAIN, RopeScalingConfig(type="yarn", factor=2.0), 16384, "more than the 8192 positions .*raise model.rope_scaling.factor to 4"),
        (LLAMA3, RopeScalingConfig(type="yarn", factor=2.0), 4096, r"already rescales its positions \(llama3\)"),
        (LONG, None, 8192, "depend on the longest document of a row beyond 4096 tokens.*use pack.seq_len=4096"),
        ({}, RopeScalingConfig(type="linear", factor=2.0), 8, "has no limit of positions"),
    ],
)  # fmt: skip
def test_out_of_reach_is_refused_with_the_remedy(
    text: dict[str, Any], scaling: RopeScalingConfig | None, seq_len: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        rope.check_reach(text, scaling, seq_len)


@pytest.mark.parametrize(
    ("text", "scaling", "seq_len"),
    [
        (PLAIN, None, 4096),
        (PLAIN, RopeScalingConfig(type="linear", factor=2.0), 8192),
        (OLD_YARN, None, 16384),
        (LONG, None, 4096),
    ],
)
def test_within_reach_passes(text: dict[str, Any], scaling: RopeScalingConfig | None, seq_len: int) -> None:
    rope.check_reach(text, scaling, seq_len)


@pytest.mark.parametrize("kind", ["yarn", "linear"])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_rescaled_positions_are_those_of_transformers(tmp_path: Path, family: str, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = families.save(family, tmp_path / "m")
    docs = [
        [(7 * i) % 120 + 1 for i in range(200)],
        tiny_docs.documents(0)[0],
    ]  # 200 tokens: beyond the limit of 128
    with pytest.raises(UserError, match="128 positions"):
        load(folder, seq_len=200)
    module = load(folder, seq_len=200, rope_scaling={"type": kind, "factor": 2.0}).module
    ours = module(*to_inputs(tiny_docs.pack(docs, [0, 1]), "cpu"))[1]

    config = AutoConfig.from_pretrained(folder)
    extra = {"rope_type": kind, "factor": 2.0, "original_max_position_embeddings": 128}
    own = config.rope_parameters
    config.rope_parameters = (
        {**own, "full_attention": {**own["full_attention"], **extra}}
        if family == "gemma3"
        else {**own, **extra}
    )
    config.max_position_embeddings = 256
    plain = AutoModelForCausalLM.from_pretrained(
        folder, config=config, attn_implementation="eager", dtype=torch.float32
    )
    unscaled = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)

    def alone(model: Any) -> torch.Tensor:
        with torch.no_grad():
            every = [model(torch.tensor([d]), use_cache=False).logits[0] for d in docs]
        nll = [
            F.cross_entropy(x[:-1], torch.tensor(d[1:]), reduction="none")
            for x, d in zip(every, docs, strict=True)
        ]
        return torch.cat(
            [n[torch.tensor(tiny_docs.weights_of(d)[1:]) > 0] for n, d in zip(nll, docs, strict=True)]
        )

    torch.testing.assert_close(ours, alone(plain), rtol=1e-5, atol=2e-5)
    assert not torch.allclose(ours, alone(unscaled), atol=1e-3)
    assert module.hf.config.max_position_embeddings == 256


def test_learned_positions_have_a_limit_and_no_scaling(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="pack.seq_len=64 is more than the 32 positions"):
        load(tmp_path, seq_len=64)
    with pytest.raises(UserError, match="gpt2 has no rotary positions to rescale"):
        load(tmp_path, seq_len=64, rope_scaling={"type": "linear", "factor": 2.0})
