"""Key of another trainer -> what becomes of it here, in three tables: a rule, a reason why it is not needed, why it cannot be had.

The trainers share most keys, for all build on Hugging Face's training arguments; where one means something else, its
rule looks at the trainer.
"""

from __future__ import annotations

import re
from typing import Any

from sft_dist.config.convert import converters, together
from sft_dist.config.convert.defaults import DEFAULTS
from sft_dist.config.convert.known import CANNOT, NOT_NEEDED, PREFIXES
from sft_dist.config.convert.result import Conversion


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
    together.trl_loss(out, keys)
    together.batch(out, keys, ranks)
    together.lora(out, keys)
    together.stage(out, keys)
    for path, value in DEFAULTS[out.trainer].items():
        if out.get(path) is None and not (
            path == "optim.warmup_share" and out.get("optim.warmup_steps") is not None
        ):
            out.set(path, value)
            out.defaults.append(f"{path}={value}")
    out.set("name", re.sub(r"[^A-Za-z0-9._=,-]+", "-", out.name).strip("-.")[:100] or "converted")


RULES: dict[str, converters.Rule] = {
    "quantize_moe_experts": converters.experts,
    "model_quantization_config": converters.stored_quantised,
    "model_quantization_config_kwargs": converters.used,
    "base_model": converters.to("model.path", str),
    "model_name_or_path": converters.to("model.path", str),
    "model": converters.to("model.path", str),
    "revision_of_model": converters.to("model.revision", str),
    "model_revision": converters.to("model.revision", str),
    "tokenizer_config": converters.to("model.tokenizer", str),
    "tokenizer_name_or_path": converters.to("model.tokenizer", str),
    "trust_remote_code": converters.to("model.trust_remote_code", bool),
    "sequence_len": converters.to("pack.seq_len", converters.whole),
    "cutoff_len": converters.to("pack.seq_len", converters.whole),
    "max_length": converters.to("pack.seq_len", converters.whole),
    "max_seq_length": converters.to("pack.seq_len", converters.whole),
    "learning_rate": converters.to("optim.lr", converters.number),
    "lr": converters.to("optim.lr", converters.number),
    "lr_scheduler": converters.schedule,
    "lr_scheduler_type": converters.schedule,
    "warmup_ratio": converters.warmup,
    "warmup_steps": converters.warmup,
    "cosine_min_lr_ratio": converters.floor,
    "eta_min": converters.floor,
    "min_lr": converters.floor,
    "weight_decay": converters.to("optim.weight_decay", converters.number),
    "max_grad_norm": converters.to("optim.clip", lambda v: converters.number(v) or None),
    "adam_beta1": converters.beta,
    "adam_beta2": converters.beta,
    "adam_epsilon": converters.to("optim.eps", converters.number),
    "adam_eps": converters.to("optim.eps", converters.number),
    "optimizer": converters.optimizer,
    "optim": converters.optimizer,
    "num_epochs": converters.epochs,
    "num_train_epochs": converters.epochs,
    "max_steps": converters.max_steps,
    "seed": converters.to("seed", converters.whole),
    "bf16": converters.flag("model.dtype", "bfloat16"),
    "bfloat16": converters.flag("model.dtype", "bfloat16"),
    "torch_dtype": converters.to(
        "model.dtype", lambda v: {"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"}[str(v)]
    ),
    "dtype": converters.to(
        "model.dtype", lambda v: {"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"}[str(v)]
    ),
    "sample_packing": converters.packing,
    "packing": converters.packing,
    "neat_packing": converters.packing,
    "padding_free": converters.flag("pack.packing", True),
    "train_on_inputs": converters.inputs,
    "train_on_prompt": converters.inputs,
    "assistant_only_loss": converters.used,
    "completion_only_loss": converters.used,
    "val_set_size": converters.validation,
    "val_size": converters.validation,
    "split_dataset_ratio": converters.validation,
    "gradient_checkpointing": converters.checkpointing,
    "activation_offloading": converters.flag("model.offload_activations", True),
    "adapter": converters.adapter,
    "finetuning_type": converters.adapter,
    "tuner_type": converters.adapter,
    "train_type": converters.adapter,
    "use_peft": converters.used,
    "lora_r": converters.to("lora.rank", converters.whole),
    "lora_rank": converters.to("lora.rank", converters.whole),
    "lora_alpha": converters.to("lora.alpha", converters.number),
    "lora_dropout": converters.to("lora.dropout", converters.number),
    "lora_target_modules": converters.targets,
    "lora_target": converters.targets,
    "target_modules": converters.targets,
    "lora_modules_to_save": converters.to(
        "lora.modules_to_save", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "router_aux_loss_coef": converters.to("loss.router_balance", converters.number),
    "moe_aux_loss_coeff": converters.to("loss.router_balance", converters.number),
    "lora_target_parameters": converters.adapted_parameters,
    "target_parameters": converters.adapted_parameters,
    "modules_to_save": converters.to(
        "lora.modules_to_save", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "additional_target": converters.to("lora.modules_to_save", lambda v: str(v).split(",")),
    "peft_use_dora": converters.flag("lora.dora", True),
    "use_dora": converters.flag("lora.dora", True),
    "peft_use_rslora": converters.flag("lora.rslora", True),
    "use_rslora": converters.flag("lora.rslora", True),
    **dict.fromkeys(
        ("loraplus_lr_ratio", "lora_plus_lr_ratio", "lorap_lr_ratio"),
        converters.to("lora.lr_ratio", converters.number),
    ),
    "load_in_4bit": converters.used,
    "load_in_8bit": converters.base_8bit,
    "quantization_bit": converters.quant_bits,
    "quant_bits": converters.quant_bits,
    "neftune_noise_alpha": converters.to("loss.neftune_alpha", converters.number),
    "noisy_embedding_alpha": converters.to("loss.neftune_alpha", converters.number),
    "label_smoothing_factor": converters.to("loss.label_smoothing", converters.number),
    "use_dft_loss": converters.flag("loss.dft", True),
    "enable_dft_loss": converters.flag("loss.dft", True),
    "chat_template": converters.template,
    "template": converters.template,
    "chat_template_jinja": converters.template,
    "default_system_message": converters.to("render.system", str),
    "default_system": converters.to("render.system", str),
    "system": converters.to("render.system", str),
    "special_tokens": converters.special_tokens,
    "tokens": converters.special_tokens,
    "add_tokens": converters.add_tokens,
    "add_special_tokens": converters.add_tokens,
    "new_special_tokens": converters.add_tokens,
    "model_config": converters.inside,
    "overrides_of_model_config": converters.inside,
    "unfrozen_parameters": converters.trainable,
    "freeze_trainable_layers": converters.trainable,
    "deepspeed": converters.used,
    "fsdp": converters.used,
    "fsdp_config": converters.used,
    "fsdp_version": converters.used,
    "micro_batch_size": converters.used,
    "batch_size": converters.used,
    "per_device_train_batch_size": converters.used,
    "gradient_accumulation_steps": converters.used,
    "tensor_parallel_size": converters.used,
    "context_parallel_size": converters.parallel,
    "sequence_parallel_size": converters.parallel,
    "sequence_parallel_degree": converters.parallel,
    "torch_compile": converters.used,
    "tiled_mlp": converters.used,
    "lora_model_dir": converters.continued,
    "adapter_name_or_path": converters.continued,
    "adapters": converters.continued,
    "saves_per_epoch": converters.to("checkpoint.saves_per_epoch", lambda v: converters.whole(v) or None),
    "evals_per_epoch": converters.to("train.evals_per_epoch", lambda v: converters.whole(v) or None),
    "eval_steps_per_epoch": converters.to("train.evals_per_epoch", lambda v: converters.whole(v) or None),
    "save_strategy": converters.by_epoch("checkpoint.saves_per_epoch"),
    "eval_strategy": converters.by_epoch("train.evals_per_epoch"),
    "evaluation_strategy": converters.by_epoch("train.evals_per_epoch"),
    "early_stopping_patience": converters.patience,
    "early_stopping_threshold": converters.to("train.patience_nats", converters.number),
    "load_best_model_at_end": converters.best,
    "save_steps": converters.every("checkpoint.save_every_steps"),
    "save_total_limit": converters.to("checkpoint.keep_last", lambda v: max(1, converters.whole(v))),
    "eval_steps": converters.every("train.eval_every_steps"),
    "logging_steps": converters.every("train.log_every_steps", least=1),
    "report_to": converters.report_to,
    "wandb_project": converters.to("wandb.project", str),
    "wandb_entity": converters.to("wandb.entity", str),
    "wandb_name": converters.used,
    "wandb_run_id": converters.used,
    "run_name": converters.used,
    "fp32": converters.flag("model.dtype", "float32"),
    "freeze_vision_tower": converters.used,
    "freeze_multi_modal_projector": converters.used,
    "freeze_vit": converters.used,
    "freeze_aligner": converters.used,
    "freeze_llm": converters.used,
    "stage": lambda out, key, value, _: (
        None if value == "sft" else out.refuse(key, f"{value}: supervised fine-tuning is done here")
    ),
}


FALSE_MATTERS = {"sample_packing", "packing", "neat_packing", "gradient_checkpointing", "train_on_inputs"}
