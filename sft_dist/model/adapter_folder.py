"""A peft adapter's folder that training goes on from: whether it fits the config and the base. Reads no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object

WEIGHTS = "adapter_model.safetensors"
BASE = "base_model.json"  # beside an adapter: what peft's own adapter_config.json does not say of its base


def check_folder(lora: LoraConfig) -> dict[str, Any]:
    """Return adapter_config.json of the adapter that training goes on from.

    Raises:
        UserError: When it is no adapter's folder, or was made with other settings than `lora` says.
    """
    assert lora.adapter is not None
    folder = Path(lora.adapter)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"lora.adapter={folder} has no {WEIGHTS}, so there is no adapter to go on from; name the folder that peft wrote, or "
            "an export of lora.export=adapter"
        )
    said = read_object(folder / "adapter_config.json", "it is no adapter of peft; name another folder")
    for key, name in (("rank", "r"), ("alpha", "lora_alpha"), ("dora", "use_dora"), ("rslora", "use_rslora")):
        ours, theirs = getattr(lora, key), said.get(name, False)
        if ours != theirs:
            raise UserError(
                f"lora.{key}={ours}, but the adapter {folder} was made with {theirs}, so its weights would mean something else; "
                f"use lora.{key}={str(theirs).lower()}"
            )
    return said


def check_base(lora: LoraConfig, base: str | None) -> None:
    """Refuse an adapter that was trained on another model than this run starts from.

    Args:
        lora: With `adapter`.
        base: Fingerprint of the model that training starts from.

    Raises:
        UserError: When the folder says which base it belongs to, and that is another one.
    """
    if lora.adapter is None or not (record := Path(lora.adapter) / BASE).is_file():
        return
    if read_object(record, "export the adapter again").get("fingerprint") != base:
        raise UserError(
            f"lora.adapter={lora.adapter} was trained on another model than model.path is, so the two do not belong together; start from its base"
        )
