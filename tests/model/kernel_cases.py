"""The loss by its Triton kernel beside the plain path, as few cases as show every branch (the interpreter is slow); run with TRITON_INTERPRET=1: `kernel_cases.py OUT.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from test_loss import OPTIONS
from torch import Tensor

from sft_dist.model import loss, loss_kernel

loss_kernel.BLOCK = 128  # several blocks a row, the last one not full
loss.CHUNK_LOGITS["cpu"] = 300 * 3


def case(dtype: torch.dtype, softcap: float | None, name: str) -> dict[str, float]:
    torch.manual_seed(0)
    h = torch.randn(4, 16).to(dtype)
    w = (torch.randn(300, 16) * 0.5).to(dtype)
    targets, weights = torch.randint(300, (4,)), torch.rand(4)

    def run(kernel: str) -> list[Tensor]:
        leaves = [h.clone().requires_grad_(), w.clone().requires_grad_()]
        options = OPTIONS[name].model_copy(update={"kernel": kernel})
        total, nll = loss.weighted_cross_entropy(*leaves, targets, weights, softcap, options)
        (total * 0.5).backward()
        with torch.no_grad():
            held = loss.weighted_cross_entropy(*leaves, targets, weights, softcap, options)[1]
        return [total.detach(), nll, held, *(leaf.grad for leaf in leaves)]

    parts = zip(("total", "nll", "held", "hidden", "weight"), run("triton"), run("plain"), strict=True)
    return {part: float((a.float() - b.float()).norm() / b.float().norm()) for part, a, b in parts}


if __name__ == "__main__":
    found = {
        f"{dtype} {softcap} {name}": case(dtype, softcap, name)
        for dtype, names in ((torch.float32, ("plain", "all")), (torch.bfloat16, ("all",)))
        for softcap in (None, 5.0)
        for name in names
    }
    Path(sys.argv[1]).write_text(json.dumps(found))
