"""CPU kernels for torch's own varlen attention: its wrapper, autograd and fake kernels run in tests as they do on CUDA.

`register` adds them once a process. They do it in the obvious way, in fp32, and check what the CUDA kernel expects of its
arguments. Shapes: T tokens, H query heads, G key-value heads, D head size.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import varlen as of_torch


def _weights(
    q: Tensor, k: Tensor, cu: Tensor, scale: float | None, window: list[int] | None
) -> tuple[Tensor, Tensor]:
    """Return probabilities and log-sum-exp, [H, T, T] and [H, T]."""
    T, H, D = q.shape
    at = torch.arange(T)
    document = torch.bucketize(at, cu[1:].long(), right=True)
    back = at[:, None] - at[None, :]
    seen = (document[:, None] == document[None, :]) & (back >= 0)
    if window and window[0] >= 0:
        seen &= back <= window[0]
    k = k.repeat_interleave(H // k.shape[1], dim=1)
    scores = torch.einsum("thd,shd->hts", q.float(), k.float()) * (scale or D**-0.5)
    scores = scores.masked_fill(~seen, float("-inf"))
    return scores.softmax(dim=-1), scores.logsumexp(dim=-1)


def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int,
    is_causal: bool = False, scale: float | None = None, window_size: list[int] | None = None, *further: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert is_causal == (list(window_size or ()) == [-1, 0])
    assert int(cu_seq_q.diff().max()) <= max_q == max_k
    assert all(t.stride(-1) == 1 for t in (query, key, value))
    p, lse = _weights(query, key, cu_seq_q, scale, window_size)
    v = value.float().repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    out = torch.einsum("hts,shd->thd", p, v).to(query.dtype).contiguous()
    return out, lse, torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor,
    max_q: int, max_k: int, is_causal: bool, rng_state: Tensor, scale: float | None = None, window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    T, H, D = query.shape
    G, c = key.shape[1], scale or D**-0.5
    p, _ = _weights(query, key, cu_seq_q, scale, window_size)
    q, k, v, g = (
        x.float()
        for x in (query, key.repeat_interleave(H // G, 1), value.repeat_interleave(H // G, 1), grad_out)
    )
    ds = p * (torch.einsum("thd,shd->hts", g, v) - (g * out.float()).sum(dim=-1).T[:, :, None]) * c
    dq = torch.einsum("hts,shd->thd", ds, k)
    dk = torch.einsum("hts,thd->shd", ds, q).view(T, G, H // G, D).sum(dim=2)
    dv = torch.einsum("hts,thd->shd", p, g).view(T, G, H // G, D).sum(dim=2)
    return dq.to(query.dtype), dk.to(key.dtype), dv.to(value.dtype)


@cache
def register() -> None:
    """Let `varlen_attn` run on a CPU, forward and backward."""
    of_torch._varlen_attn.register_kernel("cpu")(_forward)
    of_torch._varlen_attn_backward.register_kernel("cpu")(_backward)
