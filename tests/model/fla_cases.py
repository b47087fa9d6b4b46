"""The kernels of flash-linear-attention in Triton's interpreter beside those in plain torch: `fla_cases.py OUT.json`.

Once: `pip install --no-deps --target DIR fla-core einops`; then with PYTHONPATH=DIR and TRITON_INTERPRET=1. Not into the environment of the tests:
transformers would call the kernels on a CPU.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton.language as tl
from torch import Tensor
from triton.runtime import autotuner

warnings.filterwarnings("ignore")


class Index(int):
    """The interpreter counts loops in Python's own numbers; kernels cast the counters, as they may."""

    def to(self, dtype: Any) -> Any:
        return tl.full([], int(self), dtype)


def one_config(of_triton: Callable[..., None]) -> Callable[..., None]:
    """Leave nothing to tune: that asks for a device."""

    def init(self: Any, fn: Any, names: Any, configs: list[Any], *rest: Any, **named: Any) -> None:
        of_triton(self, fn, names, configs[:1], *rest, **named)

    return init


autotuner.Autotuner.__init__ = one_config(autotuner.Autotuner.__init__)

import reference_kernels  # noqa: E402
from fla.ops.common import chunk_delta_h  # noqa: E402

from sft_dist.model import recurrent_kernels  # noqa: E402

chunk_delta_h.range = lambda *ends: map(Index, range(*ends))
T, H, V, D = 150, 1, 2, 16  # tokens; heads of keys and of values; their size
CU = torch.tensor([0, 7, 90, T], dtype=torch.int32)


def inputs(name: str) -> tuple[list[Tensor], dict[str, Any]]:
    torch.manual_seed(0)
    if name == "causal_conv1d_fn":
        return [torch.randn(1, D, T), torch.randn(D, 4)], {"activation": "silu"}
    heads = H if name == "chunk_gated_delta_rule" else V
    decay = torch.rand(1, T, V) if name == "chunk_gated_delta_rule" else torch.rand(1, T, V, D)
    q, k, v = torch.randn(1, T, heads, D), torch.randn(1, T, heads, D), torch.randn(1, T, V, D)
    return [q, k, v, -decay, torch.rand(1, T, V)], {"use_qk_l2norm_in_kernel": True}


def results(kernel: Callable[..., Any], name: str, borders: dict[str, Tensor]) -> list[Tensor]:
    """Return what a kernel gives, and the gradients."""
    tensors, options = inputs(name)
    leaves = [x.requires_grad_() for x in tensors]
    out = kernel(*leaves, **options, **borders)
    out = out[0] if isinstance(out, tuple) else out
    return [out, *torch.autograd.grad((out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), leaves)]


def case(name: str) -> list[float]:
    """Return the largest difference of the result and of each gradient, over the largest value."""
    source = next(s for s in recurrent_kernels.KERNELS[name].sources if s.module.startswith("fla."))
    kernels = dict(recurrent_kernels.KERNELS)
    here = kernels[name]._replace(sources=(source._replace(device="cpu"),))
    recurrent_kernels.KERNELS[name] = here
    found = recurrent_kernels.find(name, "cpu")
    assert isinstance(found, recurrent_kernels.Found), found
    recurrent_kernels.KERNELS[name] = kernels[name]
    own = getattr(reference_kernels, source.function)
    own = source.adapt(own) if source.adapt else own
    pairs = zip(*(results(k, name, {source.borders: CU}) for k in (found.call, own)), strict=True)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in pairs]


if __name__ == "__main__":
    found = {}
    for name in sys.argv[2:]:
        found[name] = case(name)
        print(name, found[name], flush=True)
    Path(sys.argv[1]).write_text(json.dumps(found))
