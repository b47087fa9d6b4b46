"""Sequence parallelism: the ranks of a group share rows, each holds a slice of the tokens, attention a slice of the heads.

Everything but attention works token by token, so a rank runs it on its slice alone. Around attention, one all-to-all
turns (slice of the tokens, all heads) into (all tokens, slice of the heads), any backend runs over the whole packed
rows with their own document borders, and a second all-to-all turns the result back: arXiv 2309.14509, and for packed
rows through a registered attention function arXiv 2506.13996. Nothing else changes: a rank's loss is the sum over the
targets in its slice, and the algebra of model/loss.py, which sums over all ranks, never asks which rank held what.

Shapes: P ranks of the group, H query heads, G key-value heads, T tokens of the rows, t = T/P tokens of a slice, D head
size, C = channels that one rank sends to another for one token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceGroup:
    """This rank among the ranks that share its rows, and that group among all.

    Attributes:
        size: Ranks that share rows.
        place: Which slice of the tokens this rank holds, from 0.
        data_rank: Which rows this rank works on, from 0.
        data_ranks: Groups, each with rows of its own.
        group: torch's process group; None for a group of one.
    """

    size: int
    place: int
    data_rank: int
    data_ranks: int
    group: Any = None


def join(size: int, timeout_minutes: int) -> SequenceGroup:
    """Form groups of `size` consecutive ranks (neighbours share a node). Collective; `size` divides the ranks."""
    rank, world = dist.get_rank(), dist.get_world_size()
    assert world % size == 0, f"{world} ranks in groups of {size}"
    group = dist.new_subgroups(size, timeout=timedelta(minutes=timeout_minutes))[0] if size > 1 else None
    return SequenceGroup(
        size=size, place=rank % size, data_rank=rank // size, data_ranks=world // size, group=group
    )


def across(attend: Callable[..., Any], ranks: SequenceGroup) -> Callable[..., Any]:
    """Return an attention function for slices of rows, which runs `attend` over whole rows and a share of the heads."""
    P = ranks.size

    def attend_across(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None = None,
        *,
        s_aux: Tensor | None = None,
        **options: Any,
    ) -> tuple[Tensor, None]:
        assert query.size(0) == 1, "packed rows come as one batch entry"
        H, G = query.size(1), key.size(1)
        # Fewer or uneven key-value heads are repeated just so often that every rank gets whole ones; a rank's query
        # heads then still meet their own: both are cut at the same fractions of the heads.
        copies = math.lcm(G, P) // G
        parts = [_by_rank(x, P) for x in (query, *(_repeated(x, copies) for x in (key, value)))]
        whole_TC = _Exchange.apply(torch.cat(parts, dim=-1), ranks.group).flatten(0, 1)
        shares = whole_TC.split([p.size(-1) for p in parts], dim=-1)
        heads = (H // P, G * copies // P, G * copies // P)
        q, k, v = (x.unflatten(-1, (h, -1)).transpose(0, 1)[None] for x, h in zip(shares, heads, strict=True))
        if s_aux is not None:  # one sink a query head
            s_aux = s_aux.narrow(0, ranks.place * (H // P), H // P)
        out_1ThD, _ = attend(module, q, k, v, attention_mask, s_aux=s_aux, **options)
        back_PtC = _Exchange.apply(out_1ThD[0].flatten(1).unflatten(0, (P, -1)), ranks.group)
        out_tPhD = back_PtC.transpose(0, 1).unflatten(-1, (H // P, -1))
        return out_tPhD.flatten(1, 2)[None].contiguous(), None

    return attend_across


class _Exchange(torch.autograd.Function):
    """[P, t, C] -> [P, t, C]: entry p goes to rank p, and comes from rank p. It is its own inverse and adjoint."""

    @staticmethod
    def forward(ctx: Any, x_PtC: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x_PtC = x_PtC.contiguous()
        out = torch.empty_like(x_PtC)
        dist.all_to_all_single(out, x_PtC, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Exchange.apply(grads[0], ctx.group), None


def _by_rank(x_1HtD: Tensor, ranks: int) -> Tensor:
    """[1, H, t, D] -> [P, t, (H/P) D]: the heads of each rank."""
    return x_1HtD[0].unflatten(0, (ranks, -1)).transpose(1, 2).flatten(2)


def _repeated(x_1GtD: Tensor, copies: int) -> Tensor:
    return x_1GtD.repeat_interleave(copies, dim=1) if copies > 1 else x_1GtD
