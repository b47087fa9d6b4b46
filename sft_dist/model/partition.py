"""Weights straight from the files into ZeRO-3's partitions: a rank reads its own share of every parameter, no more.

transformers lets rank 0 read the whole model and broadcasts it parameter by parameter. Here nothing is sent and no rank
holds more than its share, so loading time falls with the number of ranks instead of staying what one process needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sft_dist.core.errors import UserError
from sft_dist.model.weight_files import BaseFiles, aliases, auto_class, match


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSource:
    """Where every parameter is read from.

    Attributes:
        files: The files of the base.
        key_of: Parameter or buffer, second names of tied ones too -> tensor in the files.
        missing: Parameters that no tensor becomes.
        unused: Tensors that become nothing.
    """

    files: BaseFiles
    key_of: dict[str, str]
    missing: list[str]
    unused: list[str]


def find_weights(
    path: str, model: Any, zero_config: Mapping[str, Any], revision: str | None
) -> WeightSource | None:
    """Return where partitions of a model (its skeleton) can be filled from; None where transformers has to load.

    Fused experts are for transformers to assemble; partitions that DeepSpeed keeps twice (hpZ), quantised or on NVMe are
    for DeepSpeed to write.
    """
    zero = zero_config["zero_optimization"]
    odd = (
        zero.get("zero_hpz_partition_size", 1) > 1
        or zero.get("zero_quantized_weights")
        or (zero.get("offload_param") or {}).get("device") == "nvme"
    )
    if odd or (files := BaseFiles.find(path, revision)) is None:
        return None
    names = match(model, files)
    if names.fused:
        return None
    key_of = dict(names.key_of)
    for second, first in aliases(model).items():
        if second in key_of:
            key_of.setdefault(first, key_of[second])
    missing = sorted(n for n, _ in model.named_parameters() if n not in key_of)
    return WeightSource(files=files, key_of=key_of, missing=missing, unused=names.unused)


def only_device() -> dict[str, Any]:
    """Return the options by which zero.Init leaves the dtype of tensors alone.

    By default it gives every tensor made under it the weights' dtype, those of RoPE too: angles in bfloat16.
    """
    from deepspeed.runtime.zero.partition_parameters import DeepSpeedTensorOverride

    return {"tensor_overrides": {DeepSpeedTensorOverride.device}}


def build(config: Any, zero_config: Mapping[str, Any], dtype: torch.dtype, attn: str, **options: Any) -> Any:
    """Return a model of partitioned, uninitialised parameters. Collective. Its buffers are right."""
    from deepspeed.runtime.zero.partition_parameters import Init
    from transformers import initialization
    from transformers.modeling_utils import set_zero3_state

    class Unsent(Init):  # type: ignore[misc]
        """Cuts parameters where they are: rank 0's are as empty as all others, and need not be sent."""

        def _zero_init_param(self, param: Any) -> None:
            self._convert_to_deepspeed_param(param)
            param.partition()

    with ExitStack() as stack:
        for context in (
            initialization.no_init_weights(),
            Unsent(config_dict_or_path=dict(zero_config), **only_device()),
            set_zero3_state(),
        ):
            stack.enter_context(context)
        model = auto_class(config).from_config(config, dtype=dtype, attn_implementation=attn, **options)
    model.tie_weights()
    return model


@torch.no_grad()
def fill(model: Any, source: WeightSource) -> None:
    """Read this rank's share of every parameter, and every persistent buffer.

    Raises:
        UserError: When a tensor's shape is not that of the model.
    """
    for name, parameter in model.named_parameters():
        key = source.key_of[name]
        lazy = source.files.slice(key)
        if list(lazy.get_shape()) != list(parameter.ds_shape):
            raise UserError(
                f"{key} has shape {lazy.get_shape()} in the files and {list(parameter.ds_shape)} by the config, so this is not one "
                "model; check its config.json"
            )
        share = parameter.ds_tensor.numel()
        start = min(dist.get_rank(parameter.ds_process_group) * share, parameter.ds_numel)
        stop = min(start + share, parameter.ds_numel)
        if stop > start:
            parameter.ds_tensor.data.view(-1)[: stop - start].copy_(
                _flat(lazy, parameter.ds_numel, start, stop)
            )
    for name, buffer in model.named_buffers():
        if name in source.key_of:
            buffer.copy_(source.files.tensor(source.key_of[name]))


def _flat(lazy: Any, numel: int, start: int, stop: int) -> Tensor:
    """Return elements [start, stop) of a flattened tensor, reading only the rows that hold them."""
    row = numel // lazy.get_shape()[0]
    first = start // row
    return lazy[first : -(-stop // row)].reshape(-1)[start - first * row : stop - first * row]


def outermost(model: nn.Module, kinds: set[type[nn.Module]]) -> list[nn.Module]:
    """Return the modules of some classes that lie in no other module of those classes."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module) in kinds and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    return list(found.values())


def end_with_input(leaf: nn.Module) -> None:
    """Let the backward pass of a leaf module end with the gradient of its first input, in place.

    DeepSpeed reduces a leaf's gradients and frees its weights when the gradients of those tensors are there that it was called
    with **by position**; torch computes them last. Where none is handed over by position, or none that wants a gradient (a layer
    above frozen ones), both would happen first: gradients that are not there yet would count as zero, without a word.
    """
    _, first, *_ = inspect.signature(type(leaf).forward).parameters
    leaf.register_forward_pre_hook(partial(_hand_over, first), with_kwargs=True)


def _hand_over(
    first: str, leaf: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if not positional:
        positional, named = (named[first],), {n: x for n, x in named.items() if n != first}
    if torch.is_grad_enabled() and any(p.requires_grad for p in leaf.parameters()):
        x = positional[0]
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise UserError(
                f"the first input of {type(leaf).__name__} is no tensor of numbers, so ZeRO-3 cannot tell when its gradients are complete; "
                "use deepspeed.stage=2"
            )
        if not x.requires_grad:
            positional = (x.detach().requires_grad_(), *positional[1:])
    return positional, named
