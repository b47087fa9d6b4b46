"""Saving memory changes no gradient, and does save: counted in tensors kept for the backward pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sft_dist.core.errors import UserError
from sft_dist.model import activation_memory

LAYERS, WIDTH, INNER, TOKENS = 4, 32, 96, 48


def model(**options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "vocab_size": 50}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, **shape, **options)).train()


def measure(hf: Any) -> tuple[Tensor, int]:
    """All gradients end to end, and the bytes that the forward pass of the decoder keeps (parameters not counted)."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.arange(TOKENS)[None] % 50
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        h = hf.model(input_ids=ids, use_cache=False).last_hidden_state
    (h * torch.linspace(0, 1, WIDTH)).sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in hf.model.parameters()])
    return gradient, sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, int]:
    return measure(model())


def changed(change: Callable[[Any], None]) -> tuple[Tensor, int]:
    hf = model()
    change(hf)
    return measure(hf)


@pytest.mark.parametrize(
    ("change", "at_most"),
    [
        (lambda hf: activation_memory.checkpoint_layers(hf, True), 0.25),
        (lambda hf: activation_memory.checkpoint_layers(hf, 2), 0.65),
        (lambda hf: activation_memory.checkpoint_layers(hf, "selective"), 0.7),
        (lambda hf: activation_memory.tile_mlp(hf, 4), 0.75),
        (lambda hf: activation_memory.tile_mlp(hf, 100), 0.75),  # more tiles than tokens: some are empty
    ],
    ids=["full", "every second", "selective", "tiles", "empty tiles"],
)
def test_gradients_stay_and_memory_falls(
    plain: tuple[Tensor, int], change: Callable[[Any], None], at_most: float
) -> None:
    gradient, kept = changed(change)
    assert float((gradient - plain[0]).norm() / plain[0].norm()) < 1e-6
    assert kept < at_most * plain[1], kept / plain[1]


def test_selective_recomputes_neither_attention_nor_every_second_product() -> None:
    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            done[str(operation)] += 1
            return operation(*args, **(kwargs or {}))

    counts = {}
    for mode in (False, True, "selective"):
        hf, done = model(), Counter()
        activation_memory.checkpoint_layers(hf, mode)
        with Count():
            measure(hf)
        counts[mode] = done
    attention = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    assert [counts[m][attention] // LAYERS for m in (False, True, "selective")] == [1, 2, 1]
    again = {m: counts[m]["aten.mm.default"] - counts[False]["aten.mm.default"] for m in (True, "selective")}
    assert again["selective"] <= again[True] / 2


def test_inputs_of_layers_wait_in_host_memory(
    plain: tuple[Tensor, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[tuple[int, ...]] = []

    def to_host(tensor: Tensor) -> Any:
        if tensor.numel():  # torch 2.11 saves an empty one for each layer
            moved.append(tuple(tensor.shape))
        return original(tensor)

    original = activation_memory._to_host
    monkeypatch.setattr(activation_memory, "_to_host", to_host)
    gradient, _ = changed(
        lambda hf: (activation_memory.checkpoint_layers(hf, True), activation_memory.offload_layer_inputs(hf))
    )
    assert float((gradient - plain[0]).norm() / plain[0].norm()) < 1e-6
    assert moved == [(1, TOKENS, WIDTH)] * LAYERS  # nothing else


@pytest.mark.gpu
def test_offload_on_a_gpu_lowers_its_memory() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    peaks, gradients = [], []
    for offload in (False, True):
        hf = model().cuda()
        activation_memory.checkpoint_layers(hf, True)
        if offload:
            activation_memory.offload_layer_inputs(hf)
        ids = torch.arange(20_000, device="cuda")[None] % 50
        torch.cuda.reset_peak_memory_stats()
        hf.model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
        gradients.append(torch.cat([p.grad.flatten() for p in hf.model.parameters()]))
    assert torch.equal(*gradients)
    assert peaks[1] < peaks[0]


def test_experts_are_not_tiled() -> None:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        hidden_size=16, intermediate_size=16, moe_intermediate_size=8, num_hidden_layers=1, vocab_size=20,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, num_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    with pytest.raises(UserError, match="mlp_tiles=1"):
        activation_memory.tile_mlp(Qwen3MoeForCausalLM(config), 2)


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointing", "backend"), [(False, "aot_eager"), (True, "inductor")])
def test_compiled_layers_give_the_same_gradient(
    plain: tuple[Tensor, int], checkpointing: bool, backend: str
) -> None:
    hf = model()
    activation_memory.checkpoint_layers(hf, checkpointing)
    torch._dynamo.utils.counters.clear()
    activation_memory.compile_layers(hf, backend)
    gradient, _ = measure(hf)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert not torch._dynamo.utils.counters["graph_break"]
    assert float((gradient - plain[0]).norm() / plain[0].norm()) < 1e-5
