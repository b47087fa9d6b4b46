"""Key of another trainer -> what becomes of it here, in three tables: a rule, a reason why it is not needed, why it cannot be had.

The trainers share most keys, for all build on Hugging Face's training arguments; where one means something else, its
rule looks at the trainer.
"""

from __future__ import annotations

import re
from typing import Any

from sft_dist.config.convert import rules, together
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


RULES: dict[str, rules.Rule] = {
    "quantize_moe_experts": rules.experts,
    "model_quantization_config": rules.stored_quantised,
    "model_quantization_config_kwargs": rules.used,
    "base_model": rules.to("model.path", str),
    "model_name_or_path": rules.to("model.path", str),
    "model": rules.to("model.path", str),
    "revision_of_model": rules.to("model.revision", str),
    "model_revision": rules.to("model.revision", str),
    "tokenizer_config": rules.to("model.tokenizer", str),
    "tokenizer_name_or_path": rules.to("model.tokenizer", str),
    "trust_remote_code": rules.to("model.trust_remote_code", bool),
    "sequence_len": rules.to("pack.seq_len", rules.whole),
    "cutoff_len": rules.to("pack.seq_len", rules.whole),
    "max_length": rules.to("pack.seq_len", rules.whole),
    "max_seq_length": rules.to("pack.seq_len", rules.whole),
    "learning_rate": rules.to("optim.lr", rules.number),
    "lr": rules.to("optim.lr", rules.number),
    "lr_scheduler": rules.schedule,
    "lr_scheduler_type": rules.schedule,
    "warmup_ratio": rules.warmup,
    "warmup_steps": rules.warmup,
    "cosine_min_lr_ratio": rules.floor,
    "eta_min": rules.floor,
    "min_lr": rules.floor,
    "weight_decay": rules.to("optim.weight_decay", rules.number),
    "max_grad_norm": rules.to("optim.clip", lambda v: rules.number(v) or None),
    "adam_beta1": rules.beta,
    "adam_beta2": rules.beta,
    "adam_epsilon": rules.to("optim.eps", rules.number),
    "adam_eps": rules.to("optim.eps", rules.number),
    "optimizer": rules.optimizer,
    "optim": rules.optimizer,
    "num_epochs": rules.epochs,
    "num_train_epochs": rules.epochs,
    "max_steps": rules.max_steps,
    "seed": rules.to("seed", rules.whole),
    "bf16": rules.flag("model.dtype", "bfloat16"),
    "bfloat16": rules.flag("model.dtype", "bfloat16"),
    "torch_dtype": rules.to(
        "model.dtype", lambda v: {"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"}[str(v)]
    ),
    "dtype": rules.to(
        "model.dtype", lambda v: {"bfloat16": "bfloat16", "float32": "float32", "auto": "bfloat16"}[str(v)]
    ),
    "sample_packing": rules.packing,
    "packing": rules.packing,
    "neat_packing": rules.packing,
    "padding_free": rules.flag("pack.packing", True),
    "train_on_inputs": rules.inputs,
    "train_on_prompt": rules.inputs,
    "assistant_only_loss": rules.used,
    "completion_only_loss": rules.used,
    "val_set_size": rules.validation,
    "val_size": rules.validation,
    "split_dataset_ratio": rules.validation,
    "gradient_checkpointing": rules.checkpointing,
    "activation_offloading": rules.flag("model.offload_activations", True),
    "adapter": rules.adapter,
    "finetuning_type": rules.adapter,
    "tuner_type": rules.adapter,
    "train_type": rules.adapter,
    "use_peft": rules.used,
    "lora_r": rules.to("lora.rank", rules.whole),
    "lora_rank": rules.to("lora.rank", rules.whole),
    "lora_alpha": rules.to("lora.alpha", rules.number),
    "lora_dropout": rules.to("lora.dropout", rules.number),
    "lora_target_modules": rules.targets,
    "lora_target": rules.targets,
    "target_modules": rules.targets,
    "lora_modules_to_save": rules.to(
        "lora.modules_to_save", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "router_aux_loss_coef": rules.to("loss.router_balance", rules.number),
    "moe_aux_loss_coeff": rules.to("loss.router_balance", rules.number),
    "lora_target_parameters": rules.adapted_parameters,
    "target_parameters": rules.adapted_parameters,
    "modules_to_save": rules.to(
        "lora.modules_to_save", lambda v: list(v) if isinstance(v, list) else str(v).split(",")
    ),
    "additional_target": rules.to("lora.modules_to_save", lambda v: str(v).split(",")),
    "peft_use_dora": rules.flag("lora.dora", True),
    "use_dora": rules.flag("lora.dora", True),
    "peft_use_rslora": rules.flag("lora.rslora", True),
    "use_rslora": rules.flag("lora.rslora", True),
    **dict.fromkeys(
        ("loraplus_lr_ratio", "lora_plus_lr_ratio", "lorap_lr_ratio"), rules.to("lora.lr_ratio", rules.number)
    ),
    "load_in_4bit": rules.used,
    "load_in_8bit": rules.base_8bit,
    "quantization_bit": rules.quant_bits,
    "quant_bits": rules.quant_bits,
    "neftune_noise_alpha": rules.to("loss.neftune_alpha", rules.number),
    "noisy_embedding_alpha": rules.to("loss.neftune_alpha", rules.number),
    "label_smoothing_factor": rules.to("loss.label_smoothing", rules.number),
    "use_dft_loss": rules.flag("loss.dft", True),
    "enable_dft_loss": rules.flag("loss.dft", True),
    "chat_template": rules.template,
    "template": rules.template,
    "chat_template_jinja": rules.template,
    "default_system_message": rules.to("render.system", str),
    "default_system": rules.to("render.system", str),
    "system": rules.to("render.system", str),
    "special_tokens": rules.special_tokens,
    "tokens": rules.special_tokens,
    "add_tokens": rules.add_tokens,
    "add_special_tokens": rules.add_tokens,
    "new_special_tokens": rules.add_tokens,
    "model_config": rules.inside,
    "overrides_of_model_config": rules.inside,
    "unfrozen_parameters": rules.trainable,
    "freeze_trainable_layers": rules.trainable,
    "deepspeed": rules.used,
    "fsdp": rules.used,
    "fsdp_config": rules.used,
    "fsdp_version": rules.used,
    "micro_batch_size": rules.used,
    "batch_size": rules.used,
    "per_device_train_batch_size": rules.used,
    "gradient_accumulation_steps": rules.used,
    "tensor_parallel_size": rules.used,
    "context_parallel_size": rules.parallel,
    "sequence_parallel_size": rules.parallel,
    "sequence_parallel_degree": rules.parallel,
    "torch_compile": rules.used,
    "tiled_mlp": rules.used,
    "lora_model_dir": rules.continued,
    "adapter_name_or_path": rules.continued,
    "adapters": rules.continued,
    "saves_per_epoch": rules.to("checkpoint.saves_per_epoch", lambda v: rules.whole(v) or None),
    "evals_per_epoch": rules.to("train.evals_per_epoch", lambda v: rules.whole(v) or None),
    "eval_steps_per_epoch": rules.to("train.evals_per_epoch", lambda v: rules.whole(v) or None),
    "save_strategy": rules.by_epoch("checkpoint.saves_per_epoch"),
    "eval_strategy": rules.by_epoch("train.evals_per_epoch"),
    "evaluation_strategy": rules.by_epoch("train.evals_per_epoch"),
    "early_stopping_patience": rules.patience,
    "early_stopping_threshold": rules.to("train.patience_nats", rules.number),
    "load_best_model_at_end": rules.best,
    "save_steps": rules.every("checkpoint.save_every_steps"),
    "save_total_limit": rules.to("checkpoint.keep_last", lambda v: max(1, rules.whole(v))),
    "eval_steps": rules.every("train.eval_every_steps"),
    "logging_steps": rules.every("train.log_every_steps", least=1),
    "report_to": rules.report_to,
    "wandb_project": rules.to("wandb.project", str),
    "wandb_entity": rules.to("wandb.entity", str),
    "wandb_name": rules.used,
    "wandb_run_id": rules.used,
    "run_name": rules.used,
    "fp32": rules.flag("model.dtype", "float32"),
    "freeze_vision_tower": rules.used,
    "freeze_multi_modal_projector": rules.used,
    "freeze_vit": rules.used,
    "freeze_aligner": rules.used,
    "freeze_llm": rules.used,
    "stage": lambda out, key, value, _: (
        None if value == "sft" else out.refuse(key, f"{value}: supervised fine-tuning is done here")
    ),
}


FALSE_MATTERS = {"sample_packing", "packing", "neat_packing", "gradient_checkpointing", "train_on_inputs"}
