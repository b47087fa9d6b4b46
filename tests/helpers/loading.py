"""The model that training loads, on a CPU in float32, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_dist.config.model import ModelConfig
from sft_dist.model.load import Loaded, load_packed


def load(folder: Path | str, **options: Any) -> Loaded:
    """Load a folder; options are keys of the section `model` (float32 and no recomputation by default) or of `load_packed`."""
    section = {k: options.pop(k) for k in list(options) if k in ModelConfig.model_fields}
    model = ModelConfig(**{"dtype": "float32", "gradient_checkpointing": False, **section})
    return load_packed(str(folder), model, device="cpu", **options)
