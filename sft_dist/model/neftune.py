"""NEFTune (arXiv 2310.05914): uniform noise on the input embeddings while training, scaled by document length.

A document of L tokens in a model of width E gets noise from [-1, 1] times alpha / sqrt(L * E). In a packed row every
document keeps its own L. The noise comes from torch's generator, which the loop seeds anew for every step and rank, so
a resumed run draws what the uninterrupted one would have drawn.

Shapes: T tokens of the micro-batch, S documents, E model width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


def add_noise(packed: nn.Module, alpha: float) -> None:
    """Add noise of strength `alpha` to the embeddings of a `PackedLM`, in training mode only.

    Hooks, not an `inputs_embeds` argument: models that look up something else by token id keep working.
    """
    noise = _Noise(packed, alpha)
    packed.register_forward_pre_hook(noise.note_documents, with_kwargs=True)
    packed.hf.get_input_embeddings().register_forward_hook(noise.add)  # type: ignore[union-attr, operator]


class _Noise:
    def __init__(self, packed: nn.Module, alpha: float) -> None:
        self._signature = inspect.signature(packed.forward)
        self._alpha = alpha
        self._cu_seqlens_S1 = torch.zeros(1, dtype=torch.int32)

    def note_documents(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Remember where the documents of this micro-batch lie."""
        self._cu_seqlens_S1 = self._signature.bind(*args, **kwargs).arguments["cu_seqlens_S1"]

    def add(self, embedding: nn.Module, _: Any, embedded_1TE: Tensor) -> Tensor | None:
        """Return the noisy embeddings."""
        if not embedding.training:
            return None
        T, E = embedded_1TE.shape[-2:]
        lengths_S = self._cu_seqlens_S1.diff()
        lengths_T = torch.repeat_interleave(lengths_S, lengths_S, output_size=T)
        scale_T1 = self._alpha / torch.sqrt(lengths_T * E)[:, None]
        return embedded_1TE + (torch.rand_like(embedded_1TE) * 2 - 1) * scale_T1.to(embedded_1TE.dtype)
