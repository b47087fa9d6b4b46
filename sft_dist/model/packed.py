"""The module that the engine runs: packed documents in, loss out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_dist.core.records import Batch
from sft_dist.model.loss import LossHead


class PackedLM(nn.Module):
    """A Hugging Face causal LM on packed documents; the projection runs over target tokens only.

    Shapes: T tokens of the micro-batch, S documents, N targets.
    """

    def __init__(self, hf: Any) -> None:
        super().__init__()
        self.hf = hf
        text = hf.config.get_text_config()
        LossHead.adopt(hf.get_output_embeddings(), getattr(text, "final_logit_softcapping", None))
        self.logit_scale = _logit_scale(text)

    def forward(
        self,
        input_ids_1T: Tensor,
        position_ids_1T: Tensor,
        cu_seqlens_S1: Tensor,
        max_seqlen: int,
        target_positions_N: Tensor,
        target_ids_N: Tensor,
        target_weights_N: Tensor,
        *,
        by_model: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return (weighted loss sum, loss of each target [N]).

        `by_model` takes the logits of all tokens from the model's own forward pass, whatever it does between decoder and
        logits: the slow twin, for the check before the first step.
        """
        inputs = {
            "input_ids": input_ids_1T,
            "position_ids": position_ids_1T,
            # a mask of ones, or a cache, makes documents visible to one another
            "attention_mask": None,
            "use_cache": False,
            "cu_seq_lens_q": cu_seqlens_S1,
            "cu_seq_lens_k": cu_seqlens_S1,
            "max_length_q": max_seqlen,
            "max_length_k": max_seqlen,
        }
        if by_model:
            logits_NV = self.hf(**inputs).logits[0][target_positions_N].float()
            nll_N = F.cross_entropy(logits_NV, target_ids_N, reduction="none")
            return (nll_N * target_weights_N).sum(), nll_N
        h_1TE = self.hf.get_decoder()(**inputs).last_hidden_state
        h_NE = h_1TE[0].index_select(0, target_positions_N)
        if self.logit_scale != 1:
            h_NE = h_NE * self.logit_scale
        return self.hf.get_output_embeddings()(h_NE, target_ids_N, target_weights_N)


def _logit_scale(text: Any) -> float:
    """Return the factor that some families put on their logits (Cohere multiplies, Granite divides)."""
    return getattr(text, "logit_scale", None) or 1 / (getattr(text, "logits_scaling", None) or 1)


def to_inputs(batch: Batch, device: torch.device | str) -> tuple[Any, ...]:
    """Return the arguments of `PackedLM.forward` on a device."""

    def move(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    return (
        move(batch.input_ids)[None],
        move(batch.position_ids)[None],
        move(batch.cu_seqlens),
        batch.max_seqlen,
        move(batch.target_positions),
        move(batch.target_ids),
        move(batch.target_weights),
    )
