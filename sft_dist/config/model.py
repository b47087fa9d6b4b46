"""The model that training starts from, and what of it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import PurePath
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from sft_dist.config.base import RESUMABLE, Section


class ShapeConfig(Section):
    """A Llama-type model to train from scratch."""

    hidden_size: int = Field(default=256, ge=1, le=1 << 20)
    intermediate_size: int = Field(default=688, ge=1, le=1 << 22)
    layers: int = Field(default=6, ge=1, le=10_000)
    heads: int = Field(default=4, ge=1, le=1 << 16)
    kv_heads: PositiveInt | None = Field(default=None, description="Key-value heads; null: as many as heads.")
    max_position_embeddings: PositiveInt = 4096
    rope_theta: PositiveFloat = 10000.0
    tie_word_embeddings: bool = True
    initializer_range: float = Field(default=0.02, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> ShapeConfig:
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of heads={self.heads}; change one of them"
            )
        if self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} with heads={self.heads} makes heads of {self.hidden_size // self.heads}, and rotary "
                "positions turn pairs, so the size of a head must be even; change one of them"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}; change one of them"
            )
        return self


class RopeScalingConfig(Section):
    """Longer contexts than the model was made for: its rotary frequencies are rescaled, in training and export."""

    type: Literal["yarn", "linear"] = Field(
        default="yarn", description="yarn (arXiv 2309.00071) or linear (position interpolation)."
    )
    factor: float = Field(gt=1, description="New limit over the model's own max_position_embeddings.")


class ModelConfig(Section):
    """The model that training starts from."""

    path: str | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="Local folder or hub id of a causal language model.",
    )
    from_run: str | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="Or: a run folder; training goes on from its export, with the same template, and the card and the evaluation know what it was trained on.",
    )
    shape: ShapeConfig | None = Field(default=None, description="Or: train this shape from scratch.")
    revision: str | None = Field(
        json_schema_extra=RESUMABLE, default=None, description="Hub revision (a commit hash pins it)."
    )
    tokenizer: str | None = Field(
        default=None, description="Folder, tokenizer.json or hub id; null: the model's own."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="Of weights in forward and backward; masters are fp32."
    )
    attention: Literal["auto", "flash", "varlen", "flex", "sdpa_per_doc", "sdpa_dense"] = Field(
        json_schema_extra=RESUMABLE,
        default="auto",
        description="Packed attention backend; auto takes the fastest that is present and right.",
    )
    recurrent: Literal["auto", "kernel", "per_document"] = Field(
        json_schema_extra=RESUMABLE,
        default="auto",
        description="Layers with state (linear attention, Mamba, short convolutions) on packed rows: kernel runs them on the whole row and tells their kernels where documents begin; per_document runs each document alone; auto: kernel where it is installed and passes the check before the first step, else per_document.",
    )
    gradient_checkpointing: bool | PositiveInt | Literal["selective", "auto"] = Field(
        json_schema_extra=RESUMABLE,
        default="auto",
        description="Recompute activations in the backward pass: of every layer, of every k-th, of none (false), or all but attention and every second matrix product (selective, ZeRO stage 0 to 2); auto: as few as fit, by the estimate.",
    )
    offload_activations: bool = Field(
        json_schema_extra=RESUMABLE,
        default=False,
        description="Keep the inputs of recomputed layers in host memory (GPU only).",
    )
    mlp_tiles: PositiveInt = Field(
        json_schema_extra=RESUMABLE,
        default=1,
        description="Run feed-forward layers on this many slices of the tokens, one after the other: less memory, some recomputation.",
    )
    compile: bool | Literal["auto"] = Field(
        json_schema_extra=RESUMABLE,
        default="auto",
        description="torch.compile of each layer: faster, after minutes of compiling; auto: on a GPU, where Triton is there.",
    )
    trust_remote_code: bool = Field(default=False, description="Run model code from the hub.")
    trainable: tuple[str, ...] = Field(
        default=(),
        description="Train these parts only: embeddings, head, layers[a:b], or globs over parameter names; none: all.",
    )
    freeze: tuple[str, ...] = Field(
        default=(), description="Parts that stay as they are, named as in trainable; taken after it."
    )
    vocab_multiple: PositiveInt | None = Field(
        default=None,
        description="Add embedding rows up to a multiple of this that holds every token of the tokenizer; null: no rows are added.",
    )
    rope_scaling: RopeScalingConfig | None = Field(
        default=None, description="Train beyond the model's own context; null: its own positions."
    )

    @model_validator(mode="before")
    @classmethod
    def _start_of_run(cls, values: Any) -> Any:
        """Fill in the path of a run's export, so that everything behind the config knows one place to start from."""
        run = values.get("from_run") if isinstance(values, dict) else None
        if isinstance(run, str) and values.get("path") is None:
            return {**values, "path": str(PurePath(run) / "export")}
        return values

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.from_run is not None:
            wrong = {
                "model.path": self.path is None or PurePath(self.path) != PurePath(self.from_run) / "export",
                "model.shape": self.shape is not None,
                "model.tokenizer": self.tokenizer is not None,
            }
            if other := [key for key, is_set in wrong.items() if is_set]:
                raise ValueError(
                    f"model.from_run starts from the export of that run with its tokenizer, and {other[0]} is set as well, so it is unclear "
                    f"what training starts from; set {other[0]} to null"
                )
        if self.path is not None and self.shape is not None:
            raise ValueError(
                "model.path and model.shape are both set, so it is unclear what training starts from; set one to null"
            )
        if self.offload_activations and not self.gradient_checkpointing:
            raise ValueError(
                "model.offload_activations moves the inputs of recomputed layers, but model.gradient_checkpointing=false "
                "recomputes none; set gradient_checkpointing to true"
            )
        return self


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685) on a frozen base; by peft."""

    rank: PositiveInt = 16
    alpha: PositiveFloat = Field(default=32.0, description="The update is scaled by alpha / rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Of the input of an adapter.")
    target_modules: tuple[str, ...] = Field(
        default=(),
        description="Names of Linear modules, such as q_proj, or globs over their names in the decoder, such as layers.[0-7].self_attn.*; none: every Linear of the decoder.",
    )
    adapter: str | None = Field(
        default=None,
        description="Folder of an adapter (peft) of the same rank, alpha and targets that training goes on from; null: new ones.",
    )
    target_parameters: tuple[str, ...] = Field(
        default=(),
        description="Ends of the names of weights that are no Linear, adapted beside target_modules: experts in one tensor, such as mlp.experts.gate_up_proj.",
    )
    modules_to_save: tuple[str, ...] = Field(
        default=(), description="Names of modules that are trained whole, such as embed_tokens or lm_head."
    )
    dora: bool = Field(
        default=False,
        description="Magnitude and direction apart (DoRA, arXiv 2402.09353): slower, often better.",
    )
    rslora: bool = Field(default=False, description="Scale by alpha / sqrt(rank) (arXiv 2312.03732).")
    lr_ratio: PositiveFloat = Field(
        default=1.0,
        description="Learning rate of an adapter's second matrix, which begins at zero, over that of its first (LoRA+, arXiv 2402.12354; 16 is usual).",
    )
    quantize_base: Literal["nf4"] | None = Field(
        default=None,
        description="Hold the frozen base in 4 bits (QLoRA): CUDA, bitsandbytes, ZeRO stage 1 or 2.",
    )
    export: Literal["merged", "adapter"] = Field(
        json_schema_extra=RESUMABLE,
        default="merged",
        description="merged: a whole model; adapter: a peft folder to put on the base.",
    )

    @model_validator(mode="after")
    def _check(self) -> LoraConfig:
        unfit = [n for n in ("dora", "dropout", "quantize_base") if getattr(self, n)]
        if self.target_parameters and unfit:
            raise ValueError(
                f"lora.target_parameters is set with lora.{unfit[0]}, which peft has for Linear modules only; unset one of them"
            )
        return self


def targets(entry: str, names: Iterable[str]) -> list[str]:
    """Return what an entry of lora.target_modules adapts, as it is matched against the end of a module's name.

    Args:
        entry: The last part of a name, or a glob over whole names.
        names: Of the Linear modules, below the decoder, such as layers.0.self_attn.q_proj.
    """
    if any(sign in entry for sign in "*?["):
        return [n for n in names if fnmatchcase(n, entry)]
    return [entry] if any(n.rpartition(".")[2] == entry for n in names) else []
