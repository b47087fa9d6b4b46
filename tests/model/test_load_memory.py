"""Under ZeRO-3 no rank holds the model while it is loaded: measured on two ranks and 100 MB of weights."""

from __future__ import annotations

import json
from pathlib import Path

import families
import pytest
import torch
from ranks import on_ranks

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_rank_needs_its_share_and_one_parameter_more(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 7,
        "num_attention_heads": 8,
        "vocab_size": 4000,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**{**families.SHAPE, **shape, "num_key_value_heads": 8, "head_dim": 64})
    )
    model.save_pretrained(tmp_path / "model")
    total = sum(p.numel() * 4 for p in model.parameters())
    largest = max(p.numel() * 4 for p in model.parameters())
    assert total > 100e6
    on_ranks(2, HERE / "load_cases.py", str(tmp_path / "model"), str(tmp_path))
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert seen["equal"]
        # its half of the weights, one parameter before it is cut, and 15 MB of what Python and DeepSpeed keep
        assert seen["bytes"] < total / 2 + 2 * largest + 15e6, seen
