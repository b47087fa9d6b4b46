"""Trading computation for memory inside the model: activation checkpointing, its offload, tiled feed-forward layers; compiling.

All of it acts on the repeated layers of a Hugging Face model (`GradientCheckpointingLayer`), before the engine is made.
None of it changes a gradient by more than rounding.

Shapes: T tokens of the micro-batch, E model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from sft_dist.core.errors import UserError

Checkpointing = bool | int | Literal["selective"]

# Matrix products of which a selective checkpoint keeps every second result (the others cost little more than reading).
PRODUCTS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default}

# Kinds of layers (windows, gates) x with and without gradients x one token, few, many: 6 were seen for Gemma 3; dynamo's own
# limit is 8.
RECOMPILE_LIMIT = 32


def layers(hf: nn.Module) -> Iterator[nn.Module]:
    """Yield the repeated layers of a model, in order."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return (m for m in hf.modules() if isinstance(m, GradientCheckpointingLayer))


def checkpoint_layers(hf: Any, mode: Checkpointing) -> None:
    """Recompute activations of layers in the backward pass instead of keeping them.

    Args:
        hf: A Hugging Face model.
        mode: False keeps everything. True keeps the input of each layer only, a number k does so in every k-th layer.
            "selective" works in every layer too, but keeps attention and every second matrix product
            (arXiv 2205.05198 keeps by cost in the same spirit), so that little is computed again.

    Raises:
        UserError: For a model without such layers.
    """
    if mode is False:
        return
    run = partial(checkpoint, use_reentrant=False)
    if mode == "selective":
        run = partial(run, context_fn=_selective)
    found = list(layers(hf))
    if not found:
        raise UserError(
            f"{type(hf).__name__} has no layers that can be checkpointed, so memory would not fall; "
            "use model.gradient_checkpointing=false"
        )
    every = mode if isinstance(mode, int) else 1  # True is 1
    hf._set_gradient_checkpointing(  # noqa: SLF001  the only way in that takes a function
        enable=True, gradient_checkpointing_func=run
    )
    for i, layer in enumerate(found):
        layer.gradient_checkpointing = i % every == 0  # type: ignore[assignment]


def offload_layer_inputs(hf: nn.Module) -> None:
    """Keep what `checkpoint_layers` keeps, the inputs of layers, in host memory until the backward pass.

    Copies out overlap with the layer (a stream of their own, pinned memory); copies back wait.
    """
    for layer in layers(hf):
        if layer.gradient_checkpointing:
            run: Any = layer._gradient_checkpointing_func  # noqa: SLF001  as above
            layer._gradient_checkpointing_func = partial(_with_inputs_on_host, run)  # type: ignore[assignment]  # noqa: SLF001


def tile_mlp(hf: nn.Module, tiles: int) -> None:
    """Run every feed-forward layer on `tiles` slices of the tokens, each recomputed in the backward pass.

    Only one slice's inner activations live at a time (arXiv 2506.13996). The number of slices is fixed, whatever T is:
    ranks must run the same calls. Under ZeRO-3 the layer is gathered as one (model.load), so no slice gathers anew.

    Raises:
        UserError: For a model without plain feed-forward layers, such as a mixture of experts.
    """
    found: list[Any] = [
        layer.mlp for layer in layers(hf) if isinstance(getattr(layer, "mlp", None), nn.Module)
    ]
    if not found or any(hasattr(mlp, "experts") or hasattr(mlp, "router") for mlp in found):
        raise UserError(
            f"{type(hf).__name__} has no plain feed-forward layers (mixtures of experts route each token by itself), "
            "so model.mlp_tiles cannot tile them; use model.mlp_tiles=1"
        )
    for mlp in found:
        mlp.forward = partial(_tiled, mlp.forward, tiles)


def compile_layers(hf: nn.Module, backend: str = "inductor") -> None:
    """Compile the forward pass of each layer, for any number of tokens: equal layers share one compilation.

    What surrounds the forward pass (gathering by ZeRO-3, recomputation) stays outside, in Python. A layer that would be
    compiled more than `RECOMPILE_LIMIT` times ends the run: dynamo would go on without compiling, and say nothing.
    """
    import torch._dynamo

    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT  # noqa: SLF001  the name under which it is documented
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # noqa: SLF001
    for layer in layers(hf):
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)


def _tiled(forward: Callable[[Tensor], Tensor], tiles: int, x_1TE: Tensor) -> Tensor:
    parts = x_1TE.tensor_split(tiles, dim=-2)
    if torch.is_grad_enabled():
        forward = partial(checkpoint, forward, use_reentrant=False)
    return torch.cat([forward(part) for part in parts], dim=-2)


def _selective() -> Any:
    seen = {False: 0, True: 0}  # products so far, in the forward pass and in the recomputation

    def policy(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
        if operation in PRODUCTS:
            seen[context.is_recompute] += 1
            keep = seen[context.is_recompute] % 2 == 1
        else:
            name = str(operation)
            keep = "attention" in name or "attn" in name
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def _with_inputs_on_host(run: Callable[..., Any], layer: Callable[..., Any], *inputs: Any) -> Any:
    # inside `run` other hooks act; only the inputs themselves are saved under these
    with torch.autograd.graph.saved_tensors_hooks(_to_host, _to_device):
        return run(layer, *inputs)


def _to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    if not tensor.is_cuda:
        return tensor.device, host.copy_(tensor)
    stream = _copy_stream(tensor.device)
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    with torch.cuda.stream(stream):
        host.copy_(tensor, non_blocking=True)
    tensor.record_stream(stream)  # its memory is not given to others before the copy is done
    return tensor.device, host


def _to_device(saved: tuple[torch.device, Tensor]) -> Tensor:
    device, host = saved
    if device.type == "cuda":
        torch.cuda.current_stream(device).wait_stream(_copy_stream(device))
    return host.to(device, non_blocking=True)


_streams: dict[torch.device, Any] = {}


def _copy_stream(device: torch.device) -> Any:
    return _streams.setdefault(device, torch.cuda.Stream(device))
