"""The kernels of layers with state, in plain torch, a token at a time: every one honours its borders as the real one does.

Names and arguments are those of the packages (tests/helpers/kernel_signatures.json); what a real kernel asks of its arguments is asserted.
`installed` puts them into the table of the fast path, for a CPU.

Shapes: T tokens, H heads, K size of keys, V size of values, C channels, W width, P size of a head, N size of the state, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn import functional as F

from sft_dist.model import recurrent_kernels

LEAKS: set[str] = set()
CALLED: list[str] = []


def _begins(cu_seqlens: Tensor | None, tokens: int) -> set[int]:
    """The tokens at which state is empty."""
    if cu_seqlens is None or "state" in LEAKS:
        return {0}
    assert cu_seqlens.dtype in (torch.int32, torch.int64)
    assert cu_seqlens[0] == 0
    assert cu_seqlens[-1] == tokens
    return set(cu_seqlens[:-1].tolist())


def _of_index(seq_idx: Tensor | None, tokens: int) -> Tensor | None:
    if seq_idx is None:
        return None
    assert seq_idx.dtype == torch.int32
    assert seq_idx.shape == (1, tokens)
    starts = torch.cat([torch.ones(1, dtype=torch.bool), seq_idx[0].diff() != 0]).nonzero()[:, 0]
    return torch.cat([starts, torch.tensor([tokens])])


def _delta(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor, scale: float | None, l2norm: bool, begins: set[int]
) -> Tensor:  # fmt: skip
    """The delta rule, in float64; `decay` is the logarithm, [1, T, H, 1 or K]."""
    dtype = v.dtype
    q, k, v, decay, beta = (x.double() for x in (q, k, v, decay, beta))
    decay = decay.exp()
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], dim=2) for x in (q, k))
    if l2norm:
        q, k = (x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    out, S = [], q.new_zeros(())
    for t in range(q.shape[1]):
        if t in begins:
            S = q.new_zeros(v.shape[2], k.shape[3], v.shape[3])
        S = S * decay[0, t, :, :, None]
        new = (v[0, t] - torch.einsum("hkv,hk->hv", S, k[0, t])) * beta[0, t, :, None]
        S = S + k[0, t, :, :, None] * new[:, None]
        out.append(torch.einsum("hkv,hk->hv", S, q[0, t]) * (scale or k.shape[3] ** -0.5))
    return torch.stack(out)[None].to(dtype)


def chunk_gated_delta_rule(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, state_v_first=False, cu_seqlens=None, cu_seqlens_cpu=None,
    chunk_indices=None, cp_context=None, **kwargs: Any,
):  # fmt: skip
    CALLED.append("chunk_gated_delta_rule")
    assert q.shape[0] == 1
    assert not output_final_state
    assert not kwargs
    begins = _begins(cu_seqlens, q.shape[1])
    return _delta(q, k, v, g[..., None], beta, scale, use_qk_l2norm_in_kernel, begins), None


def chunk_kda(
    q, k, v, g, beta, scale=None, initial_state=None, output_final_state=False, use_qk_l2norm_in_kernel=False,
    use_gate_in_kernel=False, use_beta_sigmoid_in_kernel=False, allow_neg_eigval=False, safe_gate=False, lower_bound=None,
    disable_recompute=False, return_intermediate_states=False, state_v_first=False, cu_seqlens=None, cu_seqlens_cpu=None,
    cp_context=None, use_graph=False, max_num_seqs=None, **kwargs: Any,
):  # fmt: skip
    CALLED.append("chunk_kda")
    assert q.shape[0] == 1
    assert not output_final_state
    assert not kwargs
    begins = _begins(cu_seqlens, q.shape[1])
    return _delta(q, k, v, g, beta, scale, use_qk_l2norm_in_kernel, begins), None


def _convolve(
    x_CT: Tensor, weight_CW: Tensor, bias: Tensor | None, activation: str | None, cu: Tensor | None
) -> Tensor:
    assert activation in (None, "silu", "swish")
    T, W = x_CT.shape[1], weight_CW.shape[1]
    begins = torch.tensor(sorted(_begins(cu, T) if "convolution" not in LEAKS else {0}))
    first_T = begins[torch.bucketize(torch.arange(T), begins, right=True) - 1]
    out = x_CT * weight_CW[:, -1:]
    for back in range(1, min(W, T)):
        seen = torch.arange(T) - back >= first_T
        out = out + F.pad(x_CT, (back, 0))[:, :T] * weight_CW[:, W - 1 - back, None] * seen
    out = out if bias is None else out + bias[:, None]
    return out if activation is None else F.silu(out)


def causal_conv1d_fn(
    x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, final_states_out=None, activation=None
):  # fmt: skip
    CALLED.append("causal_conv1d_fn")
    assert x.shape[0] == 1
    assert seq_idx is None or x.stride(1) == 1 or x.shape[2] == 1
    return _convolve(x[0], weight, bias, activation, _of_index(seq_idx, x.shape[2]))[None]


def causal_conv1d(
    x, weight=None, bias=None, residual=None, initial_state=None, output_final_state=False, activation=None, backend="triton",
    cu_seqlens=None, cu_seqlens_cpu=None, chunk_indices=None, cp_context=None, **kwargs: Any,
):  # fmt: skip
    CALLED.append("causal_conv1d")
    assert x.shape[0] == 1
    assert not kwargs
    return _convolve(x[0].T, weight, bias, activation, cu_seqlens).T[None], None


def _scan(x, dt, A, B, C, D, dt_bias, softplus, limit, cu):
    """x [1, T, H, P], dt [1, T, H], A [H], B and C [1, T, G, N] -> [1, T, H, P]."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = (F.softplus(dt) if softplus else dt).clamp(*limit)
    B, C = (y.repeat_interleave(x.shape[2] // y.shape[2], dim=2) for y in (B, C))
    begins, out, h = _begins(cu, x.shape[1]), [], x.new_zeros(())
    for t in range(x.shape[1]):
        if t in begins:
            h = x.new_zeros(x.shape[2], x.shape[3], B.shape[3])
        h = (
            h * (A * dt[0, t]).exp()[:, None, None]
            + (dt[0, t, :, None] * x[0, t])[..., None] * B[0, t, :, None]
        )
        out.append((h * C[0, t, :, None]).sum(-1))
    return torch.stack(out)[None] + (0 if D is None else x * D[:, None])


def mamba_chunk_scan_combined(
    x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None, dt_softplus=False,
    dt_limit=(0.0, float("inf")), return_final_states=False, return_varlen_states=False,
):  # fmt: skip
    CALLED.append("mamba_chunk_scan_combined")
    assert z is None
    assert initial_states is None
    assert not return_final_states
    assert x.shape[0] == 1
    return _scan(x, dt, A, B, C, D, dt_bias, dt_softplus, dt_limit, _of_index(seq_idx, x.shape[1]))


def mamba_split_conv1d_scan_combined(
    zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states=None, seq_idx=None, dt_limit=(0.0, float("inf")),
    return_final_states=False, activation="silu", rmsnorm_weight=None, rmsnorm_eps=1e-6, outproj_weight=None, outproj_bias=None,
    headdim=None, ngroups=1, norm_before_gate=True,
):  # fmt: skip
    CALLED.append("mamba_split_conv1d_scan_combined")
    assert initial_states is None
    assert not return_final_states
    assert not norm_before_gate
    assert zxbcdt.shape[0] == 1
    T, H = zxbcdt.shape[1], len(D)
    inner, cu = H * headdim, _of_index(seq_idx, zxbcdt.shape[1])
    z, xBC, dt = zxbcdt.split([inner, conv1d_weight.shape[0], H], dim=-1)
    xBC = _convolve(xBC[0].T, conv1d_weight, conv1d_bias, activation, cu).T[None]
    x, B, C = xBC.split([inner, *[(xBC.shape[-1] - inner) // 2] * 2], dim=-1)
    B, C = (y.view(1, T, ngroups, -1) for y in (B, C))
    y = _scan(x.view(1, T, H, headdim), dt, A, B, C, D, dt_bias, True, dt_limit, cu).reshape(
        1, T, inner
    ) * F.silu(z)
    if rmsnorm_weight is not None:
        grouped = y.view(1, T, ngroups, -1)
        y = (grouped * torch.rsqrt(grouped.square().mean(-1, keepdim=True) + rmsnorm_eps)).view(
            1, T, inner
        ) * rmsnorm_weight
    return y if outproj_weight is None else F.linear(y, outproj_weight, outproj_bias)


@contextmanager
def installed(*, convolution: int = 0, leaks: tuple[str, ...] = ()) -> Iterator[None]:
    """Put these in the place of the packages'.

    Args:
        convolution: Which of the two packages that have one.
        leaks: What forgets its borders: `state`, `convolution`.
    """
    CALLED.clear()
    LEAKS.update(leaks)
    here = {
        name: kernel._replace(
            sources=tuple(
                s._replace(module=__name__, device="cpu")
                for s in kernel.sources[convolution if name == "causal_conv1d_fn" else 0 :][:1]
            )
        )
        for name, kernel in recurrent_kernels.KERNELS.items()
    }
    with patch.dict(recurrent_kernels.KERNELS, here):
        try:
            yield
        finally:
            LEAKS.clear()
