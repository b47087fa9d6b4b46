"""What becomes of one key of another trainer: a function for each kind of key, which fills the conversion."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

from sft_dist.config.convert.defaults import DEFAULTS
from sft_dist.config.convert.known import OFTEN
from sft_dist.config.convert.result import Conversion

Rule = Callable[[Conversion, str, Any, dict[str, Any]], None]


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


def to(path: str, kind: Callable[[Any], Any] = lambda x: x, remark: str = "") -> Rule:
    """Return a rule that writes the value, as `kind` makes it, to a key of ours."""

    def rule(out: Conversion, key: str, value: Any, _: dict[str, Any]) -> None:
        out.map(key, path, kind(value), remark)

    return rule


def whole(value: Any) -> int:
    """Return a whole number; raise ValueError where another one, or none, stands."""
    if number(value) != int(number(value)):
        raise ValueError(value)
    return int(number(value))


def number(value: Any) -> float:
    """Return a number; raise TypeError or ValueError where none stands: YAML's `true` would be taken as 1."""
    if isinstance(value, bool):
        raise TypeError(value)
    return float(value)


def every(path: str, *, least: int = 0) -> Rule:
    """Return a rule for the steps between saves, evaluations or lines of a log; below 1 they are a share of the run there."""

    def rule(out: Conversion, key: str, value: Any, _: dict[str, Any]) -> None:
        if 0 < number(value) < 1:
            out.refuse(key, f"{value} is a share of the run; set {path} in steps", changes=False)
        else:
            out.map(key, path, max(least, whole(value)) or None)

    return rule


def used(_: Conversion, __: str, ___: Any, ____: dict[str, Any]) -> None:
    """Read with another key."""


