"""An engine of plain torch, ZeRO off: what checkpoint/ needs of one, without DeepSpeed; and how tests save and look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sft_dist.checkpoint import io as store
from sft_dist.checkpoint.background import Saved, Saver
from sft_dist.config.train import CheckpointConfig, OptimConfig
from sft_dist.core.records import Position
from sft_dist.train.optim import make_optimizer, parameter_groups


class PlainEngine:
    """What checkpoint/ needs of an engine, ZeRO off."""

    device = torch.device("cpu")

    def __init__(self, seed: int = 0, frozen: str | None = None) -> None:
        torch.manual_seed(seed)
        self.module = nn.Module()
        self.module.hf = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
        if frozen:
            self.module.hf.get_parameter(frozen).requires_grad_(False)
        optim = OptimConfig()
        self.optimizer = make_optimizer(parameter_groups(self.module, optim), optim)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.1

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


def at(step: int) -> Position:
    return Position(step=step, epoch=0, epoch_step=step)


def save(engine: PlainEngine, root: Path, step: int, *, losses: Any = None, **keep: int) -> Saved:
    """Save and wait."""
    outcomes: list[Saved] = []
    saver = Saver(
        engine,
        root,
        facts={"plan_hash": 1},
        keep=CheckpointConfig(**{"keep_last": 2, **keep}),
        report=outcomes.append,
        losses=losses,
    )
    saver.begin(at(step), {"losses": [1.5]})
    saver.finish()
    assert saver.begun_at == at(step)
    assert saver.saved_at == (at(step) if outcomes[-1].folder else None)
    return outcomes[-1]


def newest(root: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The checkpoint that would be resumed, and what was passed over and why."""
    bad: list[tuple[str, str]] = []
    found = store.newest(root, lambda path, why: bad.append((path.name, why)))
    return (found.name if found else None), bad


def flip(file: Path) -> None:
    """Flip one bit."""
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
