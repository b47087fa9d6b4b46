"""What a config.json says of its layers, by the names that families use."""

from __future__ import annotations

from typing import Any

import pytest

from sft_dist.pack.architecture import dense_layers, dense_width, key_value_heads, mixers_of, size_of

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


@pytest.mark.parametrize(
    ("config", "dense"),
    [
        ({}, 0),
        ({"first_k_dense_replace": 3}, 3),
        ({"num_dense_layers": 2}, 2),
        ({"mlp_layer_types": ["dense"] + ["sparse"] * 7}, 1),
        ({"expert_layer_period": 2, "expert_layer_offset": 1}, 4),
        ({"decoder_sparse_step": 2, "mlp_only_layers": [1]}, 5),
        ({"layers_block_type": ["mamba", "moe", "attention", "mlp"] * 2}, 2),
    ],
)
def test_layers_without_experts(config: dict[str, Any], dense: int) -> None:
    assert dense_layers(BASE | config) == dense


def test_a_list_of_layers_says_how_many_there_are() -> None:
    listed = {"hidden_size": 64, "layers_block_type": ["mamba", "moe", "attention", "mlp"]}
    assert size_of(listed, "num_hidden_layers") == 4


def test_widths_that_a_config_names_otherwise() -> None:
    lfm2 = {
        "model_type": "lfm2",
        "intermediate_size": 12_288,
        "block_auto_adjust_ff_dim": True,
        "block_multiple_of": 256,
    }
    assert dense_width(lfm2) == 8192
    assert dense_width({"model_type": "recurrent_gemma", "intermediate_size": 96}) == 48
    assert key_value_heads({"multi_query": True}) == 1
    assert key_value_heads({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 8}) == 8


def test_other_names_of_a_size() -> None:
    assert size_of({"n_embd": 32}, "hidden_size") == 32
    assert size_of({"intermediate_size": [48, 96]}, "intermediate_size") == 96
    assert size_of({"mamba_d_head": "auto"}, "mamba_d_head") is None
