"""The ways to attend over packed documents, every one equal to the slow twin `sdpa_dense`.

Shapes: B batch (always 1 when packed), H query heads, G key-value heads, T tokens, D head size, S documents.
The documents arrive as `cu_seq_lens_q`; a call without it is refused, never guessed.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from sft_dist.core.errors import UserError

Attend = Callable[..., tuple[Tensor, None]]

BLOCK = 128  # queries and keys of a block of FlexAttention


def fewer_heads(attend: Callable[..., Any]) -> dict[str, Any]:
    """Return what torch's `varlen_attn` must be told of fewer key-value heads: nothing before 2.12, which took them as they came."""
    return {"enable_gqa": True} if "enable_gqa" in inspect.signature(attend).parameters else {}


# once, outside of what torch.compile traces
FEWER_HEADS = fewer_heads(varlen_attn)


def _documents(cu_seq_lens_q: Tensor | None, attention_mask: Tensor | None) -> Tensor:
    """Return where the documents lie.

    Raises:
        UserError: When the model does not say, or attends otherwise than causally inside each.
    """
    if cu_seq_lens_q is None:
        raise UserError(
            "packed attention was called without cu_seq_lens_q, so documents would see one another: this model does not hand its "
            "keyword arguments down to attention and cannot be trained here; use another family"
        )
    if attention_mask is not None:
        raise UserError(
            "this model computes a mask or a bias of its own for attention, which no backend here applies, so it would be trained "
            "wrongly; use another family"
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
    max_length_q: int = 0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, None]:
    """The slow twin: one [T, T] mask that allows the same document and the past. Memory grows with T squared."""
    del module, max_length_q
    T, H = query.size(2), query.size(1)
    cu = _documents(cu_seq_lens_q, attention_mask)
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
    max_length_q: int = 0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, None]:
    """Causal attention one document at a time: no mask, no wasted pairs. The CPU path."""
    del module, max_length_q
    H = query.size(1)
    # split, not slices: the gradient of a slice is a whole row of zeros, once for each document
    lengths = _documents(cu_seq_lens_q, attention_mask).diff().tolist()
    gqa = key.size(1) != H
    scale = scaling if scaling is not None else query.size(-1) ** -0.5
    out = []
    for q, k, v in zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True):
        length = q.size(2)
        window = sliding_window if sliding_window and length > sliding_window else None
        if softcap or s_aux is not None:
            causal = _causal(length, window, q.device)
            part = _math(q, _spread(k, H), _spread(v, H), causal, scale, softcap, s_aux)
        elif window:
            causal = _causal(length, window, q.device)
            part = F.scaled_dot_product_attention(q, k, v, attn_mask=causal, scale=scale, enable_gqa=gqa)
        else:
            part = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=gqa)
        out.append(part.transpose(1, 2))
    return torch.cat(out, dim=1), None


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
) -> tuple[Tensor, None]:
    """Torch's own variable-length flash attention. It has no is_causal: causal is the window (-1, 0)."""
    del module
    cu = _documents(cu_seq_lens_q, attention_mask)
    q, k, v = (_flat(x) for x in (query, key, value))
    fewer: dict[str, Any] = FEWER_HEADS if key.size(1) != query.size(1) else {}
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
        **fewer,
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
) -> tuple[Tensor, None]:
    """The flash-attn package (FlashAttention 2 and newer), variable-length."""
    del module
    from flash_attn import flash_attn_varlen_func

    cu = _documents(cu_seq_lens_q, attention_mask)
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
        deterministic=torch.are_deterministic_algorithms_enabled(),
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
    max_length_q: int = 0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
) -> tuple[Tensor, None]:
    """FlexAttention with a document mask: for models whose features the flash kernels lack."""
    del module, max_length_q
    from torch.nn.attention.flex_attention import AuxRequest

    T = query.size(2)
    cu = _documents(cu_seq_lens_q, attention_mask)
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
    """Build the block mask once a micro-batch: every layer of a forward pass holds the same `cu` tensor.

    From the documents' borders, because `create_block_mask` evaluates the mask at every pair of tokens: memory by the square.
    """
    if _flex_cache.get("cu") is not cu:
        _flex_cache.update(cu=cu, masks={})
    masks = _flex_cache["masks"]
    if window not in masks:
        masks[window] = block_mask(cu, tokens, window)
    return masks[window]


