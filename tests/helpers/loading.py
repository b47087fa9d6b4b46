"""The model that training loads, on a CPU in float32, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_dist.config.model import LoraConfig, ModelConfig
from sft_dist.model.load import Loaded, load_packed
from sft_dist.model.ulysses import SequenceGroup


def load(
    folder: Path | str,
    *,
    zero_config: Mapping[str, Any] | None = None,
    lora: LoraConfig | None = None,
    seed: int = 0,
    sequence: SequenceGroup | None = None,
    seq_len: int = 0,
    min_vocab_size: int = 0,
    **model: Any,
) -> Loaded:
    """Load a folder; what is left are keys of the section `model`, float32 and no recomputation by default."""
    return load_packed(
        str(folder),
        ModelConfig(**{"dtype": "float32", "gradient_checkpointing": False, **model}),
        device="cpu",
        zero_config=zero_config,
        lora=lora,
        seed=seed,
        sequence=sequence,
        seq_len=seq_len,
        min_vocab_size=min_vocab_size,
    )
