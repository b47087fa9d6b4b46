"""What the config.json of a base model says of its decoder, read without transformers or torch.

In: `model.path` and `model.revision`. Out: the text part as a dictionary, from a folder or the hub's cache; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_dist.config.model import ModelConfig
from sft_dist.core.files import expanded, is_local, read_object

REMEDY = "download or copy the model again, or correct model.path"


def located(path: str, revision: str | None = None) -> Path | None:
    """Return the file of a folder or, of a hub id, in the hub's cache; None where it is not on this machine."""
    if is_local(path):
        file = expanded(path) / "config.json"
        return file if file.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def text_config(model: ModelConfig) -> dict[str, Any]:
    """Return the text part of the config.json of `model.path`; empty where it is not on this machine, or there is none.

    Raises:
        UserError: When the file is torn, or no model's config.
    """
    file = located(model.path, model.revision) if model.path else None
    if file is None:
        return {}
    whole = read_object(file, REMEDY, {"text_config": (dict, type(None))})
    return dict(whole.get("text_config") or whole)
