"""The learning rate as a closed form of the step. No torch."""

from __future__ import annotations

import math


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


def warmup_of(warmup: float, warmup_tokens: int | None, tokens_per_step: int) -> float:
    """Return the warm-up in steps or a share of them: `warmup`, or the steps that `warmup_tokens` fill."""
    return warmup if warmup_tokens is None else max(1, math.ceil(warmup_tokens / tokens_per_step))
