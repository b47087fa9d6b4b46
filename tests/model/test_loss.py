"""The chunked loss equals plain cross-entropy, forward and backward, whatever the chunk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sft_dist.config.train import LossConfig
from sft_dist.core.errors import UserError
from sft_dist.model import loss


def inputs(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    h = torch.randn(n, 16, generator=g).to(dtype).requires_grad_()
    w = torch.randn(50, 16, generator=g).to(dtype).requires_grad_()
    return h, w, torch.randint(50, (n,), generator=g), torch.rand(n, generator=g)


def plain(
    h: Tensor,
    w: Tensor,
    t: Tensor,
    weights: Tensor,
    softcap: float | None,
    options: LossConfig = loss.PLAIN,
) -> Tensor:
    """The formula as the papers write it: all logits, torch's own cross-entropy and smoothing, autograd."""
    logits = F.linear(h, w).float()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    ce = F.cross_entropy(logits, t, reduction="none", label_smoothing=options.label_smoothing)
    if options.dft:
        ce = ce * logits.softmax(dim=-1).gather(1, t[:, None]).squeeze(1).detach()
    return ((ce + options.z_loss * torch.logsumexp(logits, dim=-1) ** 2) * weights).sum()


OPTIONS = {
    "plain": LossConfig(),
    "label_smoothing": LossConfig(label_smoothing=0.1),
    "z_loss": LossConfig(z_loss=0.01),
    "dft": LossConfig(dft=True),
    "all": LossConfig(label_smoothing=0.1, z_loss=0.01, dft=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_equal_to_the_plain_formula(
    monkeypatch: pytest.MonkeyPatch, chunk: int, softcap: float | None, options: LossConfig
) -> None:
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 50 * chunk)
    h, w, t, weights = inputs(20)
    total, nll = loss.weighted_cross_entropy(h, w, t, weights, softcap, options)
    (total * 3.0).backward()  # an upstream factor, as the algebra has
    ours = (total.detach(), h.grad.clone(), w.grad.clone())
    h.grad = w.grad = None
    reference = plain(h, w, t, weights, softcap, options)
    (reference * 3.0).backward()
    for a, b in zip(ours, (reference.detach(), h.grad, w.grad), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-5
    torch.testing.assert_close((nll * weights).sum(), plain(h, w, t, weights, softcap).detach())


@pytest.mark.parametrize("name", [n for n in OPTIONS if n != "plain"])
def test_every_option_changes_what_is_minimised(name: str) -> None:
    h, w, t, weights = inputs(20)
    totals = [loss.weighted_cross_entropy(h, w, t, weights, None, o)[0] for o in (loss.PLAIN, OPTIONS[name])]
    assert float((totals[0] - totals[1]).abs().detach()) > 0.01


def test_no_targets_give_zero_and_zero_gradients() -> None:
    h, w, t, weights = inputs(0)
    total, nll = loss.weighted_cross_entropy(h, w, t, weights)
    total.backward()
    assert total.item() == 0.0
    assert nll.shape == (0,)
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_a_frozen_weight_gets_no_gradient() -> None:
    h, w, t, weights = inputs(5)
    w.requires_grad_(False)
    loss.weighted_cross_entropy(h, w, t, weights)[0].backward()
    assert w.grad is None
    assert h.grad.abs().sum() > 0


def test_without_gradients_none_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A held-out loss would else pay twice the products and an fp32 copy of the projection."""
    h, w, t, weights = inputs(5)
    wanted: list[bool] = []
    forward = loss._ChunkedCrossEntropy.forward

    def watched(ctx: Any, *inputs: Any) -> Any:
        wanted.extend(ctx.needs_input_grad)
        return forward(ctx, *inputs)

    monkeypatch.setattr(loss._ChunkedCrossEntropy, "forward", staticmethod(watched))
    with torch.no_grad():
        _, nll = loss.weighted_cross_entropy(h, w, t, weights)
    assert not any(wanted)
    torch.testing.assert_close(nll, loss.weighted_cross_entropy(h, w, t, weights)[1])


def test_bfloat16_stays_close_and_keeps_dtypes() -> None:
    h, w, t, weights = inputs(20, torch.bfloat16)
    total, _ = loss.weighted_cross_entropy(h, w, t, weights)
    total.backward()
    assert (h.grad.dtype, w.grad.dtype, total.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    h32, w32 = (x.detach().float().requires_grad_() for x in (h, w))
    plain(h32, w32, t, weights, None).backward()
    assert float((w.grad.float() - w32.grad).norm() / w32.grad.norm()) < 1e-2  # bf16 keeps 8 bits


def test_a_head_keeps_its_parameters_and_still_makes_logits() -> None:
    head = nn.Linear(16, 50, bias=False)
    weight = head.weight
    loss.LossHead.adopt(head, None)
    h, _, t, weights = inputs(4)
    assert head.weight is weight
    torch.testing.assert_close(head(h), F.linear(h, weight))
    torch.testing.assert_close(head(h, t, weights)[0], plain(h, weight, t, weights, None))


def test_a_bias_and_padded_rows_of_the_head_are_part_of_the_loss() -> None:
    torch.manual_seed(0)
    head, hidden = torch.nn.Linear(8, 12), torch.randn(5, 8)
    targets, weights = torch.tensor([1, 0, 9, 3, 3]), torch.tensor([1.0, 2.0, 0.5, 0.0, 1.0])
    plain = (F.cross_entropy(head(hidden)[:, :10], targets, reduction="none") * weights).sum()
    wanted = torch.autograd.grad(plain, list(head.parameters()))
    loss.LossHead.adopt(head, None, 10)
    total, _ = head(hidden, targets, weights)
    torch.testing.assert_close(total, plain)
    for ours, theirs in zip(torch.autograd.grad(total, list(head.parameters())), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_kernel_is_the_plain_path(tmp_path: Path) -> None:
    """Triton's interpreter runs the kernel on a CPU: every branch, blocks that are not full, both dtypes."""
    pytest.importorskip("triton")
    out = tmp_path / "errors.json"
    env = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("kernel_cases.py")), str(out)], check=True, env=env
    )
    errors = json.loads(out.read_text())
    assert len(errors) == 6
    for case, by_part in errors.items():
        # fp32: other orders of summation. bf16: the interpreter cuts bits off where hardware rounds, 2^-8 of each element
        tolerance = 1e-5 if "float32" in case else 6e-3
        assert max(by_part.values()) < tolerance, (case, by_part)


def test_a_kernel_that_cannot_be_built_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "_has_triton", lambda: False)
    h, w, t, weights = inputs(5)
    with pytest.raises(UserError, match="loss.kernel=plain"):
        loss.weighted_cross_entropy(h, w, t, weights, None, LossConfig(kernel="triton"))
    loss.weighted_cross_entropy(h, w, t, weights, None, LossConfig(kernel="auto"))


def test_a_second_backward_pass_over_the_same_loss_is_an_error() -> None:
    h, w, t, weights = inputs(5)
    total, _ = loss.weighted_cross_entropy(h, w, t, weights)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
