"""Key of another trainer -> what becomes of it here, in three tables: a rule, a reason why it is not needed, why it cannot be had.

The trainers share most keys, for all build on Hugging Face's training arguments; where one means something else, its
rule looks at the trainer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

from sft_dist.config.convert.result import Conversion

Rule = Callable[[Conversion, str, Any, dict[str, Any]], None]

# Defaults of ours that differ, by trainer: written out whenever the file says nothing.
HF = {
    "seed": 42,
    "optim.lr": 5e-5,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.0,
    "optim.clip": 1.0,
    "optim.schedule": "linear",
    "optim.warmup_share": 0.0,
    "train.epochs": 3,
    "pack.packing": False,
    "pack.seq_len": 2048,
    "model.gradient_checkpointing": False,
    "checkpoint.keep_last": 2,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "axolotl": HF
    | {"optim.schedule": "cosine", "train.epochs": 1, "pack.seq_len": 512, "pack.too_long": "drop"},
    "llama-factory": HF | {"pack.too_long": "truncate_answer", "model.gradient_checkpointing": True},
    "trl": HF
    | {
        "optim.lr": 2e-5,
        "pack.seq_len": 1024,
        "pack.too_long": "truncate_answer",
        "model.gradient_checkpointing": True,
    },
    "ms-swift": HF
    | {
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.1,
        "optim.betas": [0.9, 0.95],
        "optim.schedule": "cosine",
        "optim.warmup_share": 0.05,
        "train.epochs": 3,
        "pack.too_long": "drop",
        "model.gradient_checkpointing": True,
    },
}
LORA = {
    "axolotl": (8, 16, 0.0),
    "llama-factory": (8, 16, 0.0),
    "trl": (16, 32, 0.05),
    "ms-swift": (8, 32, 0.05),
}

SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": "cosine",
    "warmup_stable_decay": "wsd",
}
TEMPLATES = {
    "chatml": "chatml",
    "alpaca": "alpaca",
    "llama3": "llama3",
    "qwen3": "qwen3",
}  # else the tokenizer's own
OWN_TOKENS = {
    "<s>",
    "</s>",
    "<unk>",
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eot|>",
    "<|end_of_text|>",
    "<|startoftext|>",
}


def convert_keys(out: Conversion, keys: dict[str, Any], *, ranks: int) -> None:
    """Convert every key but those of data sets, then write the defaults that differ, and the size of a global batch."""
    keys = dict(keys)
    for key, value in keys.items():
        if (value is False and key not in FALSE_MATTERS) or value in ([], {}):
            continue  # off there, and off or not there here
        if key in RULES:
            try:
                RULES[key](out, key, value, keys)
            except (TypeError, ValueError, KeyError):
                out.refuse(key, f"{value!r} cannot be read")
        elif key in NOT_NEEDED:
            out.drop(key, NOT_NEEDED[key])
        elif key in CANNOT:
            out.refuse(key, CANNOT[key])
        elif prefix := next((p for p in PREFIXES if key.startswith(p)), None):
            out.drop(key, PREFIXES[prefix])
        else:
            out.refuse(key, "is not known here")
    _trl_loss(out, keys)
    _batch(out, keys, ranks)
    _lora(out, keys)
    _stage(out, keys)
    for path, value in DEFAULTS[out.trainer].items():
        if out.get(path) is None and not (
            path == "optim.warmup_share" and out.get("optim.warmup_steps") is not None
        ):
            out.set(path, value)
            out.defaults.append(f"{path}={value}")
    out.set("name", re.sub(r"[^A-Za-z0-9._=,-]+", "-", out.name).strip("-.")[:100] or "converted")


def _to(path: str, kind: Callable[[Any], Any] = lambda x: x, remark: str = "") -> Rule:
    def rule(out: Conversion, key: str, value: Any, _: dict[str, Any]) -> None:
        out.map(key, path, kind(value), remark)

    return rule


def _used(_: Conversion, __: str, ___: Any, ____: dict[str, Any]) -> None:
    """Read with another key."""


def _optimizer(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    name = str(value).lower()
    if name == "muon":
        out.map(key, "optim.name", "muon", "needs deepspeed.stage=0 and model.dtype=float32")
    elif re.search(r"8bit|4bit|paged|ao_adamw", name) and "adamw" in name:
        out.map(
            key,
            "optim.name",
            "adamw",
            f"{name}: states in fp32; more memory, see sft-dist estimate",
            close=True,
        )
    elif name in ("adamw", "adamw_torch", "adamw_torch_fused", "adamw_hf", "adam", "adamw_apex_fused"):
        out.map(key, "optim.name", "adamw")
    else:
        out.refuse(key, f"{value} is not offered; adamw and muon are")


def _schedule(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    name = str(value).lower()
    if name not in SCHEDULES:
        out.refuse(key, f"{value} is not offered; cosine, linear, constant and wsd are")
        return
    out.map(key, "optim.schedule", SCHEDULES[name])
    if name == "constant":
        out.set("optim.warmup_share", 0.0)


def _warmup(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    if float(value) < 1:
        out.map(key, "optim.warmup_share", float(value))
    else:
        out.map(key, "optim.warmup_steps", int(value))


def _floor(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    share = float(value)
    if key != "cosine_min_lr_ratio":
        share /= float(keys.get("learning_rate") or DEFAULTS[out.trainer]["optim.lr"])
    out.map(key, "optim.min_lr_share", round(share, 8), "a share of the peak")


def _beta(out: Conversion, key: str, _value: Any, keys: dict[str, Any]) -> None:
    first, second = DEFAULTS[out.trainer]["optim.betas"]
    betas = [float(keys.get("adam_beta1") or first), float(keys.get("adam_beta2") or second)]
    out.map(key, "optim.betas", betas)


def _epochs(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    if float(value) <= 0:
        if not keys.get("max_steps"):
            out.refuse(key, f"{value}: that is no training; set train.epochs or train.max_steps")
        return
    whole = float(value) == int(float(value))
    out.map(key, "train.epochs", int(float(value)) if whole else float(value))


def _continued(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    names = value if isinstance(value, list) else str(value).split(",")
    if len(names) == 1:
        out.map(
            key, "lora.adapter", str(names[0]).strip(), "its rank, alpha and targets must be those of lora"
        )
    else:
        out.refuse(key, f"{value}: one adapter is continued; merge the others first (sft-dist merge)")


def _by_epoch(path: str) -> Rule:
    def rule(out: Conversion, key: str, value: Any, _: dict[str, Any]) -> None:
        if value == "epoch":
            out.map(key, path, 1)
        else:
            out.drop(key, _OFTEN)

    return rule


def _evaluates(keys: dict[str, Any]) -> bool:
    """Whether the other trainer evaluates while it trains, on data of its own or a share."""
    data = ("val_set_size", "val_size", "split_dataset_ratio", "eval_dataset", "val_dataset", "test_datasets")
    often = ("evals_per_epoch", "eval_steps", "eval_steps_per_epoch", "eval_strategy", "evaluation_strategy")
    return any(keys.get(k) for k in data) and any(keys.get(k) not in (None, 0, "no") for k in often)


def _patience(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    if _evaluates(keys):
        out.map(key, "train.patience_evaluations", int(value))
    else:
        out.drop(key, "nothing is evaluated while it trains, so nothing ends the run early")


def _best(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    if value and _evaluates(keys):
        out.map(key, "train.export_best", value=True)
        out.set("checkpoint.keep_best", 1)
    else:
        out.drop(key, "nothing is evaluated while it trains, so the last checkpoint is exported")


def _max_steps(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    if int(value) > 0:
        out.map(key, "train.max_steps", int(value))


def _template(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    name = str(value)
    if name.endswith(".jinja"):
        out.map(key, "render.template", name)
    elif "{%" in name or "{{" in name:
        out.files[f"{out.name}.jinja"] = name
        out.map(key, "render.template", f"{out.name}.jinja", "written beside the config")
    elif name == "jinja":
        out.drop(key, "see chat_template_jinja")
    else:
        out.map(
            key,
            "render.template",
            TEMPLATES.get(name, "auto"),
            "" if name in TEMPLATES else "the tokenizer's own template",
        )


def _special_tokens(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    odd = (
        {k: v for k, v in value.items() if k != "pad_token" and v not in OWN_TOKENS}
        if isinstance(value, dict)
        else {"": value}
    )
    if odd:
        out.refuse(key, f"{odd}: special tokens are the tokenizer's own")
    else:
        out.drop(
            key, "no padding is trained on; the others are the tokenizer's own, which sft-dist check names"
        )


def _validation(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    if not 0 < float(value) <= 0.5:
        if float(value):
            out.refuse(
                key, f"{value}: a number of examples; set data.validation.examples_per_task", changes=False
            )
        return
    out.map(key, "data.validation.share", float(value), "of each task")


def _checkpointing(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    out.map(key, "model.gradient_checkpointing", bool(value))
    if str(value).startswith("offload"):
        out.set("model.offload_activations", True)


def _adapter(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    name = str(value)
    if name in ("full", "none"):
        out.drop(key, "all weights are trained unless lora is set")
    elif name == "freeze":
        out.drop(key, "see freeze_trainable_layers")
    elif name not in ("lora", "qlora"):
        out.refuse(key, f"{name} is not offered; full fine-tuning, LoRA, QLoRA and DoRA are")


def _targets(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    names = value.split(",") if isinstance(value, str) and re.fullmatch(r"[\w\-,. ]+", value) else value
    if isinstance(names, str):
        names = _expand(names)
    elif isinstance(names, list):
        names = [n for x in names for n in (_expand(x) or [str(x)])]
    if not names:
        out.refuse(key, f"{value!r} is no list of names of modules; write them out")
    elif [str(n).strip() for n in names] in (["all"], ["all-linear"], ["linear"]):
        out.drop(key, "every Linear of the decoder is the default")
    else:
        out.map(key, "lora.target_modules", [str(n).strip() for n in names])


def _expand(pattern: str) -> list[str] | None:
    """Return the names that the last part of a pattern stands for: `...(mlp|attn).(up|down)_proj` -> up_proj, down_proj."""
    last = re.split(r"\\?\.(?![*+?])(?![^()\[\]]*[)\]])", pattern)[-1].removesuffix("$")
    pieces = re.findall(r"\(([^()]*)\)|([\w\-]+)", last)
    if not pieces or "".join(f"({a})" if a else b for a, b in pieces) != last:
        return None
    options = [a.removeprefix("?:").split("|") if a else [b] for a, b in pieces]
    return ["".join(parts) for parts in itertools.product(*options)]


def _trainable(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    if keys.get("adapter"):
        out.drop(key, "adapters freeze the whole base, there as here")
        return
    if key == "freeze_trainable_layers":
        count = int(value)
        out.map(key, "model.trainable", [f"layers[-{count}:]"] if count > 0 else [f"layers[:{-count}]"])
        return
    globs = [re.sub(r"\\\.", ".", str(v)).removeprefix("^") for v in value]
    globs = [g.removesuffix("$") if g.endswith("$") else g + "*" for g in globs]  # matched at the beginning
    if any(re.search(r"[\[\](){}|+\\]", re.sub(r"\[\d-\d\]|\[\d+:\d*\]\*?$", "", g)) for g in globs):
        out.refuse(key, f"{value}: patterns are globs here, such as *.mlp.*; write them as model.trainable")
    else:
        out.map(key, "model.trainable", [re.sub(r"\.?\*+", "*", g) for g in globs], "globs")


def _report_to(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    names = {str(v) for v in (value if isinstance(value, list) else [value])}
    if "wandb" in names:
        out.map(key, "wandb.mode", "auto")
    if others := names - {"wandb", "none", "all", "tensorboard"}:
        out.refuse(key, f"{', '.join(sorted(others))}: metrics.jsonl holds every step", changes=False)


def _flag(path: str, value: Any, remark: str = "") -> Rule:
    def rule(out: Conversion, key: str, given: Any, _: dict[str, Any]) -> None:
        if given:
            out.map(key, path, value, remark)

    return rule


def _packing(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    out.map(key, "pack.packing", bool(value), "documents never see one another")


def _inputs(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    on = value if key == "train_on_inputs" else not value
    out.map(key, "render.train_on", "all" if on else "assistant")


def _trl_loss(out: Conversion, keys: dict[str, Any]) -> None:
    """Say where TRL's loss lies: on every token of conversations unless it is asked otherwise, on completions of prompts."""
    if out.trainer != "trl" or keys.get("assistant_only_loss") or keys.get("completion_only_loss"):
        return
    out.set("render.train_on", "all")
    out.defaults.append(
        "render.train_on=all (every token of a conversation; for data of prompts and completions TRL's default is assistant)"
    )


