"""What several keys of another trainer say together: the global batch, adapters, how weights are partitioned, where loss lies."""

from __future__ import annotations

import re
from typing import Any

from sft_dist.config.convert.defaults import DEFAULTS, LORA
from sft_dist.config.convert.result import Conversion


def trl_loss(out: Conversion, keys: dict[str, Any]) -> None:
    """Say where TRL's loss lies: on every token of conversations unless it is asked otherwise, on completions of prompts."""
    if out.trainer != "trl" or keys.get("assistant_only_loss") or keys.get("completion_only_loss"):
        return
    out.set("render.train_on", "all")
    out.defaults.append(
        "render.train_on=all (every token of a conversation; for data of prompts and completions TRL's default is assistant)"
    )


def batch(out: Conversion, keys: dict[str, Any], ranks: int) -> None:
    """Write the size of a global batch in tokens: rows x accumulation x ranks that see other rows, x seq_len."""
    usual = 1 if out.trainer == "ms-swift" else 8
    key = "micro_batch_size" if "micro_batch_size" in keys else "per_device_train_batch_size"
    micro = _whole(out, keys, key, usual)
    steps = _whole(out, keys, "gradient_accumulation_steps", 1)
    if out.trainer == "axolotl" and not keys.get("gradient_accumulation_steps") and keys.get("batch_size"):
        steps = max(1, int(keys["batch_size"]) // micro)
    shared = 1
    for key in (
        "tensor_parallel_size",
        "context_parallel_size",
        "sequence_parallel_size",
        "sequence_parallel_degree",
    ):
        shared *= _whole(out, keys, key, 1)
    copies = max(1, ranks // shared)
    seq_len = out.get("pack.seq_len") or DEFAULTS[out.trainer]["pack.seq_len"]
    rounded = -(-seq_len // 8) * 8
    if rounded != seq_len:
        out.set("pack.seq_len", rounded)
    rows = micro * steps * copies
    out.map(
        "micro batch x accumulation x ranks",
        "train.tokens_per_step",
        rows * rounded,
        f"{micro} x {steps} x {copies} rows of {rounded} tokens",
    )
    out.set("train.micro_rows", micro)


def _whole(out: Conversion, keys: dict[str, Any], key: str, usual: int) -> int:
    """Return a whole number above 0; one that cannot be read (a shell expression, auto) is refused and taken as `usual`."""
    value = keys.get(key)
    if value is None:
        return usual
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 1:
        return int(value)
    out.refuse(key, f"{value!r} is no number; set train.tokens_per_step by hand")
    return usual


def lora(out: Conversion, keys: dict[str, Any]) -> None:
    """Write the adapters' settings, or none where all weights are trained."""
    kind = (
        keys.get("adapter") or keys.get("finetuning_type") or keys.get("tuner_type") or keys.get("train_type")
    )
    if kind is None and out.trainer == "ms-swift":
        kind = "lora"  # its default
    if kind is None and out.trainer == "trl" and keys.get("use_peft"):
        kind = "lora"
    given = out.values.pop("lora", {})
    if kind not in ("lora", "qlora"):
        return
    rank, alpha, dropout = LORA[out.trainer]
    rank = given.get("rank", rank)
    if out.trainer == "llama-factory":
        alpha = 2 * rank
    out.values["lora"] = {"rank": rank, "alpha": alpha, "dropout": dropout} | given
    if (
        keys.get("load_in_4bit")
        or kind == "qlora"
        or keys.get("quantization_bit") == 4
        or keys.get("quant_bits") == 4
    ):
        out.set("lora.quantize_base", "nf4")
        out.set("deepspeed.stage", 2)


def stage(out: Conversion, keys: dict[str, Any]) -> None:
    """Write how weights and states are partitioned and offloaded."""
    text = f"{keys.get('deepspeed', '')} {keys.get('fsdp', '')} {keys.get('fsdp_config', '')}".lower()
    found = re.search(r"zero[_-]?([0123])|z([0123])_", text)
    stage = int(found[1] or found[2]) if found else 3 if keys.get("fsdp") or keys.get("fsdp_config") else None
    quantized = out.get("lora.quantize_base") is not None
    if stage is not None and out.get("deepspeed.stage") is None:
        if stage == 0 and out.get("model.dtype") != "float32":
            stage = 1
        out.set("deepspeed.stage", stage)
        out.mapped.append(
            ("deepspeed, fsdp", f"deepspeed.stage={stage}", "how weights are cut changes no result")
        )
    if (
        re.search(r"offload(?!.{0,30}(false|none))", text)
        and not quantized
        and out.get("deepspeed.stage") != 0
    ):
        out.set("deepspeed.offload_optimizer", "cpu")
    if out.get("optim.name") == "muon":  # it needs whole matrices
        out.set("deepspeed.stage", 0)
        out.set("model.dtype", "float32")
