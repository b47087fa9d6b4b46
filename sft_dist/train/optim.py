"""The learning rate as a closed form of the step, and which parameters decay."""

from __future__ import annotations

import math
from typing import Any


def steps_of(amount: float, total_steps: int) -> int:
    """Return a number of steps: below 1 it is a share of all steps, else the number itself."""
    return round(amount * total_steps) if amount < 1 else int(amount)


def lr_at(
    step: int, *, total_steps: int, peak: float, schedule: str, warmup: float, decay: float, min_share: float
) -> float:
    """Return the learning rate of optimizer step `step` (zero-based), whatever came before it.

    Warm-up is linear and reaches the peak at its last step. Cosine and linear would reach `min_share * peak` one step
    after the last, so that no step is spent on a rate of zero. wsd is constant, then falls linearly over the last
    `decay` steps (arXiv 2404.06395).
    """
    warm = steps_of(warmup, total_steps)
    if step < warm:
        return peak * (step + 1) / warm
    floor = min_share * peak
    if schedule == "constant":
        return peak
    if schedule == "wsd":
        tail = max(1, steps_of(decay, total_steps))
        into = step - (total_steps - tail)
        return peak if into < 0 else floor + (peak - floor) * max(0.0, 1 - into / tail)
    progress = min(1.0, (step - warm) / max(1, total_steps - warm))
    if schedule == "linear":
        return floor + (peak - floor) * (1 - progress)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def parameter_groups(module: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Split trainable parameters: matrices decay, vectors (norms, biases) do not."""
    matrices: list[Any] = []
    vectors: list[Any] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            (matrices if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else vectors).append(
                parameter
            )
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [g for g in groups if g["params"]]
