"""A sweep: what is searched, how, and by which figure."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from sft_dist.config.base import Section


class SweepConfig(Section):
    """What `sft-dist sweep` tries. Parameters are given as overrides, `optim.lr=1e-5,2e-5`, or in `space`."""

    name: str = Field(default="sweep", description="Folder of the sweep under run_root; trials lie in it.")
    method: Literal["grid", "optuna"] = Field(
        default="grid",
        description="grid: every combination. optuna: `trials` points, chosen by what earlier ones gave (TPE).",
    )
    space: dict[str, str] = Field(
        default_factory=dict,
        description="Config key -> values as on the command line: `choice(1,2)`, `range(1,5)`, and for optuna "
        "`interval(0.0,0.1)`, `tag(log,interval(1e-6,1e-4))`, `int(interval(1,8))`.",
    )
    trials: PositiveInt = Field(default=20, description="Trials of an optuna search.")
    metric: Literal["eval_loss", "train_loss", "validation", "tokens_per_s"] = Field(
        default="eval_loss",
        description="Figure that ranks trials: losses are minimised, the others maximised. eval_loss is the loss of the validation set; "
        "validation is its macro score by eval.metric, so every trial is exported and evaluated. What judges ranks nothing.",
    )
    pruning: Literal["none", "median", "asha"] = Field(
        default="none",
        description="optuna: stop trials whose validation loss lags behind: behind the median of earlier trials at the same "
        "step, or outside the better half at successive halvings (ASHA).",
    )
    prune_after: float = Field(
        default=0.2, gt=0, lt=1, description="Share of a trial's steps before which it is not pruned."
    )
    max_parallel: PositiveInt = Field(
        default=1, description="Trials side by side: processes here, elements of the array on Slurm."
    )
    retries: NonNegativeInt = Field(default=1, description="How often a failed trial is begun again.")

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,-]{0,127}", value):
            raise ValueError(
                f"{value[:60]!r} cannot be a folder name; use up to 128 letters, digits, '.', '_', '=', ',' and '-'"
            )
        return value

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        if self.pruning != "none" and self.method != "optuna":
            raise ValueError(
                f"sweep.pruning={self.pruning} needs method=optuna, for every point of a grid is run to its end; use sweep.method=optuna or sweep.pruning=none"
            )
        if self.pruning != "none" and self.metric != "eval_loss":
            raise ValueError(
                f"sweep.pruning={self.pruning} compares validation losses during training, but sweep.metric={self.metric} is known at the end "
                "only; use sweep.metric=eval_loss or sweep.pruning=none"
            )
        return self
