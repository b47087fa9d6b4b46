"""The whole config of one run."""

from __future__ import annotations

import re
import warnings

from pydantic import Field, NonNegativeInt, model_validator

from sft_dist.config.base import Section
from sft_dist.config.cluster import LaunchConfig
from sft_dist.config.construct import ConstructConfig
from sft_dist.config.data import DataConfig, MixConfig, PackConfig, RenderConfig
from sft_dist.config.train import (
    CheckpointConfig,
    DeepSpeedConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    WandbConfig,
)

# pydantic 1 had a method of this name; pydantic 2 keeps it as a deprecated alias of model_construct, which nobody here calls
warnings.filterwarnings("ignore", message='Field name "construct" in "RunConfig" shadows')


class RunConfig(Section):
    """Every section of one run."""

    name: str = Field(default="run", description="Name of the run: its folder under run_root.")
    run_root: str = Field(default="runs", description="Folder that holds the run folders.")
    seed: NonNegativeInt = Field(
        default=0, description="The one seed; every random stream is derived from it by name."
    )
    data: DataConfig = DataConfig()
    construct: ConstructConfig = ConstructConfig()  # type: ignore[assignment]
    render: RenderConfig = RenderConfig()
    mix: MixConfig = MixConfig()
    pack: PackConfig = PackConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    eval: EvalConfig = EvalConfig()
    wandb: WandbConfig = WandbConfig()
    launch: LaunchConfig = LaunchConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,-]*", self.name):
            raise ValueError(
                f"name={self.name!r} cannot be a folder name; use letters, digits, '.', '_', '=' and '-'"
            )
        if self.train.tokens_per_step % self.pack.seq_len:
            rows = max(1, round(self.train.tokens_per_step / self.pack.seq_len))
            raise ValueError(
                f"train.tokens_per_step={self.train.tokens_per_step} is not a multiple of pack.seq_len={self.pack.seq_len}, "
                f"so a global batch would not be whole rows; use {rows * self.pack.seq_len}"
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
