"""A tiny random model of every causal language model that transformers maps: by rule, by hand where the rule does not do.

In: a model type. Out: its config with four layers (every kind of layer that the family has) and widths of a few dozen.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

VOCAB = 128
ROW = 128  # tokens, no more than the models have positions

# what a config calls its sizes -> the tiny one
RULE: dict[str, Any] = {
    "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.1,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "n_group": 1, "topk_group": 1, "moe_num_experts": 4, "moe_k": 2, "first_k_dense_replace": 1, "num_dense_layers": 1,
    "n_shared_experts": 1, "shared_expert_intermediate_size": 16,
    "n_embd": 32, "n_head": 4, "n_layer": 4, "n_inner": 48, "n_positions": 128, "d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 128,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "qk_head_dim": 12,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "sliding_window": 8,
    "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8, "mamba_dt_rank": 4, "chunk_size": 8,
    "state_size": 8, "time_step_rank": 4, "ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LATENT = {"head_dim": 4, "num_key_value_heads": 4}  # with qk_rope_head_dim: heads of two parts, one key each


def _layers(*kinds: str) -> dict[str, Any]:
    return {"layer_types": list(kinds) * 2}


INDEXER = {"index_topk": 4, "index_head_dim": 8, "index_n_heads": 2}
LINEAR = _layers("linear_attention", "full_attention")
CONV = _layers("conv", "full_attention")
SLIDING = _layers("sliding_attention", "full_attention")
HYBRID = _layers("hybrid_sliding", "hybrid")
GEMMA4 = {**SLIDING, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 8, "global_head_dim": 16}
DOTS3 = {
    **LATENT, **INDEXER, "head_dim": 12, "shared_experts_intermediate_size": 16, "swa_num_attention_heads": 2, "swa_num_key_value_heads": 2,
    "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16, "swa_head_dim": 12, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
}  # fmt: skip
QWEN4 = {
    **_layers("linear_attention", "indexed_attention"), "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
    "indexer_compress_ratio": 2, "ple_layer_ids": [1, 3], "ple_embed_dim": 32, "heads_per_ngram": 2, "ngram_vocab_size_base": 50,
    "make_ngram_vocab_size_divisible_by": 4, "hc_lowrank": 8, "hc_count": 2,
}  # fmt: skip
INKLING = {
    **HYBRID, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 4, "rel_extent": 8,
    "moe_intermediate_size": 16, "vocab_size": VOCAB + 8, "unpadded_vocab_size": VOCAB,
}  # fmt: skip
LLAMA4 = {
    **_layers("chunked_attention", "full_attention"),
    "attention_chunk_size": 8,
    "intermediate_size_mlp": 48,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}

# model type -> what differs from the rule
BY_HAND: dict[str, dict[str, Any]] = {
    "axk2": INDEXER,
    "bailing_hybrid": LINEAR,
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {**SLIDING, "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), ROPE)},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
        "rope_parameters": ROPE,
    },
    "deepseek_v32": INDEXER,
    "deepseek_v4": {**INDEXER, "sliding_window": 8},
    "dots3_note": DOTS3,
    "dots3_note_text": DOTS3,
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5},
    "gemma3n": {**SLIDING, "num_kv_shared_layers": 2, "intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.0] * 4},
    "gemma4": GEMMA4,
    "gemma4_text": GEMMA4,
    "gemma4_unified": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "glm_moe_dsa": INDEXER,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "gptj": {"rotary_dim": 4},
    "inkling_text": {**INKLING, "mlp_layer_types": ["dense", "sparse"] * 2},
    "inkling2_text": {**INKLING, "n_layers_per_attn_res_block": 2},
    "inkling2_loop_text": {
        **INKLING, "num_hidden_layers": 6, "layer_types": HYBRID["layer_types"][:2] * 3, "n_layers_per_attn_res_block": 2,
        "loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 2, "loop_gate_rank": 4,
    },
    "kimi_linear": {**LINEAR, "linear_head_dim": 8, "linear_num_heads": 2},
    "lara_mini": LINEAR,
    "lfm2": CONV,
    "lfm2_moe": CONV,
    "lfm3": CONV,
    "llama4": LLAMA4,
    "llama4_text": LLAMA4,
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax": LINEAR,
    "nemotron_h": {"moe_shared_expert_intermediate_size": 16},
    "olmo_hybrid": LINEAR,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 4},
    "qwen3_5": LINEAR,
    "qwen3_5_moe": LINEAR,
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "qwen4_exp": QWEN4,
    "qwen4_exp_text": QWEN4,
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_head_dim": 16, "num_key_value_heads": 4},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "mamba_ngroups": 1, "adapter_rank": 4},
    "zaya": {**HYBRID, "num_experts_per_tok": 1, "router_hidden_size": 8},
}  # fmt: skip
# layers that attend, beside those that keep a state
BY_HAND["bamba"] = {"attn_layer_indices": [1, 3]}
BY_HAND["granitemoehybrid"] = {"layer_types": ["linear_attention", "full_attention"] * 2}
BY_HAND["jamba"] = {"attn_layer_period": 2, "attn_layer_offset": 1}
BY_HAND["gemma3n_text"] = BY_HAND["gemma3n"] | {
    "laurel_rank": 4,
    "altup_num_inputs": 2,
    "hidden_size_per_layer_input": 8,
}


def causal_types() -> dict[str, str]:
    """Return every model type of the causal-LM mapping with its class."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return {t: c if isinstance(c, str) else c[0] for t, c in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}


def config_of(model_type: str) -> Any:
    """Return the tiny config; of a model with several towers, that of its text part."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    full = kind()
    text = full.get_text_config()
    keys = set(text.to_dict()) | set(getattr(text, "attribute_map", {}))
    sizes = {k: v for k, v in RULE.items() if k in keys}
    if "qk_rope_head_dim" in keys:
        sizes |= LATENT
    config = type(text)(**(sizes | BY_HAND.get(model_type, {})))
    for name in config.to_dict():  # two forward passes of one model must not differ by chance
        if "dropout" in name or name.endswith(("pdrop", "jitter_noise", "jitter_eps")):
            with contextlib.suppress(Exception):
                setattr(config, name, 0.0)
    return config


# At 0 the gradient of a decay is the difference of sums a thousand times as large: transformers alone, in float32, is 1 % off
# its own float64.
SEEDS = {"kimi_linear": 9}


def build(model_type: str) -> Any:
    """Return the model, random, in float32, in eager attention; what starts at zero or one is random too."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEEDS.get(model_type, 0))
    model = AutoModelForCausalLM.from_config(config_of(model_type), attn_implementation="eager").float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(parameter, std=2.0)
            elif parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
            elif not torch.isfinite(parameter).all():  # left as memory was
                torch.nn.init.normal_(parameter, std=0.1)
    return model.train()


def save(model_type: str, folder: Path) -> Path:
    """Write the model; return the folder."""
    build(model_type).save_pretrained(folder)
    return folder