def optimizer(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the name of an optimizer."""
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


def schedule(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the name of a rate curve."""
    name = str(value).lower()
    if name not in SCHEDULES:
        out.refuse(key, f"{value} is not offered; cosine, linear, constant and wsd are")
        return
    out.map(key, "optim.schedule", SCHEDULES[name])
    if name == "constant":
        out.set("optim.warmup_share", 0.0)


def warmup(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert a warm-up: a share below 1, else steps."""
    if number(value) < 1:
        out.map(key, "optim.warmup_share", number(value))
    else:
        out.map(key, "optim.warmup_steps", whole(value))


def floor(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert the least rate, given as a share of the peak or as a rate."""
    share = number(value)
    if key != "cosine_min_lr_ratio":
        share /= float(keys.get("learning_rate") or DEFAULTS[out.trainer]["optim.lr"])
    out.map(key, "optim.min_lr_share", round(share, 8), "a share of the peak")


def beta(out: Conversion, key: str, _value: Any, keys: dict[str, Any]) -> None:
    """Convert both decay rates of Adam."""
    first, second = DEFAULTS[out.trainer]["optim.betas"]
    betas = [float(keys.get("adam_beta1") or first), float(keys.get("adam_beta2") or second)]
    out.map(key, "optim.betas", betas)


def epochs(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert the number of epochs."""
    if number(value) <= 0:
        if not keys.get("max_steps"):
            out.refuse(key, f"{value}: that is no training; set train.epochs or train.max_steps")
        return
    epochs = number(value)
    out.map(key, "train.epochs", int(epochs) if epochs == int(epochs) else epochs)


def continued(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the adapter that training goes on from."""
    names = value if isinstance(value, list) else str(value).split(",")
    if len(names) == 1:
        out.map(
            key, "lora.adapter", str(names[0]).strip(), "its rank, alpha and targets must be those of lora"
        )
    else:
        out.refuse(key, f"{value}: one adapter is continued; merge the others first (sft-dist merge)")


def by_epoch(path: str) -> Rule:
    """Return a rule for what happens each epoch, or each so many steps."""

    def rule(out: Conversion, key: str, value: Any, _: dict[str, Any]) -> None:
        if value == "epoch":
            out.map(key, path, 1)
        else:
            out.drop(key, OFTEN)

    return rule


def _evaluates(keys: dict[str, Any]) -> bool:
    """Whether the other trainer evaluates while it trains, on data of its own or a share."""
    data = ("val_set_size", "val_size", "split_dataset_ratio", "eval_dataset", "val_dataset", "test_datasets")
    often = ("evals_per_epoch", "eval_steps", "eval_steps_per_epoch", "eval_strategy", "evaluation_strategy")
    return any(keys.get(k) for k in data) and any(keys.get(k) not in (None, 0, "no") for k in often)


def patience(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert early stopping."""
    if _evaluates(keys):
        out.map(key, "train.patience_evaluations", whole(value))
    else:
        out.drop(key, "nothing is evaluated while it trains, so nothing ends the run early")


def best(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert the export of the best checkpoint."""
    if value and _evaluates(keys):
        out.map(key, "train.export_best", value=True)
        out.set("checkpoint.keep_best", 1)
    else:
        out.drop(key, "nothing is evaluated while it trains, so the last checkpoint is exported")


def max_steps(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the number of steps."""
    if whole(value) > 0:
        out.map(key, "train.max_steps", whole(value))


def template(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert a chat template: a file, a text, or a name."""
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


def special_tokens(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert named special tokens (those that the tokenizer has are not needed), or a list of tokens to add."""
    if isinstance(value, list):
        add_tokens(out, key, value, keys)
        return
    named = dict(value)
    padding = named.pop("pad_token", None)
    further = named.pop("additional_special_tokens", [])
    odd = {k: v for k, v in named.items() if v not in OWN_TOKENS | {padding}}
    if odd:
        out.refuse(key, f"{odd}: special tokens are the tokenizer's own")
        return
    if further:
        out.map(f"{key}.additional_special_tokens", "render.add_special_tokens", [str(t) for t in further])
    if named or padding:
        out.drop(
            key, "no padding is trained on; the others are the tokenizer's own, which sft-dist check names"
        )


def add_tokens(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert tokens that join the vocabulary, where it does not have them; a file with one a line is not read."""
    names = value if isinstance(value, list) else str(value).split(",")
    if any(str(n).endswith((".txt", ".json")) for n in names):
        out.refuse(key, f"{value}: write the tokens themselves into render.add_special_tokens")
        return
    ours = "render.add_tokens" if key in ("tokens", "add_tokens") else "render.add_special_tokens"
    out.map(key, ours, [str(n).strip() for n in names], "those that the vocabulary has stay as they are")


def inside(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert settings inside the model: the load-balance loss of a mixture of experts, and no other."""
    rest = {k: v for k, v in dict(value).items() if k != "output_router_logits"}
    if rest:
        out.refuse(key, f"{rest}: settings inside the model cannot be changed; edit its config.json")
    if value.get("output_router_logits"):
        out.map(
            f"{key}.output_router_logits",
            "loss.router_balance",
            "model",
            "over the global batch; a dense model has none",
        )


def adapted_parameters(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert the weights outside of Linear modules that get adapters; in a base of 4 bits there are none."""
    if keys.get("adapter") == "qlora" or keys.get("load_in_4bit"):
        out.refuse(key, f"{value}: adapters of single weights need a base that is not quantised")
    else:
        out.map(
            key, "lora.target_parameters", list(value) if isinstance(value, list) else str(value).split(",")
        )


def validation(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the share that is kept for validation."""
    if not 0 < number(value) <= 0.5:
        if number(value):
            out.refuse(
                key, f"{value}: a number of examples; set data.validation.examples_per_task", changes=False
            )
        return
    out.map(key, "data.validation.share", number(value), "of each task")


def checkpointing(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert recomputation of activations."""
    out.map(key, "model.gradient_checkpointing", bool(value))
    if str(value).startswith("offload"):
        out.set("model.offload_activations", True)


def adapter(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the kind of fine-tuning."""
    name = str(value)
    if name in ("full", "none"):
        out.drop(key, "all weights are trained unless lora is set")
    elif name == "freeze":
        out.drop(key, "see freeze_trainable_layers")
    elif name not in ("lora", "qlora"):
        out.refuse(key, f"{name} is not offered; full fine-tuning, LoRA, QLoRA and DoRA are")


def targets(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the modules that get adapters: names, or a pattern."""
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


def trainable(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert what is trained of a model: patterns, or a number of layers."""
    if keys.get("adapter"):
        out.drop(key, "adapters freeze the whole base, there as here")
        return
    if key == "freeze_trainable_layers":
        count = whole(value)
        out.map(key, "model.trainable", [f"layers[-{count}:]"] if count > 0 else [f"layers[:{-count}]"])
        return
    globs = [re.sub(r"\\\.", ".", str(v)).removeprefix("^") for v in value]
    globs = [g.removesuffix("$") if g.endswith("$") else g + "*" for g in globs]  # matched at the beginning
    if any(re.search(r"[\[\](){}|+\\]", re.sub(r"\[\d-\d\]|\[\d+:\d*\]\*?$", "", g)) for g in globs):
        out.refuse(key, f"{value}: patterns are globs here, such as *.mlp.*; write them as model.trainable")
    else:
        out.map(key, "model.trainable", [re.sub(r"\.?\*+", "*", g) for g in globs], "globs")


def report_to(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the trackers."""
    names = {str(v) for v in (value if isinstance(value, list) else [value])}
    if "wandb" in names:
        out.map(key, "wandb.mode", "auto")
    if others := names - {"wandb", "none", "all", "tensorboard"}:
        out.refuse(key, f"{', '.join(sorted(others))}: metrics.jsonl holds every step", changes=False)


def flag(path: str, value: Any, remark: str = "") -> Rule:
    """Return a rule that writes `value` where the other key is on."""

    def rule(out: Conversion, key: str, given: Any, _: dict[str, Any]) -> None:
        if given:
            out.map(key, path, value, remark)

    return rule


def packing(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert whether rows hold several documents."""
    out.map(key, "pack.packing", bool(value), "documents never see one another")


def inputs(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert whether prompts carry loss."""
    on = value if key == "train_on_inputs" else not value
    out.map(key, "render.train_on", "all" if on else "assistant")


def base_8bit(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Take a base in 8 bits as one in 16."""
    if value:
        out.mapped.append(
            (key, "model.dtype=bfloat16", "the frozen base in 16 bits: more memory, nearer to the model")
        )
        out.close.append(key)


def quant_bits(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Convert the bits of a quantised base."""
    if whole(value) == 8:
        base_8bit(out, key, value, keys)
    elif whole(value) != 4:
        out.refuse(key, f"{value} bits are not offered; 4 (nf4) are")


def parallel(out: Conversion, key: str, value: Any, _keys: dict[str, Any]) -> None:
    """Convert the ranks that share rows."""
    if whole(value) > 1:
        out.map(key, "train.sequence_parallel", whole(value))


def experts(out: Conversion, key: str, _value: Any, _: dict[str, Any]) -> None:
    """Take quantised frozen experts as ones in 16 bits."""
    out.mapped.append(
        (key, "model.dtype=bfloat16", "frozen experts in 16 bits: more memory, nearer to the model")
    )
    out.close.append(key)


def stored_quantised(out: Conversion, key: str, value: Any, keys: dict[str, Any]) -> None:
    """Say what to do with a base that is stored quantised."""
    if (keys.get("model_quantization_config_kwargs") or {}).get("dequantize"):
        out.drop(
            key,
            "trained in bfloat16 there as well; give a bfloat16 copy as model.path, sft-dist check says how to make it",
        )
    else:
        out.refuse(key, f"{value}: a base that is stored quantised is not read; give its bfloat16 weights")
