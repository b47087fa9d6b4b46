"""A peft adapter and its base -> a whole model folder, by peft's own merge in fp32. Needs memory for 4 bytes a parameter."""

from __future__ import annotations

import shutil
from pathlib import Path

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object, replace_folder
from sft_dist.evals.generate import load_model
from sft_dist.model.adapter_folder import WEIGHTS


def merge(adapter: Path, out: Path, base: str | None = None) -> Path:
    """Write the merged model, its tokenizer beside it, in the dtype of its base; return the folder.

    Args:
        adapter: Folder that peft or `sft-dist export` wrote.
        out: A new folder.
        base: Folder or hub id of the base; None: the one that the adapter names.

    Raises:
        UserError: When `adapter` is no adapter, its base is not the one that it was trained on, or `out` exists.
    """
    if not (adapter / WEIGHTS).is_file():
        raise UserError(
            f"{adapter} has no {WEIGHTS}, so there is no adapter to merge; name the folder that holds it"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"--out {out} exists and is not empty, and merging would replace it; name a new folder"
        )
    said = read_object(adapter / "adapter_config.json", "it is no adapter of peft; name another folder")
    base = base or str(said.get("base_model_name_or_path") or "")
    if not base:
        raise UserError(f"{adapter / 'adapter_config.json'} names no base; name one with --base")
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    revision = said.get("revision")
    model = load_model(base, revision=revision, dtype="float32", adapter=adapter)
    dtype = AutoConfig.from_pretrained(base, revision=revision).dtype or torch.float32
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise UserError(
            f"the adapter {adapter} does not fit {base} ({str(error).strip().splitlines()[0]}); name the base that it was trained on with --base"
        ) from None
    aside = out.with_name(f".{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    merged.to(dtype).save_pretrained(aside)
    own = (adapter / "tokenizer_config.json").is_file()
    AutoTokenizer.from_pretrained(
        str(adapter) if own else base, revision=None if own else revision
    ).save_pretrained(aside)
    replace_folder(aside, out)
    return out
