"""Tiny random models of every supported family: all features of the real ones, in a few thousand weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB = 128
SHAPE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MIXED = ["sliding_attention", "full_attention"]

# family -> (class of the model, what differs from SHAPE)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", EXPERTS),
    "mistral": ("MistralForCausalLM", {"sliding_window": 8}),
    "gemma2": (
        "Gemma2ForCausalLM",
        {"sliding_window": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {"sliding_window": 8, "layer_types": MIXED, "query_pre_attn_scalar": 8, "tie_word_embeddings": True},
    ),
    "gpt_oss": (
        "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8, "layer_types": MIXED,
         "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ),
    "glm4": ("Glm4ForCausalLM", {}),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "phi3": ("Phi3ForCausalLM", {"sliding_window": 8}),
    "granite": ("GraniteForCausalLM", {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
    "cohere": ("CohereForCausalLM", {"logit_scale": 0.25}),
}  # fmt: skip


def config_of(family: str) -> Any:
    """Return the tiny config of a family."""
    import transformers

    name, extra = FAMILIES[family]
    kind = getattr(transformers, name).config_class
    return kind(**{**SHAPE, **extra})


def save(family: str, folder: Path, seed: int = 0) -> Path:
    """Write a random model of a family; return the folder."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, FAMILIES[family][0])(config_of(family))
    for name, parameter in model.named_parameters():  # what starts at zero or one would hide mistakes
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter, std=2.0)
    model.save_pretrained(folder)
    return folder


def save_image_text(name: str, folder: Path) -> Path:
    """Write a tiny image-text model."""
    import torch
    import transformers

    text = {**SHAPE, "num_hidden_layers": 2}
    if name == "Gemma3ForConditionalGeneration":
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        }
        config = transformers.Gemma3Config(
            text_config={**text, "sliding_window": 8, "layer_types": MIXED, "query_pre_attn_scalar": 8},
            vision_config=vision, mm_tokens_per_image=4, image_token_index=100, boi_token_index=101, eoi_token_index=102,
        )  # fmt: skip
    else:
        vision = {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        }
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        config = transformers.Qwen2_5_VLConfig(
            text_config={**text, "rope_parameters": rope}, vision_config=vision, image_token_id=100, video_token_id=101, vision_start_token_id=102,
        )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, name)(config)
    model.save_pretrained(folder)
    return folder
