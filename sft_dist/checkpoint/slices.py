"""The optimizer's state of this rank as named slices of flat parameters, whatever the ZeRO stage and world size.

A slice is (parameter name, offset in the flattened parameter, live fp32 views of master weight and optimizer state).
Trainable parameters only: frozen ones are those of the model that training started from.
Saving writes the slices of every rank; loading fills the slices of every rank from whichever files overlap them. So a
checkpoint has no world size, and resharding is reading. Only this file knows where DeepSpeed keeps its tensors;
tests compare it with DeepSpeed's own checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sft_dist.model.trainable import shape_of

PREFIX = "hf."  # of the model inside model.packed.PackedLM


class ParameterSlice(NamedTuple):
    """Elements `start .. start+length-1` of the flattened parameter `name`, as live views by kind."""

    name: str
    shape: tuple[int, ...]
    start: int
    length: int
    views: dict[str, Tensor]


def local_slices(engine: Any) -> Iterator[ParameterSlice]:
    """Yield the slices that this rank owns; over all ranks they cover every trainable parameter exactly once.

    Call `allocate_states` first: Adam's moments do not exist before the first step.
    """
    stage = engine.zero_optimization_stage()
    read: Callable[[Any, str, Any], ParameterSlice | None] = (
        _stage3 if stage == 3 else _stage12 if stage else _stage0
    )
    for name, parameter in _by_group(engine):
        if piece := read(engine, name.removeprefix(PREFIX), parameter):
            yield piece


def parameter_shapes(engine: Any) -> dict[str, tuple[int, ...]]:
    """Return the full shape of every trainable parameter."""
    return {
        name.removeprefix(PREFIX): shape_of(p)
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    }


def allocate_states(engine: Any) -> None:
    """Create the states that the optimizer makes at its first step (config/optimizers.py), with step 0."""
    optimizer = torch_optimizer(engine)
    groups = optimizer.param_groups
    of_tensor = {id(p): g for g in groups for p in g["params"]}
    for i, flat in enumerate(_flat_tensors(engine)):
        state = optimizer.state[flat]
        # ZeRO-3 lends the optimizer one flat tensor at a time; under ZeRO all groups have the same states
        group = of_tensor.get(id(flat), groups[0])
        if all(name in state for name in group["states"]):
            continue
        with _resident(engine, i):
            if group["counts_steps"]:
                on_device = group.get("fused") or group.get("capturable")
                state["step"] = torch.zeros((), device=flat.device if on_device else "cpu")
            for name in group["states"]:
                state[name] = torch.zeros_like(flat)


def states_of(engine: Any) -> dict[str, tuple[str, ...]]:
    """Return the kinds of tensors that are kept of every trainable parameter besides its master weight."""
    groups = torch_optimizer(engine).param_groups
    of_tensor = {id(p): g["states"] for g in groups for p in g["params"]}
    # an average of the weights lies among the states (train/ema.py), of all of them or of none
    average = ("ema",) if any("ema" in state for _, state in flat_states(engine)) else ()
    return {
        name.removeprefix(PREFIX): (*of_tensor.get(id(p), groups[0]["states"]), *average)
        for name, p in engine.module.named_parameters()
        if p.requires_grad
    }


def flat_states(engine: Any) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield this rank's fp32 weights as the optimizer holds them, flat or whole, each with its states."""
    states = torch_optimizer(engine).state
    return ((flat, states[flat]) for flat in _flat_tensors(engine))


def optimizer_step(engine: Any) -> int:
    """Return the number of updates that Adam has applied (skipped steps do not count)."""
    states = torch_optimizer(engine).state.values()
    return max((int(s["step"]) for s in states if "step" in s), default=0)


def set_optimizer_step(engine: Any, step: int) -> None:
    """Set Adam's count of updates, one tensor a state: a shared one would be counted once per sub-group."""
    for state in torch_optimizer(engine).state.values():
        if "step" in state:
            state["step"] = torch.full_like(state["step"], float(step))


