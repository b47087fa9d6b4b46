"""Model and `optim` -> parameter groups, each with its share of the learning rate -> torch's optimizer.

A new optimizer is an entry of `OPTIMIZERS` in config/optimizers.py; nothing changes here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sft_dist.config.optimizers import OPTIMIZERS, Rule
from sft_dist.config.train import OptimConfig
from sft_dist.core.errors import UserError
from sft_dist.model.trainable import shape_of

# A parameter of a repeated layer, in the names of Hugging Face models.
LAYER = re.compile(r"\.layers\.(\d+)\.")
SECOND = ".lora_B."  # in the names of the second matrices of adapters


def parameter_groups(module: Any, optim: OptimConfig, *, lr_ratio: float = 1.0) -> list[dict[str, Any]]:
    """Split trainable parameters by weight decay (matrices decay; vectors, that is norms and biases, do not) and rate.

    With `layer_lr_decay` each layer has the rate of the layer above it times that factor (arXiv 1801.06146). What lies
    above the layers has the full rate, embeddings (and a head tied to them) lie below the first.

    Args:
        module: The model.
        optim: Reads name, weight_decay and layer_lr_decay.
        lr_ratio: `lora.lr_ratio`: rate of the second matrices of adapters over that of all else.

    Returns:
        Groups with `lr_scale`, a factor of the scheduled rate; `matrices`, whether the rule for whole matrices updates
        them; `states` and `counts_steps`, which states the optimizer keeps of them.

    Raises:
        UserError: When a rule for matrices would get experts that are one tensor.
    """
    optimizer = OPTIMIZERS[optim.name]
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    layers = {n: int(m[1]) for n, _ in named if (m := LAYER.search(n))}
    depth = max(layers.values(), default=-1) + 1
    groups: dict[tuple[bool, bool, int, bool], list[Any]] = {}
    for name, parameter in named:
        dimensions = len(shape_of(parameter))
        whole = optimizer.matrices is not None and dimensions > 1 and name in layers
        if whole and dimensions > 2:
            raise UserError(
                f"optim.name={optim.name} takes single matrices, and {name} holds those of all experts of a layer in one tensor, so "
                "it would be updated as something that it is not; use optim.name=adamw"
            )
        below = depth - layers[name] if name in layers else depth + 1 if "embed" in name else 0
        below = below if optim.layer_lr_decay < 1 else 0
        key = (dimensions <= 1, whole, below, lr_ratio != 1 and SECOND in name)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if vector else optim.weight_decay,
            "lr_scale": optim.layer_lr_decay**below * (lr_ratio if second else 1.0),
            "matrices": whole,
            "states": (rule := _rule(optim.name, matrices=whole)).states,
            "counts_steps": rule.counts_steps,
        }
        for (vector, whole, below, second), parameters in sorted(groups.items(), key=lambda g: g[0])
    ]


def make_optimizer(groups: Sequence[Mapping[str, Any]], optim: OptimConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `optim.name` for the groups of `parameter_groups`.

    The rate is 0 until the loop sets it: some ZeRO stages run a step with zero gradients to allocate their states, and
    weight decay must not act then.
    """
    parts = []
    for whole in (True, False):
        if members := [dict(g) for g in groups if g["matrices"] == whole]:
            rule = _rule(optim.name, matrices=whole)
            options = {**rule.options, **{key: getattr(optim, key) for key in rule.from_config}}
            parts.append(getattr(torch.optim, rule.torch_class)(members, lr=0.0, **options))
    return parts[0] if len(parts) == 1 else SideBySide(parts)


def _rule(name: str, *, matrices: bool) -> Rule:
    optimizer = OPTIMIZERS[name]
    return optimizer.matrices if matrices and optimizer.matrices else optimizer.rule


class SideBySide(torch.optim.Optimizer):
    """Several optimizers as one, each for its own groups; all states lie in one place."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self._parts = parts
        super().__init__([g for part in parts for g in part.param_groups], {})
        for part in parts:
            part.state = self.state  # the groups are shared already

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all groups."""
        assert closure is None
        for part in self._parts:
            part.step()
