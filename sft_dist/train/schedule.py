"""Optimizer step -> learning rate, as a closed form. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from sft_dist.config.train import OptimConfig

# After warm-up: (steps since warm-up, steps after warm-up, steps of the final decay) -> where the rate stands between
# its end (0) and its peak (1). Cosine and linear would reach the end one step after the last, so that no step is spent
# on a rate of zero. wsd (arXiv 2404.06395) is constant, then falls linearly over the final decay.
SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "cosine": lambda step, steps, _: 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, steps)))),
    "linear": lambda step, steps, _: 1 - min(1.0, step / max(1, steps)),
    "constant": lambda *_: 1.0,
    "wsd": lambda step, steps, decay: min(1.0, max(0.0, 1 - (step - (steps - decay)) / decay)),
}


def warmup_steps(optim: OptimConfig, *, total_steps: int, tokens_per_step: int) -> int:
    """Return the steps of warm-up: `warmup_steps`, or what `warmup_tokens` fill, or `warmup_share` of all steps."""
    if optim.warmup_steps is not None:
        return optim.warmup_steps
    if optim.warmup_tokens is not None:
        return max(1, math.ceil(optim.warmup_tokens / tokens_per_step))
    return round(optim.warmup_share * total_steps)


def decay_steps(optim: OptimConfig, *, total_steps: int) -> int:
    """Return the steps of the final decay of wsd, at least 1."""
    return max(1, round(optim.decay_share * total_steps) if optim.decay_steps is None else optim.decay_steps)


def lr_at(step: int, optim: OptimConfig, *, total_steps: int, tokens_per_step: int) -> float:
    """Return the learning rate of an optimizer step, whatever came before it.

    Args:
        step: Zero-based.
        optim: Peak, schedule and its lengths.
        total_steps: Optimizer steps of the whole run.
        tokens_per_step: Capacity of a global batch, for `warmup_tokens`.

    Returns:
        A rate that rises linearly, reaches the peak at the last step of warm-up, and ends at `min_lr_share` of it.
    """
    warm = warmup_steps(optim, total_steps=total_steps, tokens_per_step=tokens_per_step)
    if step < warm:
        return optim.lr * (step + 1) / warm
    floor = optim.min_lr_share * optim.lr
    height = SCHEDULES[optim.schedule](
        step - warm, total_steps - warm, decay_steps(optim, total_steps=total_steps)
    )
    return optim.lr if height == 1 else floor + (optim.lr - floor) * height
