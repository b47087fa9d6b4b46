"""Projection and cross-entropy over target tokens only, chunk by chunk, and the algebra of the global loss.

The loss of a global batch is one number,

    L = sum_i w_i * ce_i / N,      N = sum_i w_i over the targets of ALL ranks and micro-steps,

and N is known from the plan before the first forward pass. Rank r in micro-step m holds L_rm = sum of its own w_i * ce_i.
DeepSpeed averages gradients over the W ranks and, with `scale_wrt_gas=False`, divides by nothing else, so each rank runs

    engine.backward(L_rm * W / N, scale_wrt_gas=False)

and the reduced gradient is (1/W) * sum_r sum_m d(L_rm * W / N) = dL: exact for any number of ranks, any number of
micro-steps and any fill. Averaging per micro-batch or per rank instead would weight a token by how full its row is.

What is minimised for a target with logits x, log-sum-exp s and cross-entropy ce = s - x[target] is

    w * ((1 - a) * ce + a * (s - mean(x))) + w * z * s^2

with a the label smoothing and z the z-loss coefficient (PaLM, arXiv 2204.02311). DFT (arXiv 2508.05629) multiplies the
first term by the probability of the target, exp(-ce), as a constant. What is logged is always ce, so that runs with
different options can be compared with each other and with the held-out loss.

Why no fused kernel of a library: those known to us either return one sum or, per token, gradients for an upstream of
ones, which loses the weight of each token; and a gradient made here needs no logits in memory either.

Of a chunk there are two ways, chosen by `loss.kernel`: plainly, by torch's operations on an fp32 copy of the logits; or by a
Triton kernel that passes twice over the logits as they are and leaves their gradient in their place (loss_kernel.py).

Shapes: N targets of a micro-batch, C targets of a chunk, E model width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_dist.config.train import LossConfig
from sft_dist.core.errors import UserError

# Logits of one chunk. On CPU 64 MiB in fp32: small beside everything else, large enough for the matrix product. On a GPU
# 512 MiB, about 1,000 targets at a vocabulary of 128k: each chunk reads and writes the whole fp32 gradient of the
# projection once, and with fewer targets that traffic would take longer than the products themselves.
CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}


PLAIN = LossConfig()


Losses = tuple[
    Tensor, Tensor, Tensor | None
]  # cross-entropy [C], what is minimised [C], gradient of the logits [C, V]


def _plainly(
    logits_CV: Tensor,
    targets_C: Tensor,
    w_C: Tensor,
    softcap: float | None,
    options: LossConfig,
    *,
    gradient: bool,
) -> Losses:
    """The losses of a chunk, by torch's operations."""
    smoothing, z, V = options.label_smoothing, options.z_loss, logits_CV.size(1)
    dtype, t_C1 = logits_CV.dtype, targets_C[:, None]
    logits_CV = logits_CV.float()
    if softcap:
        logits_CV = softcap * torch.tanh(logits_CV / softcap)
    capped_CV = logits_CV.clone() if softcap and gradient else None
    target_C = logits_CV.gather(1, t_C1).squeeze(1)
    mean_C = logits_CV.mean(dim=-1) if smoothing else None
    top_C1 = logits_CV.amax(dim=-1, keepdim=True)
    exp_CV = logits_CV.sub_(top_C1).exp_()  # in place: one pass serves the sum and the gradient
    sum_C = exp_CV.sum(dim=-1)
    lse_C = top_C1.squeeze(1) + sum_C.log()
    nll_C = lse_C - target_C
    ce_C = nll_C if mean_C is None else (1 - smoothing) * nll_C + smoothing * (lse_C - mean_C)
    ce_weight_C = w_C * torch.exp(-nll_C) if options.dft else w_C
    objective_C = ce_weight_C * ce_C + w_C * (z * lse_C.square())
    if not gradient:
        return nll_C, objective_C, None
    d_CV = exp_CV.mul_(((ce_weight_C + 2 * z * w_C * lse_C) / sum_C)[:, None])
    d_CV.scatter_add_(1, t_C1, (ce_weight_C * (smoothing - 1))[:, None])
    if smoothing:
        d_CV -= (ce_weight_C * (smoothing / V))[:, None]
    if capped_CV is not None and softcap:
        d_CV *= 1.0 - (capped_CV / softcap) ** 2
    return nll_C, objective_C, d_CV.to(dtype)


def _in_place(
    logits_CV: Tensor,
    targets_C: Tensor,
    w_C: Tensor,
    softcap: float | None,
    options: LossConfig,
    *,
    gradient: bool,
) -> Losses:
    """The same by the kernel: the logits become their gradient."""
    from sft_dist.model.loss_kernel import loss_in_place

    nll_C, objective_C = loss_in_place(
        logits_CV,
        targets_C,
        w_C,
        softcap,
        label_smoothing=options.label_smoothing,
        z_loss=options.z_loss,
        dft=options.dft,
        gradient=gradient,
    )
    return nll_C, objective_C, logits_CV if gradient else None


