"""Which parameters get which share of the learning rate, and the optimizers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sft_dist.core.errors import UserError
from sft_dist.model.trainable import shape_of

# A parameter of a repeated layer, in the names of Hugging Face models.
LAYER = re.compile(r"\.layers\.(\d+)\.")


def parameter_groups(
    module: Any, weight_decay: float, *, layer_lr_decay: float = 1.0, muon: bool = False
) -> list[dict[str, Any]]:
    """Split trainable parameters: matrices decay, vectors (norms, biases) do not.

    Args:
        module: The model.
        weight_decay: Of matrices.
        layer_lr_decay: Learning rate of a layer over that of the layer above it (arXiv 1801.06146). What lies above
            the layers has the full rate, embeddings (and a head tied to them) lie below the first.
        muon: Give matrices of layers to Muon: `use_muon` of their group.

    Returns:
        Groups with `lr_scale`, a factor of the scheduled rate.

    Raises:
        UserError: When Muon would get experts that are one tensor.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    layers = {n: int(m[1]) for n, _ in named if (m := LAYER.search(n))}
    depth = max(layers.values(), default=-1) + 1
    groups: dict[tuple[bool, bool, int], list[Any]] = {}
    for name, parameter in named:
        matrix = len(shape_of(parameter)) > 1
        if muon and name in layers and len(shape_of(parameter)) > 2:
            raise UserError(
                f"optim.name=muon takes single matrices, and {name} holds those of all experts of a layer in one tensor, so it would be "
                "orthogonalised as something that it is not; use optim.name=adamw"
            )
        below = depth - layers[name] if name in layers else depth + 1 if "embed" in name else 0
        key = (not matrix, muon and matrix and name in layers, below if layer_lr_decay < 1 else 0)
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if vector else weight_decay,
            "lr_scale": layer_lr_decay**below,
            "use_muon": use_muon,
        }
        for (vector, use_muon, below), parameters in sorted(groups.items(), key=lambda g: g[0])
    ]


def make_optimizer(
    groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """Return AdamW, fused on every device, or Muon and AdamW as one where a group says `use_muon`.

    The rate is 0 until the loop sets it: some ZeRO stages run a step with zero gradients to allocate their states, and
    weight decay must not act then.
    """
    if any(g.get("use_muon") for g in groups):
        return MuonAndAdamW(groups, betas=betas, eps=eps)
    return torch.optim.AdamW([dict(g) for g in groups], lr=0.0, betas=betas, eps=eps, fused=True)


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon (momentum, then orthogonalised: Newton-Schulz) for some groups and AdamW for the others.

    Muon's update is scaled to the size of AdamW's (arXiv 2502.16982), so one learning rate and weight decay serve both.
    """

    def __init__(
        self, groups: Sequence[Mapping[str, Any]], *, betas: tuple[float, float], eps: float
    ) -> None:
        muon = [dict(g) for g in groups if g["use_muon"]]
        rest = [dict(g) for g in groups if not g["use_muon"]]
        self._parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(muon, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
        ]
        if rest:
            self._parts.append(torch.optim.AdamW(rest, lr=0.0, betas=betas, eps=eps, fused=True))
        super().__init__([g for part in self._parts for g in part.param_groups], {})
        for part in self._parts:
            part.state = self.state  # one home for all states; the groups are shared already

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all groups."""
        assert closure is None
        for part in self._parts:
            part.step()
