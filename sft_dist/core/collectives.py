"""Small Python values between the ranks: from rank 0 to all, from all to all, from all to rank 0. Every call is collective.

The only module of core that reaches torch.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch.distributed as dist

T = TypeVar("T")


def from_rank_0(value: T) -> T:
    """Return on every rank the value that rank 0 gave."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Return on every rank the values of all ranks, in their order."""
    out: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return cast("list[T]", out)


def gather_to_main(value: T) -> list[T]:
    """Return the values of all ranks on rank 0, an empty list on the others."""
    out: list[T | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(value, out, dst=0)
    return cast("list[T]", out or [])