def _base_8bit(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    if value:
        out.mapped.append(
            (key, "model.dtype=bfloat16", "the frozen base in 16 bits: more memory, nearer to the model")
        )
        out.close.append(key)


def _quant_bits(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    if int(value) == 8:
        _base_8bit(out, key, value, keys)
    elif int(value) != 4:
        out.refuse(key, f"{value} bits are not offered; 4 (nf4) are")


def _parallel(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    if int(value) > 1:
        out.map(key, "train.sequence_parallel", int(value))


def _batch(out: Conversion, keys: dict[str, Any], ranks: int) -> None:
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
    if isinstance(value, (int, float)) and value >= 1:
        return int(value)
    out.refuse(key, f"{value!r} is no number; set train.tokens_per_step by hand")
    return usual


def _lora(out: Conversion, keys: dict[str, Any]) -> None:
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


def _stage(out: Conversion, keys: dict[str, Any]) -> None:
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


def _experts(out: Conversion, key: str, _value: Any, _: dict[str, Any]) -> None:
    out.mapped.append(
        (key, "model.dtype=bfloat16", "frozen experts in 16 bits: more memory, nearer to the model")
    )
    out.close.append(key)


def _stored_quantised(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    if (keys.get("model_quantization_config_kwargs") or {}).get("dequantize"):
        out.drop(
            key,
            "trained in bfloat16 there as well; give a bfloat16 copy as model.path, sft-dist check says how to make it",
        )
    else:
        out.refuse(key, f"{value}: a base that is stored quantised is not read; give its bfloat16 weights")


RULES: dict[str, Rule] = {
    "quantize_moe_experts": _experts,
    "model_quantization_config": _stored_quantised,
    "model_quantization_config_kwargs": _used,
    "base_model": _to("model.path", str),
    "model_name_or_path": _to("model.path", str),
    "model": _to("model.path", str),
    "revision_of_model": _to("model.revision", str),
    "model_revision": _to("model.revision", str),
    "tokenizer_config": _to("model.tokenizer", str),
    "tokenizer_name_or_path": _to("model.tokenizer", str),
    "trust_remote_code": _to("model.trust_remote_code", bool),
    "sequence_len": _to("pack.seq_len", int),
    "cutoff_len": _to("pack.seq_len", int),
    "max_length": _to("pack.seq_len", int),
    "max_seq_length": _to("pack.seq_len", int),
    "learning_rate": _to("optim.lr", float),
    "lr": _to("optim.lr", float),
    "lr_scheduler": _schedule,
    "lr_scheduler_type": _schedule,
    "warmup_ratio": _warmup,
    "warmup_steps": _warmup,
    "cosine_min_lr_ratio": _floor,
    "eta_min": _floor,
    "min_lr": _floor,
    "weight_decay": _to("optim.weight_decay", float),
    "max_grad_norm": _to("optim.clip", lambda v: float(v) or None),
    "adam_beta1": _beta,
    "adam_beta2": _beta,
    "adam_epsilon": _to("optim.eps", float),
    "adam_eps": _to("optim.eps", float),
    "optimizer": _optimizer,
    "optim": _optimizer,
    "num_epochs": _epochs,
    "num_train_epochs": _epochs,
    "max_steps": _max_steps,
    "seed": _to("seed", int),
    "bf16": _flag("model.dtype", "bfloat16"),
    "bfloat16": _flag("model.dtype", "bfloat16"),
    "torch_dtype": _to(
        "model.dtype", lambda v: {"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"}[str(v)]
    ),
    "dtype": _to(
        "model.dtype", lambda v: {"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"}[str(v)]
    ),
    "sample_packing": _packing,
    "packing": _packing,
    "neat_packing": _packing,
    "padding_free": _flag("pack.packing", True),
    "train_on_inputs": _inputs,
    "train_on_prompt": _inputs,
    "assistant_only_loss": _used,
    "completion_only_loss": _used,
    "val_set_size": _validation,
    "val_size": _validation,
    "split_dataset_ratio": _validation,
    "gradient_checkpointing": _checkpointing,
    "activation_offloading": _flag("model.offload_activations", True),
    "adapter": _adapter,
    "finetuning_type": _adapter,
    "tuner_type": _adapter,
    "train_type": _adapter,
    "use_peft": _used,
    "lora_r": _to("lora.rank", int),
    "lora_rank": _to("lora.rank", int),
    "lora_alpha": _to("lora.alpha", float),
    "lora_dropout": _to("lora.dropout", float),
    "lora_target_modules": _targets,
    "lora_target": _targets,
    "target_modules": _targets,
    "lora_modules_to_save": _to(
        "lora.modules_to_save", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "router_aux_loss_coef": _to("loss.router_balance", float),
    "moe_aux_loss_coeff": _to("loss.router_balance", float),
    "lora_target_parameters": _to(
        "lora.target_parameters", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "target_parameters": _to(
        "lora.target_parameters", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "modules_to_save": _to(
        "lora.modules_to_save", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "additional_target": _to("lora.modules_to_save", lambda v: str(v).split(",")),
    "peft_use_dora": _flag("lora.dora", True),
    "use_dora": _flag("lora.dora", True),
    "peft_use_rslora": _flag("lora.rslora", True),
    "use_rslora": _flag("lora.rslora", True),
    "load_in_4bit": _used,
    "load_in_8bit": _base_8bit,
    "quantization_bit": _quant_bits,
    "quant_bits": _quant_bits,
    "neftune_noise_alpha": _to("loss.neftune_alpha", float),
    "noisy_embedding_alpha": _to("loss.neftune_alpha", float),
    "label_smoothing_factor": _to("loss.label_smoothing", float),
    "use_dft_loss": _flag("loss.dft", True),
    "enable_dft_loss": _flag("loss.dft", True),
    "chat_template": _template,
    "template": _template,
    "chat_template_jinja": _template,
    "default_system_message": _to("render.system", str),
    "default_system": _to("render.system", str),
    "system": _to("render.system", str),
    "special_tokens": _special_tokens,
    "unfrozen_parameters": _trainable,
    "freeze_trainable_layers": _trainable,
    "deepspeed": _used,
    "fsdp": _used,
    "fsdp_config": _used,
    "fsdp_version": _used,
    "micro_batch_size": _used,
    "batch_size": _used,
    "per_device_train_batch_size": _used,
    "gradient_accumulation_steps": _used,
    "tensor_parallel_size": _used,
    "context_parallel_size": _parallel,
    "sequence_parallel_size": _parallel,
    "sequence_parallel_degree": _parallel,
    "torch_compile": _used,
    "tiled_mlp": _used,
    "lora_model_dir": _continued,
    "adapter_name_or_path": _continued,
    "adapters": _continued,
    "saves_per_epoch": _to("checkpoint.saves_per_epoch", lambda v: int(v) or None),
    "evals_per_epoch": _to("train.evals_per_epoch", lambda v: int(v) or None),
    "eval_steps_per_epoch": _to("train.evals_per_epoch", lambda v: int(v) or None),
    "save_strategy": _by_epoch("checkpoint.saves_per_epoch"),
    "eval_strategy": _by_epoch("train.evals_per_epoch"),
    "evaluation_strategy": _by_epoch("train.evals_per_epoch"),
    "early_stopping_patience": _patience,
    "early_stopping_threshold": _to("train.patience_nats", float),
    "load_best_model_at_end": _best,
    "save_steps": _to("checkpoint.save_every_steps", lambda v: int(v) or None),
    "save_total_limit": _to("checkpoint.keep_last", lambda v: max(1, int(v))),
    "eval_steps": _to("train.eval_every_steps", lambda v: int(v) or None),
    "logging_steps": _to("train.log_every_steps", lambda v: max(1, int(v))),
    "report_to": _report_to,
    "wandb_project": _to("wandb.project", str),
    "wandb_entity": _to("wandb.entity", str),
    "wandb_name": _used,
    "wandb_run_id": _used,
    "run_name": _used,
    "fp32": _flag("model.dtype", "float32"),
    "freeze_vision_tower": _used,
    "freeze_multi_modal_projector": _used,
    "freeze_vit": _used,
    "freeze_aligner": _used,
    "freeze_llm": _used,
    "stage": lambda out, key, value, _: (
        None if value == "sft" else out.refuse(key, f"{value}: supervised fine-tuning is done here")
    ),
}
FALSE_MATTERS = {"sample_packing", "packing", "neat_packing", "gradient_checkpointing", "train_on_inputs"}

_FUSED = "losses and layers are fused or chunked already; the result is the same"
_ATTENTION = "model.attention=auto takes the fastest backend that is present and exact on packed rows"
_OFTEN = "how often changes no result; checkpoint.save_every_steps and train.eval_every_steps set it"
_OWN_DATA = "token stores are built once by sft-dist prepare and kept in data.dir"
_CLASS = "the class is found from the model's config.json"
_QUIET = "concerns speed or the screen only"
NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(
        ("flash_attention", "flash_attn", "flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_mlp", "flash_attn_fuse_qkv",
         "xformers_attention", "sdp_attention", "flex_attention", "flex_attn_compile_kwargs", "eager_attention", "attn_implementation",
         "attn_impl", "s2_attention", "pretrain_multipack_attn", "gemma4_hybrid_attn_impl", "fused_attn_kernel"),
        _ATTENTION,
    ),
    **dict.fromkeys(
        ("cut_cross_entropy", "chunked_cross_entropy", "use_liger_kernel", "enable_liger_kernel", "lora_mlp_kernel", "lora_qkv_kernel",
         "lora_o_kernel", "lora_embedding_kernel", "use_kernels", "use_scattermoe", "use_sonicmoe", "use_dsv4_kernels", "dsv4_fp4_grouped_mode",
         "experts_implementation", "tf32", "bf16_full_eval", "unsloth", "use_unsloth", "fuse_mlp", "moe_kernels", "tiled_mlp_num_shards",
         "tiled_mlp_use_original_mlp", "use_triton", "gptoss_kernels", "expert_parallel_size", "experimental_skip_move_to_device",
         "fp8_enable_fsdp_float8_all_gather", "group_by_length", "eval_sample_packing", "pad_to_sequence_len", "multipack_real_batches",
         "sample_packing_eff_est", "sample_packing_group_size", "sample_packing_bin_size"),
        _FUSED,
    ),
    **dict.fromkeys(
        ("overwrite_output_dir",
         "save_only_model", "save_safetensors", "save_first_step", "eval_batch_size", "per_device_eval_batch_size", "eval_table_size", "eval_max_new_tokens",
         "eval_on_start", "do_eval", "do_train", "do_predict", "eval_accumulation_steps", "eval_limit", "metric_for_best_model",
         "logging_first_step", "logging_dir", "log_level", "plot_loss", "include_tokens_per_second", "logging_strategy", "save_on_each_node"),
        _OFTEN,
    ),
    **dict.fromkeys(
        ("dataset_prepared_path", "dataset_processes", "dataset_num_proc", "preprocessing_num_workers", "dataloader_num_workers", "dataset_keep_in_memory",
         "dataloader_pin_memory", "dataloader_prefetch_factor", "overwrite_cache", "shuffle_merged_datasets", "push_dataset_to_hub", "dataset_shuffle",
         "lazy_tokenize", "load_from_cache_file", "streaming_multipack_buffer_size", "skip_prepare_dataset", "remove_unused_columns", "dataset_exact_deduplication",
         "dataset_shard_num", "dataset_shard_idx", "packing_cache", "tokenized_path", "cache_dir", "total_num_tokens", "packing_length", "packing_num_proc"),
        _OWN_DATA,
    ),
    **dict.fromkeys(
        ("model_type", "tokenizer_type", "is_llama_derived_model", "is_mistral_derived_model", "is_falcon_derived_model", "is_qwen_derived_model",
         "cls_model_config", "base_model_config", "tokenizer_use_fast", "tokenizer_legacy", "use_fast_tokenizer", "tokenizer_use_mistral_common",
         "base_model_ignore_patterns", "low_cpu_mem_usage", "device_map", "max_memory", "hf_use_auth_token", "use_auth_token", "bnb_config_kwargs",
         "bnb_4bit_use_double_quant", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "use_bnb_nested_quant", "quantization_method", "quant_method",
         "double_quantization", "gptq", "hub_strategy", "use_hf", "check_model", "model_kwargs", "config_overrides_path", "llama4_linearized_experts"),
        _CLASS,
    ),
    **dict.fromkeys(
        ("output_dir", "ddp", "ddp_timeout", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "local_rank", "debug",
         "gradient_checkpointing_kwargs", "strict", "is_preprocess", "profiler_steps", "use_tensorboard", "dp_shard_size", "dp_replicate_size",
         "resume_from_checkpoint", "auto_resume_from_checkpoints", "wandb_watch", "wandb_log_model", "wandb_mode", "logging_nan_inf_filter",
         "include_tkps", "use_ray", "use_otel_metrics", "otel_metrics_host", "otel_metrics_port", "torch_compile_mode", "torch_compile_backend",
         "flash_optimum", "do_causal_lm_eval", "eval_causal_lm_metrics", "test_value", "sample_packing_sequentially", "full_finetune",
         "expert_parallel_num_nvl_bytes", "expert_parallel_token_capacity", "greater_is_better", "dataloader_drop_last", "experts_impl",
         "dataloader_persistent_workers", "streaming", "shuffle_buffer_size", "use_v1_kernels", "use_chat_template", "tuner_backend",
         "freeze_mm_modules", "vit_gradient_checkpointing", "max_pixels", "attn_backend", "predict_with_generate", "save_compressed", "add_version", "create_checkpoint_symlink", "gc_steps", "fsdp_final_state_dict_type", "disable_gradient_checkpointing",
         "nproc_per_node", "trackio_project_name", "use_trackio"),
        _QUIET,
    ),
    "push_to_hub": "nothing is pushed to the hub; upload export/ of the run folder",
    "eot_tokens": "the tokens that end a turn are found from the template",
    "train_on_eos": "the token that ends a turn carries the loss of its turn",
    "lora_target_linear": "every Linear of the decoder is the default of lora.target_modules",
    "lora_fan_in_fan_out": "found from the layers",
    "loraplus_lr_embedding": "without loraplus_lr_ratio it does nothing",
    "roles": "found from the data",
    "chat_template_kwargs": "see render.template",
    "loss_watchdog_threshold": "train.on_spike watches the loss by robust deviations; set it to stop",
    "loss_watchdog_patience": "see loss_watchdog_threshold",
    "plugins": "the fused losses and layers of the usual plugins are not needed; a plugin of your own is not run",
    "enable_thinking": "render.thinking decides which answers keep their thoughts",
    "use_logits_to_keep": "logits are computed for targets only",
    "aligner_lr": "there is no aligner without images",
    "vit_lr": "there is no image tower without images",
    "model_author": "only for the self-cognition data of ms-swift",
    "model_name": "only for the self-cognition data of ms-swift",
    "resize_token_embeddings_to_32x": "model.vocab_multiple=32 adds rows that no token uses; not needed to train",
}  # fmt: skip
PREFIXES = {
    "liger_": _FUSED,
    "fsdp_": "weights are partitioned by deepspeed.stage",
    "mlflow_": "metrics.jsonl holds every step; no such tracker",
    "swanlab_": "metrics.jsonl holds every step; no such tracker",
    "use_swanlab": "metrics.jsonl holds every step; no such tracker",
    "comet_": "metrics.jsonl holds every step; no such tracker",
    "wandb_": "wandb.* has what is used",
    "ray_": "torchrun and Slurm start ranks",
    "hub_": "nothing is pushed to the hub",
    "vllm_": "evaluation generates with the exported model",
}
_IMAGES = "images and sound are not trained on; the text part of the model is"
CANNOT: dict[str, str] = {
    "fp16": "fp16 is not offered; model.dtype=bfloat16 or float32",
    "float16": "fp16 is not offered; model.dtype=bfloat16 or float32",
    **dict.fromkeys(
        ("processor_type", "image_size", "image_resize_algorithm", "image_max_pixels", "video_max_pixels"),
        _IMAGES,
    ),
    "megatron": "Megatron's parallel layouts and keys are not converted",
    "tokens": "new tokens cannot be added; train with the tokenizer's own",
    "added_tokens_overrides": "tokens cannot be renamed",
    "new_special_tokens": "new tokens cannot be added",
    "add_new_tokens": "new tokens cannot be added",
    "resize_vocab": "new tokens cannot be added",
    "lora_target_experts": "adapters sit on Linear modules only",
    "qat": "training with quantised weights is not offered",
    "fp8": "fp8 is not offered",
    "loraplus_lr_ratio": "LoRA+ is not offered",
    "lora_plus_lr_ratio": "LoRA+ is not offered",
    "relora_steps": "ReLoRA is not offered",
    "peft_layers_to_transform": "write the layers into lora.target_modules, as globs such as layers.[0-7].*",
    "init_lora_weights": "other initial adapters are not offered",
    "pipeline_parallel_size": "pipelines are not offered",
    "lr_groups": "learning rates by group are not offered",
    "embedding_lr": "learning rates by group are not offered",
    "embedding_lr_scale": "learning rates by group are not offered",
    "loss_scale": "losses by pattern are not offered; weights by turn are, in the data",
    "mask_history": "set render.train_on=last_turn",
    "reinit_weights": "set model.shape to start from random weights",
    "diffusion": "diffusion models are not trained",
    "use_eaft": "this loss is not offered",
    "min_sample_len": "set data.filters.length",
    "max_packed_sequence_len": "an old key; use pack.packing and pack.seq_len",
    "model_config": "settings inside the model cannot be changed; edit its config.json",
    "overrides_of_model_config": "settings inside the model cannot be changed; edit its config.json",
    "lr_quadratic_warmup": "the warm-up is linear",
    "use_galore": "GaLore is not offered",
    "use_badam": "BAdam is not offered",
    "use_apollo": "APOLLO is not offered",
    "use_llama_pro": "LLaMA Pro is not offered",
    "pissa_init": "other initial adapters are not offered",
}
