"""Gradients under ZeRO-3 beside those of the same model whole, on the ranks of partition_cases.py.

The ranks have different numbers of documents, other ones in each of three steps:
DeepSpeed records the order of modules in the second and relies on it from the third on.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import deepspeed
import model_cases
import reference_kernels
import tiny_docs
import torch
import torch.distributed as dist
from deepspeed.utils import safe_get_full_grad
from loading import load

from sft_dist.config.model import LoraConfig
from sft_dist.model import isolation_check
from sft_dist.model.packed import to_inputs

STEPS = 3
ROUNDING = 1e-6  # of a gradient whose norm is next to nothing
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "recomputed": {"gradient_checkpointing": True},
    "lora": {"lora": LoraConfig(rank=4, alpha=8.0)},
    "lora-recomputed": {"lora": LoraConfig(rank=4, alpha=8.0), "gradient_checkpointing": True},
    "experts": {
        "lora": LoraConfig(rank=2, target_parameters=("experts.gate_up_proj", "experts.down_proj")),
        "gradient_checkpointing": True,
    },
    "frozen": {"freeze": ("embeddings", "layers[:1]")},  # nothing below the second layer has a gradient
}


def rows(step: int) -> list[Any]:
    """One row for each rank: 3 documents and 8, the other way round in the next step."""
    docs = tiny_docs.documents(step)
    cut = 3 if step % 2 else 8
    return [tiny_docs.pack(part, list(range(len(part)))) for part in (docs[:cut], docs[cut:11])]


def gradients(module: Any, batch: Any) -> dict[str, torch.Tensor]:
    module.zero_grad()
    module(*to_inputs(batch, "cpu"))[0].backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def off(ours: torch.Tensor, theirs: torch.Tensor | None) -> float:
    if theirs is None:
        theirs = torch.zeros_like(ours)
    return max(0.0, float((ours - theirs).norm()) - ROUNDING) / max(float(theirs.norm()), 1e-30)


def settle(engine: Any, folder: Path) -> None:
    """Let layers with state see whole rows: first kernels that raise in the middle of a forward pass, then those that do not."""
    module = engine.module

    def fault() -> str:
        def loss_of(batch: Any) -> torch.Tensor:
            return engine(*to_inputs(batch, "cpu"))[1]

        return isolation_check.kernel_fault(loss_of, module.borders, tiny_docs.VOCAB, 64, torch.float32)

    right, reference_kernels._convolve = reference_kernels._convolve, None
    assert "TypeError" in fault(), folder
    reference_kernels._convolve = right
    assert fault() == "", folder
    module.borders.by_kernel = True


def largest_difference(folder: Path, mode: str) -> tuple[float, str]:
    """Return the largest relative difference of a parameter's gradient, and where it is.

    A mode that ends in `-kernels` runs the partitioned model on whole rows, by reference kernels that honour the borders of documents.
    """
    kernels = mode.endswith("-kernels")
    mode = mode.removesuffix("-kernels")
    options = {"seed": 3, **MODES[mode]}
    whole = load(folder, **options).module.train()
    config = model_cases.ds_config()
    with reference_kernels.installed() if kernels else nullcontext():
        module = load(folder, zero_config=config, **options).module
    trained = [p for p in module.parameters() if p.requires_grad]
    with torch.no_grad():  # the half of an adapter that starts at zero would hide the other
        for name, p in whole.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(len(name)))
                with deepspeed.zero.GatheredParameters(
                    [ours := dict(module.named_parameters())[name]], modifier_rank=0
                ):
                    ours.copy_(p)
    engine = deepspeed.initialize(model=module, optimizer=torch.optim.SGD(trained, lr=0.0), config=config)[0]
    if kernels:
        engine.eval()
        settle(engine, folder)
    engine.train()
    worst = (0.0, "")
    for step in range(STEPS):
        batches = rows(step)
        found = [gradients(whole, b) for b in batches]
        loss, _ = engine(*to_inputs(batches[dist.get_rank()], "cpu"))
        engine.backward(loss, scale_wrt_gas=False)
        for name, p in module.named_parameters():
            if p.requires_grad:
                ours = safe_get_full_grad(p)
                theirs = sum(g[name] for g in found if name in g) / len(found)
                difference = off(ours, theirs if isinstance(theirs, torch.Tensor) else None)
                worst = max(worst, (difference, f"{name} in step {step}"))
        engine.step()
    engine.destroy()
    return worst
