"""Checkpoint -> Hugging Face folder that plain `from_pretrained` opens: weights, tokenizer, template, end-of-turn.

Parameters are assembled one shard of files at a time from the slices of the checkpoint, so memory stays bounded, and
several processes write different shards. Reads no engine: any machine with the checkpoint can export.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sft_dist.checkpoint.store import read_parameter
from sft_dist.core.errors import UserError
from sft_dist.core.store import read_json, replace_folder, write_json
from sft_dist.model.load import DTYPES
from sft_dist.render.tokenizer import TextTokenizer

SHARD_BYTES = 4 << 30


def export_checkpoint(
    checkpoint: Path,
    model_path: str,
    out: Path,
    *,
    dtype: str,
    tokenizer: TextTokenizer,
    template_text: str,
    stop_ids: list[int],
    part: tuple[int, int] = (0, 1),
    barrier: Callable[[], Any] = lambda: None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write a model folder.

    Args:
        checkpoint: A whole checkpoint.
        model_path: What training started from: its config says what the model is.
        out: The folder; replaced as a whole when it is complete.
        dtype: float32 or bfloat16, of the written weights.
        tokenizer: The tokenizer that rendered the training data.
        template_text: Its chat template, as Jinja.
        stop_ids: End-of-turn tokens, for the generation config.
        part: (i, n): this process writes every n-th shard from the i-th.
        barrier: Waits for the other processes.
        revision: Hub revision of model_path.
        trust_remote_code: As in training.

    Raises:
        UserError: When the checkpoint is damaged or belongs to another model.
    """
    if not (checkpoint / "index.json").is_file():
        raise UserError(
            f"{checkpoint} is not a whole checkpoint, so there is nothing to export; see checkpoints/LATEST of the run"
        )
    index = read_json(checkpoint / "index.json")
    aside = out.with_name(f".{out.name}.partial")
    if part[0] == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    barrier()
    groups = _group(index["parameters"], torch.finfo(DTYPES[dtype]).bits // 8)
    names = (
        [f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors" for i in range(len(groups))]
        if len(groups) > 1
        else ["model.safetensors"]
    )
    for i in range(part[0], len(groups), part[1]):
        tensors = {n: read_parameter(checkpoint, index, n).to(DTYPES[dtype]) for n in groups[i]}
        save_file(tensors, aside / names[i], metadata={"format": "pt"})
    barrier()
    if part[0] == 0:
        if len(groups) > 1:
            total = sum(math.prod(s) for s in index["parameters"].values()) * (
                torch.finfo(DTYPES[dtype]).bits // 8
            )
            where = {n: names[i] for i, group in enumerate(groups) for n in group}
            write_json(
                aside / "model.safetensors.index.json",
                {"metadata": {"total_size": total}, "weight_map": where},
            )
        _write_configs(
            aside,
            model_path,
            index,
            dtype,
            tokenizer,
            stop_ids,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        tokenizer.save(
            aside, template_text=template_text, eos=tokenizer.text_of(stop_ids[0]) if stop_ids else None
        )
        replace_folder(aside, out)
    barrier()


def _group(parameters: dict[str, list[int]], item_bytes: int) -> list[list[str]]:
    """Group parameters into files of at most SHARD_BYTES."""
    groups: list[list[str]] = [[]]
    size = 0
    for name, shape in parameters.items():
        n = math.prod(shape) * item_bytes
        if groups[-1] and size + n > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += n
    return groups


def _write_configs(
    folder: Path,
    model_path: str,
    index: dict[str, Any],
    dtype: str,
    tokenizer: TextTokenizer,
    stop_ids: list[int],
    *,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(model_path, revision=revision, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    trained, expected = set(index["parameters"]), {n for n, _ in model.named_parameters()}
    if trained != expected:
        odd = sorted(trained ^ expected)
        raise UserError(
            f"the checkpoint and {model_path} differ in {len(odd)} parameters (first: {odd[0]}); they are not the same model"
        )
    config.architectures = [type(model).__name__]
    config.dtype = dtype
    config.use_cache = True
    config.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(model_path, revision=revision or "main")
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    generation.eos_token_id = stop_ids or generation.eos_token_id
    generation.pad_token_id = (
        tokenizer.pad_id if tokenizer.pad_id is not None else (stop_ids[0] if stop_ids else None)
    )
    generation.bos_token_id = tokenizer.bos_id
    (folder / "generation_config.json").write_text(json.dumps(generation.to_diff_dict(), indent=1) + "\n")