def block_mask(cu: Tensor, tokens: int, window: int | None) -> Any:
    """Return FlexAttention's mask of packed documents: causal, inside each, at most `window` back.

    A block of queries looks at a block of keys if its first query does, which looks furthest back of all; it looks at the
    whole of it if its last query does.
    """
    from torch.nn.attention.flex_attention import BlockMask

    token_T = torch.arange(tokens, device=cu.device)
    document_T = torch.bucketize(token_T, cu[1:], right=True)
    begin_T = cu.long()[document_T]
    if window:
        begin_T = torch.maximum(begin_T, token_T - window + 1)  # what the window leaves of the document

    def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        del b, h
        past = (q >= k) & (document_T[q] == document_T[k])
        return past & (q - k < window) if window else past

    first_N = token_T[::BLOCK]
    last_N = (first_N + BLOCK - 1).clamp(max=tokens - 1)
    before_NN = last_N[None, :] < first_N[:, None]  # the keys of a block, all before the queries of another
    some_NN = (before_NN & (begin_T[first_N][:, None] <= last_N[None, :])).fill_diagonal_(True)
    whole_NN = before_NN & (begin_T[last_N][:, None] <= first_N[None, :])
    whole_NN &= (last_N - first_N == BLOCK - 1)[:, None]  # a block that is cut short is never taken for whole
    partly, wholly = (_by_row(x) for x in (some_NN & ~whole_NN, whole_NN))
    return BlockMask.from_kv_blocks(
        *partly, *wholly, BLOCK_SIZE=BLOCK, mask_mod=allowed, seq_lengths=(tokens, tokens)
    )


def _by_row(blocks_NN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of blocks in each row, and their places first, as FlexAttention keeps them: [1, 1, N], [1, 1, N, N]."""
    places_NN = blocks_NN.int().argsort(dim=-1, descending=True, stable=True).int()
    return blocks_NN.sum(dim=-1).int()[None, None], places_NN[None, None].contiguous()


def _flat(x_BHTD: Tensor) -> Tensor:
    """[B, H, T, D] -> [B*T, H, D]."""
    return x_BHTD.transpose(1, 2).reshape(-1, x_BHTD.size(1), x_BHTD.size(3))


class Needs(NamedTuple):
    """What one kind of layer asks of attention. Sizes of heads are those of queries and keys; values may have another."""

    head_dim: int
    dtype: torch.dtype
    device: str
    sliding_window: bool = False
    softcap: bool = False
    sinks: bool = False
    value_dim: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """A way to attend, and what it can do. The defaults are those of a backend that can do everything everywhere.

    Attributes:
        attend: The function.
        auto: `model.attention=auto` may take it.
        needs_cuda: What of it needs a CUDA device; empty: nothing.
        half_only: It computes in bfloat16 and float16 only.
        largest_head: Largest size of a head; None: any.
        other_value_size: Values may have another size than queries.
        softcap: It caps logits.
        sinks: It counts attention sinks.
        package: The module that has to be installed.
    """

    attend: Attend
    auto: bool = True
    needs_cuda: str = ""
    half_only: bool = False
    largest_head: int | None = None
    other_value_size: bool = True
    softcap: bool = True
    sinks: bool = True
    package: str | None = None

    def unfit(self, needs: Needs) -> str:
        """Return why it cannot serve, or an empty string."""
        reasons = {
            f"{self.needs_cuda} needs a CUDA device": bool(self.needs_cuda) and needs.device != "cuda",
            f"it needs bfloat16, not {needs.dtype}": self.half_only
            and needs.dtype not in (torch.bfloat16, torch.float16),
            f"head size {needs.head_dim} is over its limit of {self.largest_head}": self.largest_head
            is not None
            and needs.head_dim > self.largest_head,
            f"values of size {needs.value_dim} beside queries of size {needs.head_dim} are beyond it": not self.other_value_size
            and needs.value_dim not in (None, needs.head_dim),
            "it has no attention sinks": needs.sinks and not self.sinks,
            "it has no logit softcap": needs.softcap and not self.softcap,
            f"the {(self.package or '').replace('_', '-')} package is not installed": self.package is not None
            and importlib.util.find_spec(self.package) is None,
        }
        return next((reason for reason, holds in reasons.items() if holds), "")


# the fastest first; one entry adds one
BACKENDS: dict[str, Backend] = {
    "flash": Backend(
        attend=flash,
        needs_cuda="it",
        half_only=True,
        largest_head=256,
        other_value_size=False,
        sinks=False,
        package="flash_attn",
    ),
    "varlen": Backend(
        attend=varlen,
        needs_cuda="it",
        half_only=True,
        largest_head=256,
        other_value_size=False,
        softcap=False,
        sinks=False,
    ),
    "flex": Backend(attend=flex, needs_cuda="its backward pass"),
    "sdpa_per_doc": Backend(attend=sdpa_per_doc),
    "sdpa_dense": Backend(attend=sdpa_dense, auto=False),
}
