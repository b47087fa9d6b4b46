"""Checkpoint -> Hugging Face folder that plain `from_pretrained` opens: weights, tokenizer, template, end-of-turn.

What was trained comes from the slices of the checkpoint, everything else (frozen layers, vision towers, buffers, tensors
that the model does not even read) from the files of the base, under the names that it has there. Files are assembled one
at a time, so memory stays bounded, and several processes write different ones. Reads no engine: any machine with the
checkpoint and the base can export.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sft_dist.checkpoint.export_plan import Base, Item, plan_export, tensors_of
from sft_dist.checkpoint.index import DamagedError, Index, OldFormatError, read_index
from sft_dist.checkpoint.io import read_parameter
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object, replace_folder, write_json
from sft_dist.model import adapter_folder, adapters, rope, support, vocabulary
from sft_dist.model import weight_files as files
from sft_dist.model.load import DTYPES, read_config
from sft_dist.model.weight_files import BaseFiles
from sft_dist.render.tokenizer import TextTokenizer

SHARD_BYTES = 4 << 30


def export_checkpoint(
    checkpoint: Path,
    base: Base,
    out: Path,
    *,
    dtype: str,
    tokenizer: TextTokenizer,
    template_text: str,
    stop_ids: list[int],
    as_adapter: bool = False,
    part: tuple[int, int] = (0, 1),
    barrier: Callable[[], Any] = lambda: None,
) -> None:
    """Write a model folder.

    Args:
        checkpoint: A whole checkpoint.
        base: What training started from.
        out: The folder; replaced as a whole when it is complete.
        dtype: float32 or bfloat16, of the written weights.
        tokenizer: The tokenizer that rendered the training data.
        template_text: Its chat template, as Jinja.
        stop_ids: End-of-turn tokens; the configs list them before those of the base.
        as_adapter: Write the adapters alone, as a peft folder, instead of merging them.
        part: (i, n): this process writes every n-th file from the i-th.
        barrier: Waits for the other processes.

    Raises:
        UserError: When the checkpoint is damaged or belongs to another model.
    """
    try:
        index = read_index(checkpoint)
    except (DamagedError, OldFormatError) as error:
        raise UserError(
            f"{checkpoint} cannot be exported ({error}), so the model would be wrong; name another one with --checkpoint"
        ) from None
    if as_adapter:
        _refuse_adapter(base)
    if part[0] == 0:
        _refuse_other_base(index, base)
    aside = out.with_name(f".{out.name}.partial")
    if part[0] == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    config = read_config(base.path, revision=base.revision, trust_remote_code=base.trust_remote_code)
    model = files.meta_model(config, trust_remote_code=base.trust_remote_code)
    if as_adapter:
        if part[0] == 0:
            _write_adapter(checkpoint, index, base, model, aside, dtype)
    else:
        rope.rescale(config, base.rope_scaling)
        text = config.get_text_config()
        text.vocab_size = support.rows_for(
            text.vocab_size, tokenizer.vocab_size, base.vocab_multiple, base.path
        )
        _write_weights(checkpoint, index, base, model, aside, dtype, text.vocab_size, part)
        barrier()
        if part[0] == 0:
            _write_configs(aside, base, config, model, dtype, tokenizer, stop_ids)
    if part[0] == 0:
        tokenizer.save(
            aside, template_text=template_text, eos=tokenizer.text_of(stop_ids[0]) if stop_ids else None
        )
        replace_folder(aside, out)
    barrier()


def _write_weights(
    checkpoint: Path,
    index: Index,
    base: Base,
    model: Any,
    aside: Path,
    dtype: str,
    rows: int,
    part: tuple[int, int],
) -> None:
    found = BaseFiles.find(base.path, base.revision)
    groups = _group(plan_export(index, base, model, found), torch.finfo(DTYPES[dtype]).bits // 8)
    names = (
        [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        if len(groups) > 1
        else ["model.safetensors"]
    )
    embeddings = {
        n
        for n, p in model.named_parameters()
        if p is model.get_input_embeddings().weight or p is model.get_output_embeddings().weight
    }
    for i in range(part[0], len(groups), part[1]):
        tensors: dict[str, Tensor] = {}
        for item in groups[i]:
            for key, tensor in tensors_of(checkpoint, index, base, model, found, item).items():
                value = tensor if item.name is None else tensor.to(DTYPES[dtype])
                tensors[key] = vocabulary.grown(value, rows) if item.name in embeddings else value
        _save({k: t.contiguous() for k, t in tensors.items()}, aside / names[i])
    if part[0] == 0 and len(groups) > 1:
        total = sum(item.numel for group in groups for item in group) * (torch.finfo(DTYPES[dtype]).bits // 8)
        where = {k: names[i] for i, group in enumerate(groups) for item in group for k in item.keys}
        write_json(aside / files.INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _group(items: list[Item], item_bytes: int) -> list[list[Item]]:
    """Group what is written into files of at most SHARD_BYTES."""
    groups: list[list[Item]] = [[]]
    size = 0
    for item in items:
        n = item.numel * item_bytes
        if groups[-1] and size + n > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += n
    return groups


def _refuse_other_base(index: Index, base: Base) -> None:
    trained_from = index.facts.get("base")
    if trained_from is not None and trained_from != files.base_fingerprint(base.path, base.revision):
        raise UserError(
            f"{base.path} is another model now than the one that training started from, so the export would be a mixture of the two; "
            "restore it, or pin it by model.revision"
        )


def _refuse_adapter(base: Base) -> None:
    if base.lora is None:
        raise UserError(
            "an adapter was asked for, but the run trained the weights themselves (lora is null); export the whole model"
        )
    if base.rope_scaling or base.vocab_multiple:
        changed = "model.rope_scaling" if base.rope_scaling else "model.vocab_multiple"
        raise UserError(
            f"lora.export=adapter would lose {changed}, which changes the base itself; use lora.export=merged"
        )


def _write_adapter(checkpoint: Path, index: Index, base: Base, model: Any, aside: Path, dtype: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors as peft reads them."""
    assert base.lora is not None
    names = adapters.folder_names(index.parameters)
    tensors = {
        short: read_parameter(checkpoint, index, n, base.kind).to(DTYPES[dtype]).contiguous()
        for n, short in names.items()
    }
    settings = adapters.peft_config(model, base.lora)
    if adapters.is_tied(model) and adapters.saved_ends(model, base.lora):
        # peft trains modules apart: each gets the matrix that is one here
        ends = adapters.ends_of(model)
        (shared,) = (t for n in ends if (t := tensors.get(f"base_model.model.{n}.weight")) is not None)
        tensors |= {f"base_model.model.{n}.weight": shared.clone() for n in ends}
        settings.modules_to_save = [*(settings.modules_to_save or []), *(n.rpartition(".")[2] for n in ends)]
    _save(tensors, aside / adapter_folder.WEIGHTS)
    settings.base_model_name_or_path = base.path
    settings.revision = files.commit_of(base.path, base.revision) or base.revision
    settings.task_type, settings.inference_mode = "CAUSAL_LM", True
    settings.save_pretrained(aside)
    write_json(aside / adapter_folder.BASE, {"fingerprint": files.base_fingerprint(base.path, base.revision)})


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a file of weights with the permissions that the umask gives; the library's own are the owner's alone."""
    save_file(tensors, path, metadata={"format": "pt"})
    plain = path.with_name(f".{path.name}.mode")
    plain.touch()
    path.chmod(plain.stat().st_mode & 0o777)
    plain.unlink()


def _write_configs(
    folder: Path,
    base: Base,
    config: Any,
    model: Any,
    dtype: str,
    tokenizer: TextTokenizer,
    stop_ids: list[int],
) -> None:
    """Write config.json and generation_config.json, which agree on the special tokens.

    Layers that read the end of a text themselves (n-grams of Qwen4-Exp begin anew behind it) take the first one of config.json, so
    there the base's own stays first.
    """
    from transformers import GenerationConfig

    try:
        generation = GenerationConfig.from_pretrained(base.path, revision=base.revision or "main")
        said = generation.to_dict()
    except OSError:
        generation, said = GenerationConfig(), _config_of_base(base)
    ends = list(dict.fromkeys([*stop_ids, *_as_list(said.get("eos_token_id"))]))
    pad = tokenizer.pad_id if tokenizer.pad_id is not None else said.get("pad_token_id")
    special = {
        "eos_token_id": ends or None,
        "bos_token_id": tokenizer.bos_id if tokenizer.bos_id is not None else said.get("bos_token_id"),
        "pad_token_id": pad if pad is not None or not ends else ends[0],
    }
    text = config.get_text_config()
    ends_of_config = ends
    if any(hasattr(module, "eos_token_id") for module in model.modules()):
        ends_of_config = list(dict.fromkeys([*_as_list(text.eos_token_id), *ends]))
    for name, value in special.items():
        setattr(generation, name, value)
        for part in (config, text):
            if part is text or hasattr(part, name):
                _say(part, name, ends_of_config if name == "eos_token_id" and ends else value)
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.use_cache = True
    config.save_pretrained(folder)
    written = generation.to_diff_dict() | {k: v for k, v in special.items() if v is not None}
    written.pop("_from_model_config", None)  # it would let a later loader make the file anew
    write_json(folder / "generation_config.json", written)


def _as_list(ends: Any) -> list[int]:
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _say(config: Any, name: str, value: Any) -> None:
    """Set a special token; some classes take one end of a turn only, and generation_config.json has them all."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        setattr(config, name, value)
    except (TypeError, ValueError, StrictDataclassError):
        setattr(config, name, value[0] if isinstance(value, list) else value)


def _config_of_base(base: Base) -> dict[str, Any]:
    """Return what config.json of the base says itself, the defaults of its class left out."""
    from transformers.utils import cached_file

    path = cached_file(base.path, "config.json", revision=base.revision)
    said = read_object(Path(str(path)), "download or copy the base model again")
    return {**said, **(said.get("text_config") or {})}
