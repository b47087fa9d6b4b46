"""Which way a model attends over packed documents: the fastest of model/backends.py that is present and right for it.

A backend is a function registered with transformers' AttentionInterface under `registered_name(backend)`. No mask is
built for such a name, and the documents arrive as `cu_seq_lens_q`.
"""

from __future__ import annotations

import importlib.util
from typing import NamedTuple

import torch

from sft_dist.core.errors import UserError
from sft_dist.model.backends import BACKENDS
from sft_dist.model.ulysses import SequenceGroup, across

FASTEST_FIRST = ("flash", "varlen", "flex", "sdpa_per_doc")


class Needs(NamedTuple):
    """What a model asks of attention. Sizes of heads are those of queries and keys; values may have another."""

    head_dim: int
    dtype: torch.dtype
    device: str
    sliding_window: bool = False
    softcap: bool = False
    sinks: bool = False
    value_dim: int | None = None


def registered_name(backend: str, sequence_ranks: int = 1) -> str:
    """Return the `attn_implementation` of a backend, over rows that this many ranks share."""
    # transformers reads meaning into names: one with "sdpa" or "flash" in it is refused where a model has no code of its
    # own for that (Gemma 2, gpt-oss), though ours is what runs
    name = backend.removeprefix("sdpa_").replace("flash", "fa")
    return f"sft_dist_{name}" + (f"_over_{sequence_ranks}" if sequence_ranks > 1 else "")


def register(sequence: SequenceGroup | None = None) -> None:
    """Make every backend known to transformers, over the rows that a group of ranks shares. Idempotent."""
    from transformers import AttentionInterface

    for name, attend in BACKENDS.items():
        if sequence is None or sequence.size == 1:
            AttentionInterface.register(registered_name(name), attend)
        else:
            AttentionInterface.register(registered_name(name, sequence.size), across(attend, sequence))


def choose_backend(backend: str, needs: Needs) -> tuple[str, str]:
    """Return the backend to use and the reason.

    Args:
        backend: A name of `BACKENDS`, or auto: the fastest that is present and right for the model.
        needs: What the model asks for.

    Raises:
        UserError: When the named backend is absent or wrong for the model.
    """
    if backend != "auto":
        if reason := unfit(backend, needs):
            raise UserError(
                f"model.attention={backend} cannot run here: {reason}; documents would not be attended rightly, "
                "so nothing was started. Use model.attention=auto"
            )
        return backend, "as configured"
    skipped: list[str] = []
    for name in FASTEST_FIRST:
        reason = unfit(name, needs)
        if not reason:
            return name, "; ".join(skipped) or "the fastest backend for this device"
        skipped.append(f"{name}: {reason}")
    raise UserError(f"no attention backend is right for this model: {'; '.join(skipped)}")


def unfit(backend: str, needs: Needs) -> str:
    """Return why a backend cannot serve, or an empty string."""
    cuda = needs.device == "cuda"
    half = needs.dtype in (torch.bfloat16, torch.float16)
    if backend in ("flash", "varlen"):
        if not cuda:
            return "it needs a CUDA device"
        if not half:
            return f"it needs bfloat16, not {needs.dtype}"
        if needs.head_dim > 256:
            return f"head size {needs.head_dim} is over its limit of 256"
        if needs.value_dim not in (None, needs.head_dim):
            return f"values of size {needs.value_dim} beside queries of size {needs.head_dim} are beyond it"
        if needs.sinks:
            return "it has no attention sinks"
    if backend == "flash" and importlib.util.find_spec("flash_attn") is None:
        return "the flash-attn package is not installed"
    if backend == "varlen" and needs.softcap:
        return "it has no logit softcap"
    if backend == "flex" and not cuda:
        return "its backward pass needs a CUDA device"
    return ""
