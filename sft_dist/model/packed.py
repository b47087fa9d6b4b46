"""The module that the engine runs: packed documents in, loss out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from sft_dist.core.records import Batch
from sft_dist.model import parts
from sft_dist.model.loss import LossHead
from sft_dist.model.recurrent_kernels import Borders, Row
from sft_dist.model.router_balance import RouterBalance


class PackedLM(nn.Module):
    """A Hugging Face causal LM on packed documents; the projection runs over target tokens only.

    Shapes: T tokens of the micro-batch, S documents, N targets.
    """

    def __init__(self, hf: Any, borders: Borders | None = None) -> None:
        super().__init__()
        self.hf = hf
        text = hf.config.get_text_config()
        LossHead.adopt(hf.get_output_embeddings(), parts.logit_softcap(text), parts.logit_rows(text))
        self.logit_scale = parts.logit_scale(text)
        self.borders = borders
        self.balance: RouterBalance | None = None  # of a mixture of experts, with loss.router_balance

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
        """Return (what is minimised, loss of each target [N]).

        `by_model` takes the logits of all tokens from the model's own forward pass, whatever it does between decoder and
        logits: the slow twin, for the check before the first step.
        """
        if self.borders is not None:  # for layers that begin anew at every document
            self.borders.row = Row(cu_seqlens_S1, input_ids_1T.size(1))
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
        balance = self.balance if self.training else None
        if balance is not None:
            balance.watch()
        h_1TE = parts.decoder_of(self.hf)(**inputs).last_hidden_state
        h_NE = h_1TE[0].index_select(0, target_positions_N)
        if self.logit_scale != 1:
            h_NE = h_NE * self.logit_scale
        loss_sum, nll_N = self.hf.get_output_embeddings()(h_NE, target_ids_N, target_weights_N)
        return (loss_sum if balance is None else loss_sum + balance.term()), nll_N


# Borders between arrays of a micro-batch in its one buffer: what a kernel may ask of the address of a tensor.
ALIGN_BYTES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBatch:
    """A micro-batch on a device, or on its way there.

    Attributes:
        batch: As it was collated, in host memory.
        inputs: The arguments of `PackedLM.forward`; not to be read before `arrive`.
        codes_KN: [K, N] to which of K groupings' sums each target is added (train.metrics); K = 0: to none.
        flat: The memory that they all lie in.
        ready: CUDA event after the copy; None where there was none.
    """

    batch: Batch
    inputs: tuple[Any, ...]
    codes_KN: Tensor  # noqa: N815  shape letters
    flat: Tensor
    ready: Any

    @property
    def real_tokens(self) -> int:
        """Tokens before the padding."""
        return len(self.batch.input_ids) - self.batch.padding

    @property
    def weights_N(self) -> Tensor:
        """The loss weight of each target."""
        return self.inputs[-1]  # type: ignore[no-any-return]

    def arrive(self) -> tuple[Any, ...]:
        """Let the device wait for the copy, not the host; return the arguments of `PackedLM.forward`."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.flat.device)
            stream.wait_event(self.ready)
            self.flat.record_stream(
                stream
            )  # its memory is given to no other copy before `stream` is done with it
        return self.inputs


def upload(batch: Batch, device: torch.device | str, codes_KN: NDArray[np.int64] | None = None) -> MicroBatch:
    """Copy a micro-batch to a device as one block. Nothing here waits for the device, so any thread may call it.

    On a GPU the block is pinned, and copied by a stream of its own beside whatever the device computes.
    """
    device = torch.device(device)
    codes = np.zeros((0, len(batch.target_ids)), np.int64) if codes_KN is None else codes_KN
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "cu_seqlens": batch.cu_seqlens,
        "target_positions": batch.target_positions,
        "target_ids": batch.target_ids,
        "target_weights": batch.target_weights,
        "codes": codes,
    }
    begins, end = {}, 0
    for name, array in arrays.items():
        begins[name] = end
        end += -(-array.nbytes // ALIGN_BYTES) * ALIGN_BYTES
    host = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")
    raw = host.numpy()
    for name, array in arrays.items():
        raw[begins[name] : begins[name] + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).ravel()
    flat, ready = _copied(host, device)
    on = _views(flat, arrays, begins)
    return MicroBatch(
        batch=batch,
        inputs=(
            on["input_ids"][None],
            on["position_ids"][None],
            on["cu_seqlens"],
            batch.max_seqlen,
            on["target_positions"],
            on["target_ids"],
            on["target_weights"],
        ),
        codes_KN=on["codes"],
        flat=flat,
        ready=ready,
    )


def to_inputs(batch: Batch, device: torch.device | str) -> tuple[Any, ...]:
    """Return the arguments of `PackedLM.forward` on a device."""
    return upload(batch, device).arrive()


def _views(flat: Tensor, arrays: Mapping[str, NDArray[Any]], begins: Mapping[str, int]) -> dict[str, Tensor]:
    out = {}
    for name, array in arrays.items():
        dtype = torch.from_numpy(array[:0]).dtype
        out[name] = flat[begins[name] : begins[name] + array.nbytes].view(dtype).view(array.shape)
    return out


def _copied(host: Tensor, device: torch.device) -> tuple[Tensor, Any]:
    """Return the block on the device, and the event after its copy."""
    if device.type != "cuda":
        return host.to(device), None
    stream = _upload_stream(device)
    with torch.cuda.stream(stream):
        return host.to(device, non_blocking=True), stream.record_event()


@cache
def _upload_stream(device: torch.device) -> Any:
    return torch.cuda.Stream(device)
