"""The optimizers: a table of what each is made of and which states it keeps. No torch.

One entry in `OPTIMIZERS` adds one. The entry is read by the config (names, what fits), train/optim.py (makes it),
checkpoint/slices.py (its states) and cluster/estimate (their bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FP32 = 4  # bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """How the weights of a parameter group are updated.

    Attributes:
        torch_class: Name of a class in torch.optim.
        states: Its state tensors with one fp32 element a weight. Checkpoints cut and restore them like the weights.
        counts_steps: Whether it keeps the number of updates as a tensor `step`.
        from_config: Its arguments that come from the section `optim`.
        options: Its other arguments.
    """

    torch_class: str
    states: tuple[str, ...]
    counts_steps: bool = False
    from_config: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """An optimizer as the config names it.

    Attributes:
        about: What a user reads of it.
        rule: Of all weights, or of those that `matrices` leaves.
        matrices: Of the matrices of layers. It needs whole ones, and ZeRO cuts them: stage 0 only.
    """

    about: str
    rule: Rule
    matrices: Rule | None = None

    @property
    def state_bytes(self) -> int:
        """Bytes of the states of one weight, at most."""
        return FP32 * max(len(r.states) for r in (self.rule, self.matrices) if r is not None)


# fused on every device: the CPU has a fused kernel too
ADAMW = Rule(
    torch_class="AdamW",
    states=("exp_avg", "exp_avg_sq"),
    counts_steps=True,
    from_config=("betas", "eps"),
    options={"fused": True},
)

OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(about="two moments a weight", rule=ADAMW),
    "muon": Optimizer(
        about="ZeRO stage 0: orthogonalised momentum for the matrices of the layers, adamw for the rest",
        rule=ADAMW,
        # momentum, then Newton-Schulz; the update has the size of AdamW's (arXiv 2502.16982), so one rate serves both
        matrices=Rule(
            torch_class="Muon",
            states=("momentum_buffer",),
            options={"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"},
        ),
    ),
}

# Optimizers that are asked for elsewhere, and why they are not here.
ABSENT = {
    "adamw_8bit": "its states have one scale for 256 elements of a rank's partition, and a checkpoint that any number of "
    "ranks can read cannot be cut there; use optim.name=adamw with deepspeed.offload_optimizer=cpu to save the same memory",
    "schedule_free": "it evaluates and exports other weights than it trains, and ZeRO keeps the two apart in no public way; "
    "use optim.schedule=wsd or constant, with optim.ema_decay for averaged weights",
}
