"""How it is trained: model, optimizer, steps, DeepSpeed, checkpoints, evaluation, logging."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sft_dist.config.base import Section


class ShapeConfig(Section):
    """A Llama-type model to train from scratch."""

    hidden_size: PositiveInt = 256
    intermediate_size: PositiveInt = 688
    layers: PositiveInt = 6
    heads: PositiveInt = 4
    kv_heads: PositiveInt | None = Field(default=None, description="Key-value heads; null: as many as heads.")
    max_position_embeddings: PositiveInt = 4096
    rope_theta: PositiveFloat = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: PositiveFloat = 0.02

    @model_validator(mode="after")
    def _check(self) -> ShapeConfig:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}; change one of them"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; change one of them"
            )
        return self


class ModelConfig(Section):
    """The model that training starts from."""

    path: str | None = Field(default=None, description="Local folder or hub id of a causal language model.")
    shape: ShapeConfig | None = Field(default=None, description="Or: train this shape from scratch.")
    revision: str | None = Field(default=None, description="Hub revision (a commit hash pins it).")
    tokenizer: str | None = Field(
        default=None, description="Folder, tokenizer.json or hub id; null: the model's own."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Of weights in forward and backward; masters are fp32."
    )
    attention: Literal["auto", "flash", "varlen", "flex", "sdpa_per_doc", "sdpa_dense"] = Field(
        default="auto",
        description="Packed attention backend; auto takes the fastest that is present and right.",
    )
    gradient_checkpointing: bool = Field(
        default=True, description="Recompute activations in the backward pass."
    )
    trust_remote_code: bool = Field(default=False, description="Run model code from the hub.")

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.path is not None and self.shape is not None:
            raise ValueError(
                "model.path and model.shape are both set, so it is unclear what training starts from; set one to null"
            )
        return self


class OptimConfig(Section):
    """AdamW and its schedule."""

    lr: PositiveFloat = Field(default=1e-5, description="Peak learning rate.")
    betas: tuple[float, float] = (0.9, 0.95)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Of matrices; vectors and norms have none."
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup: NonNegativeFloat = Field(
        default=0.03, description="Steps of linear warm-up; below 1: share of all steps."
    )
    decay: PositiveFloat = Field(
        default=0.2, description="wsd only: steps of decay at the end; below 1: share of all steps."
    )
    min_lr_share: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end over the peak."
    )
    clip: PositiveFloat | None = Field(
        default=1.0, description="Largest global gradient norm; null: no clipping."
    )


class TrainConfig(Section):
    """Steps and epochs."""

    epochs: PositiveInt = Field(default=1, description="Passes over the mixture.")
    max_steps: PositiveInt | None = Field(default=None, description="Stop after this many optimizer steps.")
    tokens_per_step: PositiveInt = Field(
        default=131072, description="Capacity of a global batch in tokens: rows x seq_len."
    )
    micro_rows: PositiveInt = Field(
        default=1, description="Rows that one rank runs side by side in a micro-step."
    )
    log_every: PositiveInt = 1
    eval_every: PositiveInt | None = Field(
        default=None, description="Steps between held-out loss evaluations; null: at the end only."
    )
    eval_tokens: PositiveInt = Field(
        default=262144, description="Tokens of held-out examples scored each time, at most."
    )
    max_skipped_steps: PositiveInt = Field(
        default=10, description="Stop after this many non-finite steps in a row."
    )
    export: bool = Field(default=True, description="Write a Hugging Face folder when training ends.")
    threads_per_rank: PositiveInt | None = Field(
        default=None, description="CPU threads a rank; null: cores over ranks."
    )


class DeepSpeedConfig(Section):
    """The dozen fields of DeepSpeed that a user decides; everything else is derived in train/zero.py."""

    stage: Literal[0, 1, 2, 3] = Field(default=3, description="ZeRO stage.")
    overlap_comm: bool = True
    reduce_bucket_size: PositiveInt = Field(
        default=100_000_000, description="Elements; the buffer is allocated in the communication dtype."
    )
    prefetch_bucket_size: NonNegativeInt = Field(
        default=50_000_000, description="Elements gathered ahead (stage 3)."
    )
    persistence_threshold: NonNegativeInt = Field(
        default=100_000, description="Smaller parameters stay gathered (stage 3)."
    )
    max_live_parameters: PositiveInt = 1_000_000_000
    sub_group_size: PositiveInt = Field(
        default=100_000_000, description="Elements the optimizer updates at a time (stage 3)."
    )
    communication_dtype: Literal["fp32", "bf16"] | None = Field(
        default=None, description="Of gradient reduction; null: the model's dtype."
    )
    timeout_minutes: PositiveInt = Field(default=30, description="Of a collective, before the run is ended.")
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further DeepSpeed keys, merged last; derived keys are refused."
    )


class CheckpointConfig(Section):
    """When to save, what to keep, how to resume."""

    resume: Literal["auto", "never", "required"] = Field(
        default="auto",
        description="auto: continue the newest whole checkpoint of this run folder if there is one.",
    )
    save_every_steps: PositiveInt | None = Field(
        default=None, description="Steps between checkpoints; null: not by steps."
    )
    save_every_minutes: PositiveFloat | None = Field(
        default=30.0, description="Minutes between checkpoints; null: not by time."
    )
    keep_last: PositiveInt = Field(default=2, description="Whole checkpoints that stay on disk.")


class EvalConfig(Section):
    """Generation on held-out examples and tasks."""

    max_new_tokens: PositiveInt = 128
    batch_size: PositiveInt = Field(default=32, description="Prompts generated side by side.")
    max_examples_per_task: PositiveInt = Field(default=50, description="Evaluation examples of each task.")
    metric: Literal["exact_match", "rouge_l"] = Field(
        default="rouge_l", description="Headline metric of the report."
    )
    base: bool = Field(default=False, description="Evaluate the model that training started from as well.")


class WandbConfig(Section):
    """Weights & Biases, on rank 0 only."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: online with an API key, else disabled."
    )
    project: str = "sft_dist"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