def publish(engine: Any) -> None:
    """Make the forward weights equal the master weights, on every rank. Collective."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        zero = engine.optimizer
        for _, parameter in _by_group(engine):
            group, offset, length = zero.grad_position[zero.get_param_id(parameter)]
            parameter.ds_tensor.data.copy_(zero.fp32_partitioned_groups_flat[group].narrow(0, offset, length))
        small = zero.persistent_parameters  # they stay gathered: gather them anew
        if small:
            small[0].partition(small, has_been_updated=False)
        zero.invalidate_secondary_tensor()  # hpZ: the copy inside each node is stale, the next gather makes another
        if small:
            small[0].all_gather(small)
    elif stage:
        engine.optimizer.update_lp_params()


def _by_group(engine: Any) -> Iterator[tuple[str, Any]]:
    """Yield trainable parameters by name; under ZeRO-3 those of one flat tensor together, while it is in memory."""
    named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
    if engine.zero_optimization_stage() < 3:
        yield from named
        return
    zero = engine.optimizer

    def group_of(item: tuple[str, Any]) -> int:
        return zero.grad_position[zero.get_param_id(item[1])][0]

    for group, members in groupby(sorted(named, key=group_of), key=group_of):
        with _resident(engine, group):
            yield from members


@contextmanager
def _resident(engine: Any, group: int) -> Iterator[None]:
    """Hold the state of a flat tensor in memory that otherwise lies on disk (NVMe offload); changes are kept."""
    zero = engine.optimizer
    swapped = engine.zero_optimization_stage() == 3 and zero._swappable_optimizer_subgroup(group)  # noqa: SLF001  no public way
    if swapped:
        zero._optimizer_states_and_gradient_swap_in(group)  # noqa: SLF001
    yield
    if swapped:
        zero._optimizer_states_and_gradient_swap_out(group)  # noqa: SLF001


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """Return torch's optimizer inside the engine."""
    optimizer = engine.optimizer
    return optimizer if engine.zero_optimization_stage() == 0 else optimizer.optimizer


def _flat_tensors(engine: Any) -> list[Tensor]:
    return (
        [p for group in torch_optimizer(engine).param_groups for p in group["params"]]
        if engine.zero_optimization_stage() < 3
        else list(engine.optimizer.fp32_partitioned_groups_flat)
    )


def _views(flat: Tensor, state: dict[str, Tensor], offset: int, length: int) -> dict[str, Tensor]:
    """Return views of the master weight and of every state that has one element a weight (Adam's moments, a momentum)."""
    flat = flat.detach()
    elementwise = {
        k: v for k, v in state.items() if isinstance(v, Tensor) and k != "step" and v.numel() == flat.numel()
    }
    return {k: v.view(-1).narrow(0, offset, length) for k, v in {"master": flat, **elementwise}.items()}


def _stage3(engine: Any, name: str, parameter: Any) -> ParameterSlice | None:
    zero = engine.optimizer
    group, offset, partition = zero.grad_position[zero.get_param_id(parameter)]
    flat = zero.fp32_partitioned_groups_flat[group]
    rank = torch.distributed.get_rank(parameter.ds_process_group)
    start = rank * partition
    length = max(0, min(partition, parameter.ds_numel - start))  # the last partition is padded
    if not length:
        return None
    return ParameterSlice(
        name,
        tuple(parameter.ds_shape),
        start,
        length,
        _views(flat, zero.optimizer.state[flat], offset, length),
    )


def _stage12(engine: Any, name: str, parameter: Any) -> ParameterSlice | None:
    fragment = getattr(parameter, "_hp_mapping", None)
    if fragment is None:
        return None
    zero = engine.optimizer
    flats = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_groups_flat_partition
    flat = flats[fragment.param_group_index]
    at, length = fragment.hp_fragment_address.start, fragment.hp_fragment_address.numel
    return ParameterSlice(
        name,
        tuple(parameter.shape),
        fragment.lp_fragment_address.start,
        length,
        _views(flat, zero.optimizer.state[flat], at, length),
    )


def _stage0(engine: Any, name: str, parameter: Any) -> ParameterSlice | None:
    """Every rank holds everything; the slices of rank 0 are the ones that count."""
    state = engine.optimizer.state[parameter]
    numel = parameter.numel()
    return ParameterSlice(name, tuple(parameter.shape), 0, numel, _views(parameter, state, 0, numel))
