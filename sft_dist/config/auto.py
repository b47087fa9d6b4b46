"""The four keys that a run decides for itself: which they are, and a config with them decided. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sft_dist.config.root import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Values of the four keys."""

    stage: int
    gradient_checkpointing: bool | int | str
    compile: bool
    micro_rows: int


# What is supposed where nothing is known of model or device: what a large model on many devices gets.
SUPPOSED = Choice(stage=3, gradient_checkpointing=True, compile=False, micro_rows=1)


def asked(config: RunConfig) -> dict[str, Any]:
    """Return what the config says of the four keys."""
    return {
        "stage": config.deepspeed.stage,
        "gradient_checkpointing": config.model.gradient_checkpointing,
        "compile": config.model.compile,
        "micro_rows": config.train.micro_rows,
    }


def is_decided(config: RunConfig) -> bool:
    """Say whether none of the four is left to the run."""
    return "auto" not in asked(config).values()


def decided(config: RunConfig, choice: Choice) -> RunConfig:
    """Return the config with `choice` in the place of every `auto`.

    Raises:
        pydantic.ValidationError: When that contradicts what the config says elsewhere.
    """
    if is_decided(config):
        return config
    values = config.model_dump()
    for section, key in (
        ("deepspeed", "stage"),
        ("model", "gradient_checkpointing"),
        ("model", "compile"),
        ("train", "micro_rows"),
    ):
        if values[section][key] == "auto":
            values[section][key] = getattr(choice, key)
    return RunConfig.model_validate(values)


def supposed(config: RunConfig) -> RunConfig:
    """Return the config with `SUPPOSED` wherever it may be, for figures that hardly depend on it."""
    if is_decided(config):
        return config
    from pydantic import ValidationError

    for stage in (SUPPOSED.stage, 2, 1, 0):
        try:
            return decided(
                config,
                Choice(
                    stage=stage, gradient_checkpointing=True, compile=False, micro_rows=SUPPOSED.micro_rows
                ),
            )
        except ValidationError as error:
            last = error
    raise last
