"""The ways to attend over packed documents, every one equal to the slow twin `sdpa_dense`.

Shapes: B batch (always 1 when packed), H query heads, G key-value heads, T tokens, D head size, S documents.
The documents arrive as `cu_seq_lens_q`; a call without it is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Attend = Callable[..., tuple[Tensor, None]]


def _documents(cu_seq_lens_q: Tensor | None) -> Tensor:
    if cu_seq_lens_q is None:
        raise RuntimeError(
            "packed attention was called without cu_seq_lens_q, so documents would see one another; "
            "this model does not hand its keyword arguments down to attention and cannot be packed"
        )
    return cu_seq_lens_q


def _math(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed_TT: Tensor,
    scaling: float,
    softcap: float | None,
    sinks_H: Tensor | None,
) -> Tensor:
    """Attention in the obvious way; q, k, v are [B, H, T, D] with equal heads."""
    scores = (q @ k.transpose(-1, -2)).float() * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~allowed_TT, float("-inf"))
    if sinks_H is None:
        weights = scores.softmax(-1)
    else:  # a sink takes part in the softmax and contributes no value
        sink = sinks_H.float().reshape(1, -1, 1, 1).expand(scores.size(0), -1, scores.size(2), 1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    return weights.to(v.dtype) @ v


def _spread(x_BGTD: Tensor, heads: int) -> Tensor:
    return x_BGTD.repeat_interleave(heads // x_BGTD.size(1), dim=1)


def _causal(length: int, window: int | None, device: torch.device) -> Tensor:
    i = torch.arange(length, device=device)
    back = i[:, None] - i[None, :]
    return (back >= 0) & (back < window) if window else back >= 0


def sdpa_dense(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The slow twin: one [T, T] mask that allows the same document and the past. Memory grows with T squared."""
    del module, attention_mask
    T, H = query.size(2), query.size(1)
    cu = _documents(cu_seq_lens_q)
    document_T = torch.bucketize(torch.arange(T, device=query.device), cu[1:].to(query.device), right=True)
    allowed = (document_T[:, None] == document_T[None, :]) & _causal(T, sliding_window, query.device)
    scale = scaling if scaling is not None else query.size(-1) ** -0.5
    out = _math(query, _spread(key, H), _spread(value, H), allowed, scale, softcap, s_aux)
    return out.transpose(1, 2).contiguous(), None


def sdpa_per_doc(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention one document at a time: no mask, no wasted pairs. The CPU path."""
    del module, attention_mask
    H = query.size(1)
    bounds = _documents(cu_seq_lens_q).tolist()
    gqa = key.size(1) != H
    scale = scaling if scaling is not None else query.size(-1) ** -0.5
    out = []
    for a, b in pairwise(bounds):
        if a == b:
            continue
        q, k, v = query[:, :, a:b], key[:, :, a:b], value[:, :, a:b]
        window = sliding_window if sliding_window and b - a > sliding_window else None
        if softcap or s_aux is not None:
            part = _math(
                q, _spread(k, H), _spread(v, H), _causal(b - a, window, q.device), scale, softcap, s_aux
            )
        elif window:
            part = F.scaled_dot_product_attention(
                q, k, v, attn_mask=_causal(b - a, window, q.device), scale=scale, enable_gqa=gqa
            )
        else:
            part = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
        out.append(part)
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def varlen(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Torch's own variable-length flash attention. It has no is_causal: causal is the window (-1, 0)."""
    del module, attention_mask
    from torch.nn.attention.varlen import varlen_attn

    cu = _documents(cu_seq_lens_q)
    q, k, v = (_flat(x) for x in (query, key, value))
    out: Any = varlen_attn(
        q,
        k,
        v,
        cu,
        cu,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        enable_gqa=key.size(1) != query.size(1),
    )
    return out.view(query.size(0), -1, *out.shape[1:]), None


def flash(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The flash-attn package (FlashAttention 2 and newer), variable-length."""
    del module, attention_mask
    from flash_attn import flash_attn_varlen_func

    cu = _documents(cu_seq_lens_q)
    q, k, v = (_flat(x) for x in (query, key, value))
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        cu,
        cu,
        max_length_q,
        max_length_q,
        softmax_scale=scaling,
        causal=True,
        window_size=(sliding_window - 1 if sliding_window else -1, 0),
        softcap=softcap or 0.0,
    )
    return out.view(query.size(0), -1, *out.shape[1:]), None


def flex(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """FlexAttention with a document mask: for models whose features the flash kernels lack."""
    del module, attention_mask
    from torch.nn.attention.flex_attention import AuxRequest

    T = query.size(2)
    cu = _documents(cu_seq_lens_q)
    mask = _flex_mask(cu, T, sliding_window)
    cap = (lambda score, *_: softcap * torch.tanh(score / softcap)) if softcap else None
    out, aux = _compiled_flex()(
        query,
        key,
        value,
        score_mod=cap,
        block_mask=mask,
        scale=scaling,
        enable_gqa=key.size(1) != query.size(1),
        return_aux=AuxRequest(lse=s_aux is not None),
    )
    if (
        s_aux is not None
    ):  # the sink's share of the softmax: exp(lse) / (exp(lse) + exp(sink)) is left for the values
        out = (out * torch.sigmoid(aux.lse - s_aux.float()[None, :, None])[..., None]).to(out.dtype)
    return out.transpose(1, 2).contiguous(), None


_flex_cache: dict[str, Any] = {}


def _compiled_flex() -> Callable[..., Tensor]:
    if "fn" not in _flex_cache:
        from torch.nn.attention.flex_attention import flex_attention

        _flex_cache["fn"] = torch.compile(flex_attention)
    return _flex_cache["fn"]


def _flex_mask(cu: Tensor, tokens: int, window: int | None) -> Any:
    """Build the block mask once a micro-batch: every layer of a forward pass holds the same `cu` tensor."""
    from torch.nn.attention.flex_attention import create_block_mask

    if _flex_cache.get("cu") is not cu:
        _flex_cache.update(cu=cu, masks={})
    masks = _flex_cache["masks"]
    if window not in masks:
        document_T = torch.bucketize(torch.arange(tokens, device=cu.device), cu[1:], right=True)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            del b, h
            past = (q >= k) & (document_T[q] == document_T[k])
            return past & (q - k < window) if window else past

        masks[window] = create_block_mask(allowed, None, None, tokens, tokens, device=cu.device)
    return masks[window]


def _flat(x_BHTD: Tensor) -> Tensor:
    """[B, H, T, D] -> [B*T, H, D]."""
    return x_BHTD.transpose(1, 2).reshape(-1, x_BHTD.size(1), x_BHTD.size(3))


BACKENDS: dict[str, Attend] = {
    "flash": flash,
    "varlen": varlen,
    "flex": flex,
    "sdpa_per_doc": sdpa_per_doc,
    "sdpa_dense": sdpa_dense,
}
