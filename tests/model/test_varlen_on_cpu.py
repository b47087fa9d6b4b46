"""The backend that GPUs get by default, over CPU kernels: equal to the slow twin, and what torch.library asks of an operator."""

from __future__ import annotations

import pytest
import torch
import varlen_on_cpu
from torch.nn.attention import varlen as of_torch

from sft_dist.model import backends


@pytest.fixture(autouse=True)
def kernels() -> None:
    varlen_on_cpu.register()


@pytest.mark.parametrize("window", [None, 3])
def test_equal_to_the_slow_twin(window: int | None) -> None:
    cu = torch.tensor([0, 3, 4, 11], dtype=torch.int32)
    got = []
    for attend in (backends.varlen, backends.sdpa_dense):
        g = torch.Generator().manual_seed(0)
        leaves = [torch.randn(1, n, 11, 16, generator=g, requires_grad=True) for n in (4, 2, 2)]
        out, _ = attend(
            None, *leaves, None, scaling=0.3, cu_seq_lens_q=cu, max_length_q=7,
            sliding_window=window,
        )  # fmt: skip
        (out * torch.linspace(0, 1, out.numel()).view(out.shape)).sum().backward()
        got.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, twin in zip(*got, strict=True):
        torch.testing.assert_close(ours, twin, rtol=0, atol=3e-6)


def test_the_operator_is_what_it_says() -> None:
    """Schema, registration for autograd, and the fake kernel that torch.compile traces."""
    leaves = [torch.randn(11, n, 16, requires_grad=True) for n in (4, 2, 2)]
    cu = torch.tensor([0, 3, 4, 11], dtype=torch.int32)
    torch.library.opcheck(
        of_torch._varlen_attn,
        (*leaves, cu, cu, 7, 7, True, 0.3, [-1, 0], True),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
