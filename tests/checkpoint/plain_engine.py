"""An engine of plain torch, ZeRO off: what checkpoint/ needs of one, without DeepSpeed."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class PlainEngine:
    """What checkpoint/ needs of an engine, ZeRO off."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.module = nn.Module()
        self.module.hf = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)

    def zero_optimization_stage(self) -> int:
        return 0

    def step(self) -> None:
        self.module.hf(torch.ones(3)).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state(self) -> dict[str, torch.Tensor]:
        out = {n: p.detach().clone() for n, p in self.module.named_parameters()}
        for i, s in enumerate(self.optimizer.state.values()):
            out |= {f"{i}.{k}": torch.as_tensor(v).clone() for k, v in s.items()}
        return out


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
