"""Projection and cross-entropy over target tokens only, chunk by chunk, and the algebra of the global loss.

The loss of a global batch is one number,

    L = sum_i w_i * ce_i / N,      N = sum_i w_i over the targets of ALL ranks and micro-steps,

and N is known from the plan before the first forward pass. Rank r in micro-step m holds L_rm = sum of its own w_i * ce_i.
DeepSpeed averages gradients over the W ranks and, with `scale_wrt_gas=False`, divides by nothing else, so each rank runs

    engine.backward(L_rm * W / N, scale_wrt_gas=False)

and the reduced gradient is (1/W) * sum_r sum_m d(L_rm * W / N) = dL: exact for any number of ranks, any number of
micro-steps and any fill. Averaging per micro-batch or per rank instead would weight a token by how full its row is.

Shapes: N targets of a micro-batch, C targets of a chunk, E model width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_dist.core.errors import UserError

# Logits of one chunk in fp32: 64 MiB at a vocabulary of 128k, 128 targets. Small enough never to matter beside
# activations, large enough that the matrix product runs at full speed.
CHUNK_LOGITS = 1 << 24


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy of a linear projection; gradients are made in the forward pass, logits never kept."""

    @staticmethod
    def forward(
        ctx: Any, h_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, weights_N: Tensor, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        N, V = h_NE.size(0), weight_VE.size(0)
        chunk = max(1, min(N, CHUNK_LOGITS // V))
        nll_N = torch.zeros(N, dtype=torch.float32, device=h_NE.device)
        need_h, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dh_NE = torch.zeros_like(h_NE) if need_h else None
        # fp32: hundreds of chunks are added up here
        dw_VE = torch.zeros(weight_VE.shape, dtype=torch.float32, device=weight_VE.device) if need_w else None
        for a in range(0, N, chunk):
            b = min(a + chunk, N)
            h_CE, t_C = h_NE[a:b], targets_N[a:b]
            raw_CV = F.linear(h_CE, weight_VE).float()
            logits_CV = softcap * torch.tanh(raw_CV / softcap) if softcap else raw_CV
            lse_C = torch.logsumexp(logits_CV, dim=-1)
            nll_N[a:b] = lse_C - logits_CV.gather(1, t_C[:, None]).squeeze(1)
            if not (need_h or need_w):
                continue
            d_CV = torch.exp(logits_CV - lse_C[:, None])
            d_CV.scatter_add_(1, t_C[:, None], torch.full_like(t_C[:, None], -1, dtype=d_CV.dtype))
            d_CV *= weights_N[a:b, None]
            if softcap:
                d_CV *= 1.0 - (logits_CV / softcap) ** 2
            d_CV = d_CV.to(h_NE.dtype)
            if dh_NE is not None:
                dh_NE[a:b] = d_CV @ weight_VE
            if dw_VE is not None:
                dw_VE += (d_CV.T @ h_CE).float()
        ctx.save_for_backward(*(t for t in (dh_NE, dw_VE) if t is not None))
        ctx.need = (need_h, need_w, weight_VE.dtype)
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weights_N).sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        upstream = grads[0]
        need_h, need_w, dtype = ctx.need
        saved = iter(ctx.saved_tensors)
        dh = next(saved) * upstream if need_h else None
        dw = (next(saved) * upstream).to(dtype) if need_w else None
        return dh, dw, None, None, None


def weighted_cross_entropy(
    h_NE: Tensor, weight_VE: Tensor, targets_N: Tensor, weights_N: Tensor, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return (sum of weight x cross-entropy, a scalar in fp32; cross-entropy of each target [N], no gradient).

    With N = 0 the sum is 0 and its gradients are zeros, so a rank without targets still takes part in every collective.
    """
    return _ChunkedCrossEntropy.apply(h_NE, weight_VE, targets_N, weights_N, softcap)


class LossHead(nn.Linear):
    """An output projection that computes the loss itself, given targets.

    Under ZeRO-3 a weight is gathered around the call of the module that owns it, so projection and loss are one call.
    `adopt` turns a model's own projection into this class: parameters, names and ties stay what they were.
    """

    softcap: float | None = None

    @classmethod
    def adopt(cls, head: nn.Module, softcap: float | None) -> None:
        """Give `head` this class in place."""
        if type(head) is not nn.Linear or head.bias is not None:
            raise UserError(
                f"the output projection is a {type(head).__name__}, not a plain bias-free Linear; this model is not supported; use one of the Llama, Qwen, Mistral, Gemma or a similar family"
            )
        head.__class__ = cls
        head.softcap = softcap  # type: ignore[assignment]

    def forward(
        self, hidden: Tensor, targets_N: Tensor | None = None, weights_N: Tensor | None = None
    ) -> Any:  # type: ignore[override]
        """Logits without targets (generation); (loss sum, loss of each target) with them."""
        if targets_N is None or weights_N is None:
            return super().forward(hidden)
        return weighted_cross_entropy(hidden, self.weight, targets_N, weights_N, self.softcap)
