"""A shape -> a model of random weights, to train from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def create_initial(
    folder: Path,
    *,
    shape: Mapping[str, Any],
    vocab_size: int,
    bos_id: int | None,
    eos_id: int | None,
    pad_id: int | None,
    seed: int,
) -> None:
    """Write a randomly initialised Llama-type model, a function of shape and seed alone, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape["hidden_size"],
        intermediate_size=shape["intermediate_size"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"] or shape["heads"],
        max_position_embeddings=shape["max_position_embeddings"],
        rope_parameters={"rope_type": "default", "rope_theta": shape["rope_theta"]},
        tie_word_embeddings=shape["tie_word_embeddings"],
        initializer_range=shape["initializer_range"],
        bos_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).float().save_pretrained(folder)
