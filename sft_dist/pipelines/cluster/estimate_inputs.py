"""Config -> the shape and the setup that cluster/memory computes with, and what a run keeps on disk. Nothing is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sft_dist.cluster.estimate.estimate import export_bytes, state_bytes
from sft_dist.cluster.estimate.memory import FP32, Setup, Shape
from sft_dist.cluster.estimate.trainable import adapted, partly
from sft_dist.config import RunConfig
from sft_dist.config.optimizers import OPTIMIZERS
from sft_dist.core.errors import UserError
from sft_dist.model import config_json

GIB = 1 << 30
# The largest sizes that are believed in a config.json, well above every published model.
LARGEST = {
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_hidden_layers": 10_000,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 40,
    "moe_intermediate_size": 1 << 24,
}


def model_config(config: RunConfig) -> Mapping[str, Any]:
    """Return the text part of the model's config.json, from disk or the hub's cache.

    Raises:
        UserError: When it is not on this machine.
    """
    if shape := config.model.shape:
        return {
            "model_type": "llama",
            "hidden_size": shape.hidden_size,
            "intermediate_size": shape.intermediate_size,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads or shape.heads,
            "vocab_size": config.render.train_vocab_size or _tokens_of(config),
            "tie_word_embeddings": shape.tie_word_embeddings,
        }
    path = str(config.model.path)
    if text := config_json.text_config(config.model):
        _check_sizes(text, path)
        return text
    if known := published().get(path):
        return known
    raise UserError(
        f"the config.json of model.path={path} is not on this machine, so its size is unknown; "
        f"give a folder, or run: hf download {path} config.json"
    )


def published() -> dict[str, dict[str, Any]]:
    """Return hub id -> sizes of models that the shipped configs name, so that estimates need no hub."""
    file = resources.files("sft_dist.cluster.estimate") / "architectures.json"
    models: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["models"]
    return {name: entry["config"] for name, entry in models.items()}


def _check_sizes(text: Mapping[str, Any], path: str) -> None:
    """Refuse sizes that no model has.

    Raises:
        UserError: For a size that is no whole number, below 1, or far beyond every model that exists.
    """
    for name, most in LARGEST.items():
        given = text.get(name)
        for value in given if isinstance(given, list) else [given]:  # some families have a size a layer
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise UserError(
                    f"the config.json of {path} says {name}={str(value)[:40]}, and a model has 1 to {most:,} of it, so nothing can be estimated; "
                    "the file is damaged or of another kind: fetch it again or correct model.path"
                )


def shape_of(config: RunConfig, text: Mapping[str, Any], *, count: bool = True) -> Shape:
    """Return the shape and what of it is trained, adapters included.

    Args:
        config: The run's config.
        text: The text part of the model's config.json.
        count: Count the parameters on a model without weights, where transformers can build it; else they are calculated from
            the sizes, which is exact for Llama, Qwen and their like only.
    """
    shape, lora = Shape.of(text), config.lora
    key = (str(config.model.path), config.model.trust_remote_code, json.dumps(dict(text), sort_keys=True))
    if count and config.model.shape is None and (found := _counted(*key)):
        whole, layers = found
        shape = replace(shape, parameters=whole, trained=whole, layer_parameters=layers // shape.L)
    if lora is None:
        return partly(shape, text, config.model.trainable, config.model.freeze)[0]
    return adapted(
        shape,
        text,
        rank=lora.rank,
        target_modules=lora.target_modules,
        modules_to_save=lora.modules_to_save,
        dora=lora.dora,
        target_parameters=lora.target_parameters,
    )


@cache
def _counted(path: str, remote_code: bool, text: str) -> tuple[int, int] | None:
    """Return the parameters of the model, and those of all its layers together; None where transformers cannot build it.

    `text`: the text part of config.json, as JSON; what is built where `path` is no folder.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    from sft_dist.model.activation_memory import layers
    from sft_dist.model.weight_files import meta_model

    sizes = json.loads(text)
    try:
        if config_json.located(path) is not None:
            found = AutoConfig.from_pretrained(path, trust_remote_code=remote_code)
        else:
            found = CONFIG_MAPPING[str(sizes["model_type"])].from_dict(sizes)
        model = meta_model(found, trust_remote_code=remote_code)
    except Exception:  # noqa: BLE001  each class fails in its own way; loading it says what is wrong
        return None
    inner = {id(p): p.numel() for layer in layers(model) for p in layer.parameters()}
    return sum(p.numel() for p in model.parameters()), sum(inner.values())


def setup_of(config: RunConfig, target_share: float, ranks: int, device: str) -> Setup:
    """Return how a decided config (config.auto) trains; `target_share` is that of tokens that carry loss."""
    zero, rows, stage = config.deepspeed, config.train.micro_rows, config.deepspeed.stage
    assert rows != "auto" and stage != "auto", "decide it first"  # noqa: PT018
    return Setup(
        ranks=ranks,
        stage=stage,
        dtype=config.model.dtype,
        tokens=rows * config.pack.seq_len // config.train.sequence_parallel,
        target_share=target_share,
        gradient_checkpointing=config.model.gradient_checkpointing,
        reduce_bucket_size=zero.reduce_bucket_size,
        max_live_parameters=zero.max_live_parameters,
        sub_group_size=zero.sub_group_size,
        offload_optimizer=zero.offload_optimizer != "none",
        on_nvme=zero.offload_optimizer == "nvme",
        offload_parameters=zero.offload_params != "none",
        offload_activations=config.model.offload_activations,
        mlp_tiles=config.model.mlp_tiles,
        hpz=zero.hpz_partition_size,
        state_bytes=OPTIMIZERS[config.optim.name].state_bytes,
        device=device,
        compiled=config.model.compile is True,
    )


def unknown_parts(config: RunConfig, text: Mapping[str, Any]) -> list[str]:
    """Return the entries of model.trainable and model.freeze that match no parameter known here."""
    return partly(Shape.of(text), text, config.model.trainable, config.model.freeze)[1]


def ema_bytes(config: RunConfig, shape: Shape) -> int:
    """Return the size of the averaged weights, which lie in host memory, as does a copy of the weights."""
    return FP32 * shape.trained if config.optim.ema_decay is not None else 0


def checkpoint_bytes(config: RunConfig, shape: Shape) -> int:
    """Return the size of one checkpoint."""
    return state_bytes(shape, OPTIMIZERS[config.optim.name].state_bytes) + ema_bytes(config, shape)


def kept_bytes(config: RunConfig, shape: Shape) -> int:
    """Return what the run folder holds at most: the checkpoints that are kept, one being written, the exported model."""
    keep = config.checkpoint
    count = keep.keep_last + keep.keep_best + 1
    whole = min(count, (keep.optimizer_keep_last or count) + 1)
    weights = FP32 * shape.trained + ema_bytes(config, shape)
    kept = whole * checkpoint_bytes(config, shape) + (count - whole) * weights
    return kept + export_bytes(shape, config.model.dtype)


def host_memory(kind: str = "MemTotal") -> int:
    """Return the memory of this machine in bytes, or with MemAvailable what programs can still take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise UserError(f"the memory of this machine is unknown (/proc/meminfo has no {kind}); give --memory GIB")


def _tokens_of(config: RunConfig) -> int:
    from sft_dist.render.tokenizer import TextTokenizer

    assert config.model.tokenizer is not None
    return TextTokenizer.load(config.model.tokenizer, added=config.render.added).vocab_size