def _by_kernel(kernel: str, h_NE: Tensor) -> bool:
    if kernel == "auto":
        return h_NE.is_cuda and _has_triton()
    if kernel == "triton" and not _has_triton():
        raise UserError(
            "loss.kernel=triton, but Triton is not installed, so the kernel cannot be built; install triton, or use "
            "loss.kernel=plain"
        )
    return kernel == "triton"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _add_product(dw_VE: Tensor, d_CV: Tensor, h_CE: Tensor) -> None:
    """Add the chunk's part of the projection's gradient to the fp32 sum; on a GPU the product itself adds in fp32."""
    if dw_VE.is_cuda and d_CV.dtype != torch.float32:
        torch.addmm(dw_VE, d_CV.T, h_CE, out_dtype=torch.float32, out=dw_VE)
    else:
        dw_VE += (d_CV.T @ h_CE).float()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Weighted cross-entropy of a linear projection; gradients are made in the forward pass, logits never kept."""

    @staticmethod
    def forward(
        ctx: Any,
        h_NE: Tensor,
        weight_VE: Tensor,
        targets_N: Tensor,
        weights_N: Tensor,
        softcap: float | None,
        options: LossConfig,
    ) -> tuple[Tensor, Tensor]:
        N, V = h_NE.size(0), weight_VE.size(0)
        chunk = max(1, min(N, CHUNK_LOGITS["cuda" if h_NE.is_cuda else "cpu"] // V))
        in_place = _by_kernel(options.kernel, h_NE)
        nll_N = torch.zeros(N, dtype=torch.float32, device=h_NE.device)
        objective_N = torch.zeros_like(nll_N)
        need_h, need_w = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dh_NE = torch.zeros_like(h_NE) if need_h else None
        # fp32: hundreds of chunks are added up here
        dw_VE = torch.zeros(weight_VE.shape, dtype=torch.float32, device=weight_VE.device) if need_w else None
        for a in range(0, N, chunk):
            b = min(a + chunk, N)
            h_CE = h_NE[a:b]
            of_chunk = _in_place if in_place else _plainly
            nll_N[a:b], objective_N[a:b], d_CV = of_chunk(
                F.linear(h_CE, weight_VE),  # no name here: a reduced copy is freed once it is fp32
                targets_N[a:b], weights_N[a:b], softcap, options, gradient=need_h or need_w,
            )  # fmt: skip
            if d_CV is None:
                continue
            if dh_NE is not None:
                dh_NE[a:b] = d_CV @ weight_VE
            if dw_VE is not None:
                _add_product(dw_VE, d_CV, h_CE)
        ctx.save_for_backward(*(t for t in (dh_NE, dw_VE) if t is not None))
        ctx.need = (need_h, need_w, weight_VE.dtype)
        ctx.mark_non_differentiable(nll_N)
        return objective_N.sum(), nll_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        upstream = grads[0]
        need_h, need_w, dtype = ctx.need
        saved = iter(ctx.saved_tensors)
        # in place: nothing else reads them, and a second backward pass is refused by autograd
        dh = next(saved).mul_(upstream) if need_h else None
        dw = next(saved).mul_(upstream).to(dtype) if need_w else None
        return dh, dw, None, None, None, None


def weighted_cross_entropy(
    h_NE: Tensor,
    weight_VE: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    softcap: float | None = None,
    options: LossConfig = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Return (what is minimised, a scalar sum in fp32; plain cross-entropy of each target [N], no gradient).

    With N = 0 the sum is 0 and its gradients are zeros, so a rank without targets still takes part in every collective.
    """
    # autograd tells `forward` of weights that want a gradient even where none is taken
    if not torch.is_grad_enabled():
        h_NE, weight_VE = h_NE.detach(), weight_VE.detach()
    return _ChunkedCrossEntropy.apply(h_NE, weight_VE, targets_N, weights_N, softcap, options)


class LossHead(nn.Linear):
    """An output projection that computes the loss itself, given targets.

    Under ZeRO-3 a weight is gathered around the call of the module that owns it, so projection and loss are one call.
    `adopt` turns a model's own projection into this class: parameters, names and ties stay what they were.

    Attributes:
        softcap: Of the logits (Gemma 2), or None.
        rows: How many rows are tokens, where the rest is padding that takes no part in the softmax; None: all.
        options: What is added to plain cross-entropy.
    """

    softcap: float | None = None
    rows: int | None = None
    options: LossConfig = PLAIN

    @classmethod
    def adopt(cls, head: nn.Module, softcap: float | None, rows: int | None = None) -> None:
        """Give `head` this class in place."""
        if type(head) is not nn.Linear:
            raise UserError(
                f"the output projection of this model is a {type(head).__name__}, not a plain Linear, so its loss would be computed "
                "wrongly; use one of the Llama, Qwen, Mistral, Gemma or a similar family"
            )
        head.__class__ = cls
        head.softcap = softcap  # type: ignore[assignment]
        head.rows = rows  # type: ignore[assignment]

    def forward(
        self, hidden: Tensor, targets_N: Tensor | None = None, weights_N: Tensor | None = None
    ) -> Any:  # type: ignore[override]
        """Logits without targets (generation); (what is minimised, loss of each target) with them."""
        if targets_N is None or weights_N is None:
            return super().forward(hidden)
        weight = self.weight if self.rows is None else self.weight[: self.rows]
        if (
            self.bias is not None
        ):  # one more column, of ones (Phi 1 and 2): rare, so a copy of the matrix is in order
            bias = self.bias if self.rows is None else self.bias[: self.rows]
            weight = torch.cat([weight, bias[:, None]], dim=1)
            hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)
        return weighted_cross_entropy(hidden, weight, targets_N, weights_N, self.softcap, self.options)
