"""The whole config of one run."""

from __future__ import annotations

import re
import warnings
from typing import Any

from pydantic import Field, NonNegativeInt, model_validator

from sft_dist.config.base import ANYTIME, RESUMABLE, Section
from sft_dist.config.cluster import LaunchConfig, SubmitConfig
from sft_dist.config.construct import ConstructConfig
from sft_dist.config.data import DataConfig, MixConfig, PackConfig, RenderConfig
from sft_dist.config.model import LoraConfig, ModelConfig
from sft_dist.config.optimizers import OPTIMIZERS
from sft_dist.config.sweep import SweepConfig
from sft_dist.config.train import (
    CheckpointConfig,
    DeepSpeedConfig,
    EvalConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
    WandbConfig,
)

# pydantic 1 had a method of this name; pydantic 2 keeps it as a deprecated alias of model_construct, which nobody here calls
warnings.filterwarnings("ignore", message='Field name "construct" in "RunConfig" shadows')


class RunConfig(Section):
    """Every section of one run."""

    name: str = Field(
        default="run", json_schema_extra=ANYTIME, description="Name of the run: its folder under run_root."
    )
    run_root: str = Field(
        default="runs", json_schema_extra=ANYTIME, description="Folder that holds the run folders."
    )
    seed: NonNegativeInt = Field(
        default=0, description="The one seed; every random stream is derived from it by name."
    )
    plugins: tuple[str, ...] = Field(
        default=(),
        json_schema_extra=RESUMABLE,
        description="Modules (pkg.module) or files (my.py) of your own that add metrics, filters and callbacks (docs/plugins.md); they are imported by every command and rank.",
    )
    data: DataConfig = DataConfig()
    construct: ConstructConfig = ConstructConfig()  # type: ignore[assignment]
    render: RenderConfig = RenderConfig()
    mix: MixConfig = MixConfig()
    pack: PackConfig = PackConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig | None = Field(
        default=None, description="Train low-rank adapters on a frozen base; null: the weights themselves."
    )
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    deepspeed: DeepSpeedConfig = Field(default=DeepSpeedConfig(), json_schema_extra=RESUMABLE)
    checkpoint: CheckpointConfig = Field(default=CheckpointConfig(), json_schema_extra=ANYTIME)
    eval: EvalConfig = Field(default=EvalConfig(), json_schema_extra=RESUMABLE)
    wandb: WandbConfig = Field(default=WandbConfig(), json_schema_extra=ANYTIME)
    launch: LaunchConfig = Field(default=LaunchConfig(), json_schema_extra=ANYTIME)
    cluster: str | None = Field(
        default=None,
        json_schema_extra=ANYTIME,
        description="Site profile that `sft-dist submit` takes account, partition and so on from.",
    )
    submit: SubmitConfig = Field(default=SubmitConfig(), json_schema_extra=ANYTIME)
    sweep: SweepConfig = Field(default=SweepConfig(), json_schema_extra=ANYTIME)

    @model_validator(mode="before")
    @classmethod
    def _rows_of_new_tokens(cls, values: Any) -> Any:
        """Let the model get rows for tokens that are added, unless it says itself how many rows it gets."""
        if not isinstance(values, dict):
            return values
        model, render = values.get("model"), values.get("render")
        if (
            not isinstance(model, dict)
            or not isinstance(render, dict)
            or model.get("vocab_multiple") is not None
        ):
            return values
        if render.get("add_tokens") or render.get("add_special_tokens"):
            return {**values, "model": {**model, "vocab_multiple": 1}}
        return values

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,-]{0,127}", self.name):
            raise ValueError(
                f"name={self.name[:60]!r} cannot be a folder name; use up to 128 letters, digits, '.', '_', '=' and '-'"
            )
        if self.train.tokens_per_step % self.pack.seq_len:
            rows = max(1, round(self.train.tokens_per_step / self.pack.seq_len))
            raise ValueError(
                f"train.tokens_per_step={self.train.tokens_per_step} is not a multiple of pack.seq_len={self.pack.seq_len}, "
                f"so a global batch would not be whole rows; use {rows * self.pack.seq_len}"
            )
        if OPTIMIZERS[self.optim.name].matrices and self.deepspeed.stage not in (0, "auto"):
            raise ValueError(
                f"optim.name={self.optim.name} with deepspeed.stage={self.deepspeed.stage}: it needs whole matrices and ZeRO cuts them; "
                "DeepSpeed's own gathers them, but puts its update in the gradient's place before the norm is taken, so that "
                "optim.clip and the logged norm would be wrong. Use deepspeed.stage=0 with model.dtype=float32, or optim.name=adamw"
            )
        if self.train.export_ema and self.optim.ema_decay is None:
            raise ValueError(
                "train.export_ema asks for averaged weights, but none are kept; set optim.ema_decay (0.999, say)"
            )
        if self.optim.ema_decay is not None and self.deepspeed.offload_optimizer == "nvme":
            raise ValueError(
                "optim.ema_decay keeps its average in host memory, which deepspeed.offload_optimizer=nvme is there to save; "
                "set one of them to its default"
            )
        if self.model.gradient_checkpointing == "selective" and self.deepspeed.stage == 3:
            raise ValueError(
                "model.gradient_checkpointing=selective with deepspeed.stage=3: it matches the operations of forward and backward "
                "one by one, and ZeRO-3 gathers and frees weights between them; use 2 (every second layer), or deepspeed.stage=2"
            )
        if self.loss.neftune_alpha is not None and self.train.sequence_parallel > 1:
            raise ValueError(
                "loss.neftune_alpha scales its noise by the length of a document, but with train.sequence_parallel a rank "
                "holds slices of documents; set one of them to its default"
            )
        if self.deepspeed.stage == 0 and self.model.dtype == "bfloat16":
            raise ValueError(
                "deepspeed.stage=0 with model.dtype=bfloat16 would have no fp32 master weights, so small updates would be lost; "
                "use deepspeed.stage=1 or model.dtype=float32"
            )
        limit = self.model.shape.max_position_embeddings if self.model.shape else None
        if limit is not None and self.pack.seq_len > limit:
            raise ValueError(
                f"pack.seq_len={self.pack.seq_len} is more than model.shape.max_position_embeddings={limit}, "
                "so late positions were never defined; lower the first or raise the second"
            )
        if self.lora is not None and (self.model.trainable or self.model.freeze):
            raise ValueError(
                "lora is set, which freezes the whole base, and so are model.trainable or model.freeze, so it is unclear what "
                "is trained; choose with lora.target_modules and lora.modules_to_save, or set lora to null"
            )
        if self.lora is not None and self.model.shape is not None:
            raise ValueError(
                "lora is set with model.shape, so adapters would sit on a random base that never learns; "
                "set model.path to a trained model, or lora to null"
            )
        if self.lora is not None and self.lora.export == "adapter":
            for field in ("rope_scaling", "vocab_multiple"):
                if getattr(self.model, field) is not None:
                    raise ValueError(
                        f"lora.export=adapter would lose model.{field}, which changes the base itself; use lora.export=merged, or "
                        f"model.{field}=null"
                    )
        if self.loss.router_balance is not None and self.model.compile is True:
            raise ValueError(
                "loss.router_balance watches the routers, which compiled layers do not show, but model.compile=true; use "
                "model.compile=false, or loss.router_balance=null"
            )
        if self.lora is not None and self.lora.quantize_base and self.deepspeed.stage == 3:
            raise ValueError(
                "lora.quantize_base is set with deepspeed.stage=3, which cannot partition 4-bit weights; "
                "use deepspeed.stage=2 (the quantised base is whole on each device), or lora.quantize_base=null"
            )
        if self.checkpoint.keep_best and not self.train.evaluates:
            raise ValueError(
                f"checkpoint.keep_best={self.checkpoint.keep_best}, but neither train.eval_every_steps nor train.evals_per_epoch is set, so the "
                "validation loss is measured at the end only and no earlier checkpoint can be the best; set one, or checkpoint.keep_best=0"
            )
        if self.train.export_best and not self.checkpoint.keep_best:
            raise ValueError(
                "train.export_best exports the checkpoint of the lowest validation loss, and checkpoint.keep_best=0 keeps none; set "
                "checkpoint.keep_best=1"
            )
        if self.train.patience_evaluations is not None and not self.data.validates:
            raise ValueError(
                f"train.patience_evaluations={self.train.patience_evaluations} waits for a lower validation loss, and there is no validation "
                "set; set data.validation.share=0.02, or train.patience_evaluations=null"
            )
        if self.checkpoint.keep_best and not self.data.validates:
            raise ValueError(
                f"checkpoint.keep_best={self.checkpoint.keep_best} keeps the checkpoints of the lowest validation loss, and there is no validation "
                "set; set data.validation.share=0.02, or checkpoint.keep_best=0"
            )
        if self.model.path is None and self.model.shape is None:
            raise ValueError(
                "neither model.path nor model.shape is set, so there is no model to train; set one of them"
            )
        if self.model.tokenizer is None and self.model.path is None and self.render.train_vocab_size is None:
            raise ValueError(
                "model.shape has no tokenizer of its own, so nothing can be rendered; "
                "set model.tokenizer or render.train_vocab_size"
            )
        return self
