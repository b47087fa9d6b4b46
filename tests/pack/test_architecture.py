"""What a config.json says of its layers, by the names that families use."""

from __future__ import annotations

from typing import Any

import pytest

from sft_dist.pack.architecture import mixers_of, size_of

BASE = {"hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 32}


@pytest.mark.parametrize(
    ("config", "attending", "keeping", "feeding"),
    [
        ({}, 8, 0, 8),
        ({"layer_types": ["sliding_attention", "full_attention"] * 4}, 8, 0, 8),
        ({"layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2, **DELTA}, 2, 6, 8),
        ({"full_attention_interval": 4, **DELTA}, 2, 6, 8),  # as a config.json of the hub has it
        ({"layer_types": ["conv", "conv", "full_attention", "conv"] * 2, "conv_L_cache": 3}, 2, 6, 8),
        ({"attn_layer_period": 8, "attn_layer_offset": 4, "mamba_d_state": 16}, 1, 7, 8),
        ({"model_type": "falcon_h1", **MAMBA2}, 8, 8, 8),
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-ME-", **MAMBA2}, 1, 3, 4),
        ({"model_type": "mamba2", "num_heads": 8, "head_dim": 16, "state_size": 32}, 0, 8, 0),
        ({"block_types": ["recurrent", "recurrent", "attention"]}, 2, 6, 8),
    ],
)
def test_kinds_of_layers(config: dict[str, Any], attending: int, keeping: int, feeding: int) -> None:
    found = mixers_of(BASE | config)
    assert (found.attending, found.keeping, found.feeding) == (attending, keeping, feeding)
    assert bool(found.state_weights) == bool(keeping)


def test_weights_of_a_gated_delta_net_by_hand() -> None:
    found = mixers_of(BASE | DELTA | {"full_attention_interval": 4, "linear_conv_kernel_dim": 4})
    # queries and keys of 16, values and gates of 64, two numbers a head; output; convolution
    assert found.state_weights == 64 * (16 + 16 + 64 + 64 + 8) + 64 * 64 + 4 * (16 + 16 + 64)


def test_other_names_of_a_size() -> None:
    assert size_of({"n_embd": 32}, "hidden_size") == 32
    assert size_of({"intermediate_size": [48, 96]}, "intermediate_size") == 96
    assert size_of({"mamba_d_head": "auto"}, "mamba_d_head") is None
