"""How it is trained: loss, optimizer, steps, DeepSpeed, checkpoints, evaluation, logging."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sft_dist.config import plugins
from sft_dist.config.base import ANYTIME, RESUMABLE, Section
from sft_dist.config.optimizers import ABSENT, OPTIMIZERS

Share = Annotated[float, Field(ge=0, lt=1)]
ProbeName = Literal[
    "phrasing", "contrast", "labels", "format", "instruction", "memorisation", "extraction", "control", "forgetting", "shift",
]  # fmt: skip


class LossConfig(Section):
    """What is added to cross-entropy on the targets. Logged and held-out losses stay plain cross-entropy."""

    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of a target's mass that is spread over the vocabulary."
    )
    z_loss: NonNegativeFloat = Field(
        default=0.0, description="Coefficient of the squared log-sum-exp of the logits (1e-4 is usual)."
    )
    dft: bool = Field(
        default=False, description="Weight each target by its own probability (dynamic fine-tuning)."
    )
    router_balance: NonNegativeFloat | Literal["model"] | None = Field(
        default=None,
        description="Coefficient of the load-balance loss of a mixture of experts, over the global batch (0.001 is usual; 0: its routers' load is logged, no more); model: the one that its config.json names, nothing for a model without routers; null: neither.",
    )
    kernel: Literal["auto", "plain", "triton"] = Field(
        json_schema_extra=RESUMABLE,
        default="auto",
        description="How it is computed: plain, by torch's operations; triton, by a kernel that passes twice over the logits in place; auto: triton on a GPU that has it.",
    )
    neftune_alpha: PositiveFloat | None = Field(
        default=None, description="Noise on the input embeddings (NEFTune; 5 to 15 are usual); null: none."
    )


class OptimConfig(Section):
    """The optimizer and its schedule."""

    name: str = Field(
        default="adamw", description="; ".join(f"{name}: {o.about}" for name, o in OPTIMIZERS.items()) + "."
    )
    lr: PositiveFloat = Field(default=1e-5, description="Peak learning rate.")
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0, lt=1)
    weight_decay: NonNegativeFloat = Field(
        default=0.0, description="Of matrices; vectors and norms have none."
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_share: float = Field(
        default=0.03, ge=0, le=1, description="Share of all steps with a linearly rising learning rate."
    )
    warmup_steps: NonNegativeInt | None = Field(
        default=None, description="Steps of warm-up, in place of warmup_share."
    )
    warmup_tokens: PositiveInt | None = Field(
        default=None,
        description="Warm-up in tokens of capacity (train.tokens_per_step a step), in place of warmup_share.",
    )
    decay_share: float = Field(
        default=0.2,
        gt=0,
        le=1,
        description="wsd only: share of all steps, at the end, with a falling learning rate.",
    )
    decay_steps: PositiveInt | None = Field(
        default=None, description="wsd only: steps of that decay, in place of decay_share."
    )
    min_lr_share: float = Field(
        default=0.0, ge=0, le=1, description="Learning rate at the end over the peak."
    )
    clip: PositiveFloat | None = Field(
        default=1.0, description="Largest global gradient norm; null: no clipping."
    )
    layer_lr_decay: float = Field(
        default=1.0, gt=0, le=1, description="Learning rate of a layer over that of the layer above it."
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Keep a moving average of the weights, of this decay a step; null: none.",
    )
    ema_every_steps: PositiveInt = Field(default=10, description="Steps between updates of the average.")

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name in ABSENT:
            raise ValueError(f"optim.name={name} is not supported: {ABSENT[name]}")
        if name not in OPTIMIZERS:
            raise ValueError(f"{name!r} is no optimizer; use one of {', '.join(OPTIMIZERS)}")
        return name

    @model_validator(mode="after")
    def _one_warmup(self) -> OptimConfig:
        if self.warmup_steps is not None and self.warmup_tokens is not None:
            raise ValueError(
                f"optim.warmup_steps={self.warmup_steps} and optim.warmup_tokens={self.warmup_tokens} both set the length of the "
                "warm-up; keep one and set the other to null"
            )
        return self


class TrainConfig(Section):
    """Steps and epochs."""

    epochs: float = Field(
        json_schema_extra=RESUMABLE,
        default=1,
        gt=0,
        le=100_000,
        description="Passes over the mixture; the last may be a part of one, such as 0.5 or 2.25.",
    )
    max_steps: PositiveInt | None = Field(
        json_schema_extra=RESUMABLE, default=None, description="Stop after this many optimizer steps."
    )
    tokens_per_step: PositiveInt = Field(
        default=131072, description="Capacity of a global batch in tokens: rows x seq_len."
    )
    micro_rows: PositiveInt | Literal["auto"] = Field(
        json_schema_extra=RESUMABLE,
        default="auto",
        description="Rows that one rank runs side by side in a micro-step; auto: more than one where they fit and are faster by calculation (1 on CPU).",
    )
    sequence_parallel: PositiveInt = Field(
        json_schema_extra=RESUMABLE,
        default=1,
        description="Neighbouring ranks that share rows: each holds a slice of the tokens, for rows too long for one.",
    )
    log_every_steps: PositiveInt = Field(
        json_schema_extra=ANYTIME, default=1, description="Steps between lines that the tracker gets."
    )
    eval_every_steps: PositiveInt | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="Steps between evaluations of the losses of all sets; null: before the first step and after the last only.",
    )
    evals_per_epoch: PositiveInt | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="Evaluations of the losses of all sets in each epoch, evenly spread, the last at its end; null: not by epochs.",
    )
    patience_evaluations: PositiveInt | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="End the run when so many evaluations in a row have not lowered the validation loss; null: train to the end.",
    )
    patience_nats: NonNegativeFloat = Field(
        json_schema_extra=RESUMABLE,
        default=0.0,
        description="How far below the lowest validation loss so far an evaluation must lie to count as lower, for patience_evaluations.",
    )
    eval_tokens: PositiveInt = Field(
        json_schema_extra=RESUMABLE,
        default=262144,
        description="Tokens of held-out examples scored each time, at most.",
    )
    on_nonfinite: Literal["skip", "stop"] = Field(
        json_schema_extra=RESUMABLE,
        default="skip",
        description="A loss or gradient that is not finite: skip the update, or stop before it; events.jsonl names the examples.",
    )
    on_spike: Literal["off", "skip", "stop"] = Field(
        json_schema_extra=RESUMABLE,
        default="off",
        description="A loss far above the running median of 64 steps: apply, skip or stop.",
    )
    spike_deviations: PositiveFloat = Field(
        json_schema_extra=RESUMABLE,
        default=10.0,
        description="How far above: robust standard deviations (median absolute deviation).",
    )
    max_skipped_steps: PositiveInt = Field(
        json_schema_extra=RESUMABLE, default=10, description="Stop after this many skipped steps in a row."
    )
    smoke: bool = Field(
        default=False,
        description="Set by `train --smoke`: only two steps, on the most expensive global batches of the first epoch.",
    )
    export: bool = Field(
        json_schema_extra=RESUMABLE,
        default=True,
        description="Write a Hugging Face folder when training ends.",
    )
    export_best: bool = Field(
        json_schema_extra=RESUMABLE,
        default=False,
        description="Export the checkpoint of the lowest validation loss (checkpoint.keep_best) instead of the last.",
    )
    verify_export: bool = Field(
        json_schema_extra=RESUMABLE,
        default=True,
        description="Reload what was exported by plain transformers: whole, the losses of training, the template of training, and whether "
        "answers end by themselves. Takes memory for a second copy of the model on one node.",
    )
    export_ema: bool = Field(
        json_schema_extra=RESUMABLE,
        default=False,
        description="Export the averaged weights (optim.ema_decay) instead of the last.",
    )
    profile: tuple[PositiveInt, PositiveInt] | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="First and last optimizer step of a trace in profile/ of the run folder; null: none.",
    )
    tensorboard: bool = Field(
        json_schema_extra=ANYTIME,
        default=False,
        description="Write event files of TensorBoard (extra `tensorboard`) into tensorboard/ of the run folder.",
    )
    deterministic: bool = Field(
        json_schema_extra=RESUMABLE,
        default=False,
        description="On a GPU: only kernels that give the same bits each time, so that a run repeats exactly on the same devices; "
        "backward passes of attention and sums by index get slower, and an operation without such a kernel is an error. On a CPU runs repeat anyway.",
    )
    threads_per_rank: int | None = Field(
        json_schema_extra=ANYTIME,
        default=None,
        ge=1,
        le=1024,
        description="CPU threads a rank; null: cores over ranks.",
    )

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.profile is not None and self.profile[0] > self.profile[1]:
            first, last = self.profile
            raise ValueError(
                f"train.profile=[{first},{last}] ends before it begins, so there is nothing to record; "
                f"use [{last},{first}]"
            )
        if self.patience_evaluations is not None and not self.evaluates:
            raise ValueError(
                f"train.patience_evaluations={self.patience_evaluations}, but the validation loss is measured at the end only, so nothing "
                "could end the run earlier; set train.eval_every_steps or train.evals_per_epoch"
            )
        return self

    @property
    def evaluates(self) -> bool:
        """Whether losses are measured before the end."""
        return self.eval_every_steps is not None or self.evals_per_epoch is not None


class DeepSpeedConfig(Section):
    """The dozen fields of DeepSpeed that a user decides; everything else is derived in train/zero.py."""

    stage: Literal["auto", 0, 1, 2, 3] = Field(
        default="auto", description="ZeRO stage; auto: the smallest from 1 on that fits, by the estimate."
    )
    overlap_comm: bool | Literal["auto"] = Field(
        default="auto",
        description="Reduce gradients beside the backward pass (stage 2 and 3); auto: under stage 3, and under stage 2 on several ranks.",
    )
    reduce_bucket_size: PositiveInt = Field(
        default=100_000_000, description="Elements; the buffer is allocated in the communication dtype."
    )
    prefetch_bucket_size: NonNegativeInt | Literal["auto"] = Field(
        default="auto", description="Elements gathered ahead (stage 3); auto: two layers."
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
    offload_optimizer: Literal["none", "cpu", "nvme"] = Field(
        default="none",
        description="Where master weights and optimizer states live, and where the update runs: on the host.",
    )
    offload_params: Literal["none", "cpu"] = Field(
        default="none", description="Where a rank's partition of the weights waits (stage 3)."
    )
    nvme_path: str | None = Field(
        default=None, description="Folder on a local disk, for offload_optimizer=nvme."
    )
    hpz_partition_size: PositiveInt = Field(
        default=1,
        description="Ranks (those of a node) that keep a second copy of the weights among them, so that backward gathers stay inside (ZeRO++, stage 3).",
    )
    quantized_weights: bool = Field(
        default=False,
        description="Gather weights in 8 bits (ZeRO++, stage 3, GPU only); rounds the forward pass.",
    )
    quantized_gradients: bool = Field(
        default=False,
        description="Reduce gradients in 4 bits (ZeRO++, stage 3, GPU only); rounds the gradient.",
    )
    timeout_minutes: int = Field(
        default=30, ge=1, le=10_080, description="Of a collective, before the run is ended."
    )
    extra: dict[str, Any] = Field(
        default_factory=dict,
        description="Further DeepSpeed keys, merged last; derived and unknown keys are refused.",
    )

    @model_validator(mode="after")
    def _check(self) -> DeepSpeedConfig:
        only_3 = {
            "offload_params": self.offload_params != "none",
            "offload_optimizer=nvme": self.offload_optimizer == "nvme",
            "hpz_partition_size": self.hpz_partition_size > 1,
            "quantized_weights": self.quantized_weights,
            "quantized_gradients": self.quantized_gradients,
        }
        if self.stage not in (3, "auto") and (wrong := [k for k, on in only_3.items() if on]):
            raise ValueError(
                f"deepspeed.{wrong[0]} needs partitioned weights, which deepspeed.stage={self.stage} does not have; use stage 3"
            )
        if self.stage == 0 and self.offload_optimizer != "none":
            raise ValueError(
                "deepspeed.offload_optimizer moves partitioned states, which deepspeed.stage=0 does not have; use stage 1 to 3"
            )
        if self.offload_optimizer == "nvme" and self.nvme_path is None:
            raise ValueError(
                "deepspeed.offload_optimizer=nvme has no folder to write to; set deepspeed.nvme_path to one on a local disk"
            )
        if self.offload_params != "none" and self.offload_optimizer == "none":
            raise ValueError(
                "deepspeed.offload_params without deepspeed.offload_optimizer would leave the larger part, master weights and "
                "states, on the device; set offload_optimizer too"
            )
        return self


class CheckpointConfig(Section):
    """When to save, what to keep, how to resume."""

    resume: Literal["auto", "never", "required"] = Field(
        default="auto",
        description="auto: continue the newest whole checkpoint of this run folder if there is one.",
    )
    save_every_steps: PositiveInt | None = Field(
        default=None, description="Steps between checkpoints; null: not by steps."
    )
    saves_per_epoch: PositiveInt | None = Field(
        default=None,
        description="Checkpoints in each epoch, evenly spread, the last at its end; null: not by epochs.",
    )
    save_every_minutes: PositiveFloat | None = Field(
        default=30.0, description="Minutes between checkpoints; null: not by time."
    )
    keep_last: PositiveInt = Field(default=2, description="Newest whole checkpoints that stay on disk.")
    keep_best: NonNegativeInt = Field(
        default=0,
        description="Besides them, checkpoints of the lowest validation loss; an evaluation among them saves.",
    )
    optimizer_keep_last: PositiveInt | None = Field(
        default=None,
        description="Only so many of the newest keep the optimizer's state; older ones can be exported, not resumed. null: all.",
    )
    remote: str | None = Field(
        default=None,
        description="URL (fsspec: s3://, gs://, file://) that checkpoints are copied to, and fetched from when the run folder lacks them.",
    )


METRICS = (
    "auto",
    "exact_match",
    "rouge_l",
    "rouge_l_xlingual",
    "token_f1",
    "accuracy",
    "choice",
    "numeric",
    "checks",
)


class EvalConfig(Section):
    """Generation on held-out examples and tasks."""

    max_new_tokens: PositiveInt = 128
    prompts_per_batch: PositiveInt = Field(default=32, description="Prompts generated side by side.")
    max_examples_per_task: PositiveInt = Field(default=50, description="Evaluation examples of each task.")
    metric: str = Field(
        default="rouge_l",
        description=", ".join(METRICS)
        + ", or one of a plugin: what judges an answer (docs/evaluation.md). auto: each task by what its source says or its answers need; "
        "rouge_l: rouge_l_xlingual for tasks whose script needs it.",
    )
    base: bool = Field(
        default=True,
        description="Evaluate the model that training started from beside it. Its answers are kept in data.dir for every run.",
    )
    probes: tuple[ProbeName, ...] = Field(
        default=get_args(ProbeName),
        description="Probes of what was learnt (docs/evaluation.md); each asks the model and its base more.",
    )
    probe_examples_per_task: PositiveInt = Field(
        default=10, description="Examples of each task that probes change."
    )
    general_text: str | None = Field(
        default=None,
        description="Text file, paragraphs between blank lines, on which forgetting is measured; without one, some sentences of ours.",
    )

    @field_validator("metric")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in (known := (*METRICS, *plugins.METRICS)):
            raise ValueError(f"{name!r} is no metric; use one of {', '.join(known)}")
        return name


class WandbConfig(Section):
    """Weights & Biases, on rank 0 only."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto: what WANDB_MODE says, else online with an API key, else disabled."
    )
    project: str = "sft_dist"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
