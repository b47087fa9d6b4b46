"""A step of a mixture of experts with the load-balance loss, through the loop's own functions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import families
import tiny_docs
import torch
import torch.distributed as dist
from case import Case

from sft_dist.model.packed import upload
from sft_dist.model.router_balance import RouterBalance
from sft_dist.train import loop
from sft_dist.train.metrics import Meter

COEFFICIENT = 0.5  # so large that a mistake in it shows


def save_model(folder: Path) -> Path:
    """A tiny Qwen3-MoE; its two layers have four experts each, of which a token takes two."""
    return families.save("qwen3_moe", folder)


@dataclass(frozen=True, kw_only=True)
class Balance(Case):
    """The reduced gradient of global batch 0, in a file, and the routers' load."""

    stage: int
    micro_steps: int
    checkpointing: bool = False

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        world = dist.get_world_size()
        folder = scratch / f"routed-{world}"
        if dist.get_rank() == 0 and not folder.is_dir():
            save_model(folder)
        dist.barrier()

        def watch(module: Any) -> None:
            module.balance = RouterBalance(module.hf, COEFFICIENT)

        engine = cases.engine_of(
            str(folder), stage=self.stage, checkpointing=self.checkpointing, change=watch
        )
        micro = tiny_docs.deal(0, world, self.micro_steps)
        meter = Meter(["even", "odd"], engine.device)
        batches = [upload(b, engine.device, meter.codes(b)) for b in cases.own(micro, 1)]
        weight = cases.plan_of(0, micro).target_weight
        loop.begin_step(engine, batches, weight, seed=1)
        for batch in batches:
            loop.micro_step(engine, batch, world / weight, meter)
        load = engine.module.balance.loads()
        g = cases.reduced(engine)
        file = scratch / f"balance-w{world}-s{self.stage}-m{self.micro_steps}-{self.checkpointing}.pt"
        if dist.get_rank() == 0:
            torch.save(g, file)
        return {"file": str(file), "load": load}
