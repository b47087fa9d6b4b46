"""One Triton kernel: a chunk of logits -> the loss of each target, and the gradient of the logits in their own place.

Two passes over each row, both in fp32 registers: the first finds the log-sum-exp (a running maximum and sum), the second writes
the gradient over the logits. The plain path in loss.py, its twin, reads and writes an fp32 copy of the logits some ten times.
Imported only where Triton is; its interpreter (TRITON_INTERPRET=1) runs it on a CPU in the tests.

Shapes: C targets of a chunk, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # logits of a row that are in registers at a time
WARPS = 8


@triton.jit
def _capped(x: Any, cap: Any) -> Any:
    """Return cap * tanh(x / cap), by an exponential that cannot overflow."""
    shrunk = tl.exp(-2.0 * tl.abs(x) / cap)
    size = (1.0 - shrunk) / (1.0 + shrunk)
    return cap * tl.where(x < 0, -size, size)


@triton.jit
def _row(
    logits: Any,
    stride: Any,
    targets: Any,
    weights: Any,
    nll: Any,
    objective: Any,
    cap: Any,
    smoothing: Any,
    z: Any,
    V: tl.constexpr,
    DFT: tl.constexpr,
    CAPPED: tl.constexpr,
    GRADIENT: tl.constexpr,
    WIDTH: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    here = logits + row * stride
    target = tl.load(targets + row)
    weight = tl.load(weights + row).to(tl.float32)
    top, total, plain_sum = float("-inf"), 0.0, 0.0
    for first in range(0, V, WIDTH):
        column = first + tl.arange(0, WIDTH)
        inside = column < V
        x = tl.load(here + column, mask=inside, other=0.0).to(tl.float32)
        if CAPPED:
            x = _capped(x, cap)
        plain_sum += tl.sum(tl.where(inside, x, 0.0), 0)
        x = tl.where(inside, x, float("-inf"))
        new_top = tl.maximum(top, tl.max(x, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(x - new_top), 0)
        top = new_top
    lse = top + tl.log(total)
    at_target = tl.load(here + target).to(tl.float32)
    if CAPPED:
        at_target = _capped(at_target, cap)
    loss = lse - at_target
    share = weight * tl.exp(-loss) if DFT else weight
    smoothed = (1.0 - smoothing) * loss + smoothing * (lse - plain_sum / V)
    tl.store(nll + row, loss)
    tl.store(objective + row, share * smoothed + weight * z * lse * lse)
    if GRADIENT:
        mass = share + 2.0 * z * weight * lse
        for first in range(0, V, WIDTH):
            column = first + tl.arange(0, WIDTH)
            inside = column < V
            x = tl.load(here + column, mask=inside, other=0.0).to(tl.float32)
            if CAPPED:
                x = _capped(x, cap)
            d = tl.exp(x - lse) * mass - share * (smoothing / V)
            d += tl.where(column == target, share * (smoothing - 1.0), 0.0)
            if CAPPED:
                d *= 1.0 - (x / cap) * (x / cap)
            tl.store(here + column, d, mask=inside)


def loss_in_place(
    logits_CV: Tensor,
    targets_C: Tensor,
    weights_C: Tensor,
    softcap: float | None,
    *,
    label_smoothing: float,
    z_loss: float,
    dft: bool,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Return (cross-entropy, what is minimised) of each target, fp32; with `gradient`, logits become their gradient.

    Args are those of `loss.weighted_cross_entropy`; the gradient is that of the sum of what is minimised.
    """
    C, V = logits_CV.shape
    nll_C = torch.empty(C, dtype=torch.float32, device=logits_CV.device)
    objective_C = torch.empty_like(nll_C)
    _row[(C,)](
        logits_CV, logits_CV.stride(0), targets_C, weights_C, nll_C, objective_C, softcap or 1.0, label_smoothing, z_loss,
        V=V, DFT=dft, CAPPED=bool(softcap), GRADIENT=gradient, WIDTH=min(BLOCK, triton.next_power_of_2(V)),
        num_warps=WARPS,
    )  # fmt: skip
    return nll_C, objective_C
