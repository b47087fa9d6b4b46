"""What an export consists of: each tensor of the written files, and whether it was trained or comes from the base."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sft_dist.checkpoint.index import Index
from sft_dist.checkpoint.io import read_parameter
from sft_dist.config.model import LoraConfig, RopeScalingConfig
from sft_dist.core.errors import UserError
from sft_dist.model import adapters
from sft_dist.model import weight_files as files
from sft_dist.model.weight_files import BaseFiles, Names


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One parameter or file tensor of the export.

    Attributes:
        name: Parameter of the model; None for a tensor that is copied as it is.
        keys: Its names in the written files; several for fused experts.
        converted: Whether the files hold it otherwise than the model: in several tensors, or its rows in another order.
        trained: The tensors of the checkpoint that it is made of; empty: it comes from the base.
        base: Its name in the files of the base; None when it is wholly trained, or made of several.
        numel: Elements.
        turned: Of a weight that is no Linear and has adapters, see model.adapters.Adapted; else None.
        joined: Parameters that the files hold as one tensor, as long as `trained` and in its order; empty: `name` alone.
    """

    name: str | None
    keys: tuple[str, ...]
    trained: tuple[str, ...]
    base: str | None
    numel: int
    converted: bool = False
    turned: bool | None = None
    joined: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Base:
    """What training started from, and what was done to it before the first step.

    Attributes:
        path: Folder or hub id.
        revision: Of the hub.
        trust_remote_code: As in training.
        rope_scaling: `model.rope_scaling`.
        vocab_multiple: `model.vocab_multiple`.
        lora: The adapters that were trained, if any.
        kind: Which weights of a checkpoint are written: master, or ema.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    rope_scaling: RopeScalingConfig | None = None
    vocab_multiple: int | None = None
    lora: LoraConfig | None = None
    kind: str = "master"


def plan_export(index: Index, base: Base, model: Any, found: BaseFiles | None) -> list[Item]:
    """Return everything that is written, trained or not.

    Raises:
        UserError: When checkpoint and base do not fit together.
    """
    adapted = adapters.adapted_parameters(model, base.lora)
    trained: dict[str, list[str]] = adapters.trained_modules(index.parameters, adapted)
    trained |= {adapters.base_name(n): [n] for n in index.parameters if ".lora_" not in n}
    shapes = {n: list(p.shape) for n, p in model.named_parameters()}
    if odd := sorted(trained.keys() - shapes.keys()):
        raise UserError(
            f"the checkpoint holds {len(odd)} parameters that {base.path} does not have (first: {odd[0]}), so they are not the same "
            "model; export with the base that training started from"
        )
    names = files.match(model, found) if found else Names(key_of={}, fused={}, unused=[])
    tied = files.aliases(model)
    second_first = sorted(names.key_of.items(), key=lambda pair: pair[0] not in tied)
    keys_of = {tied.get(n, n): k for n, k in second_first if tied.get(n, n) in shapes}
    turned = {a.weight: a.turned for a in adapted.values()}
    items = _joined(
        [
            _trained_item(model, n, tuple(t), keys_of.get(n), index, shapes, turned.get(n))
            for n, t in trained.items()
        ]
    )
    frozen = [n for n in shapes if n not in trained]
    if absent := [n for n in frozen if n not in keys_of and n not in names.fused]:
        raise UserError(
            f"{len(absent)} parameters are neither in the checkpoint nor in safetensors files of {base.path} (first: {absent[0]}), so "
            "the export would lack them; export with the base that training started from"
        )
    kept = {keys_of[n]: n for n in frozen if n in keys_of} if found else {}
    for n in frozen:
        kept |= dict.fromkeys(names.fused.get(n, ()), n)
    buffers = [k for n, k in names.key_of.items() if n not in shapes and n not in tied]
    for key in [*kept, *buffers, *names.unused]:
        assert found is not None
        numel = math.prod(found.slice(key).get_shape())
        items.append(Item(name=kept.get(key), keys=(key,), trained=(), base=key, numel=numel))
    return items


def _joined(items: list[Item]) -> list[Item]:
    """Return the items, those that the files hold as one tensor made one."""
    by_keys: dict[tuple[str, ...], list[Item]] = {}
    for item in items:
        by_keys.setdefault(item.keys, []).append(item)
    return [
        parts[0]
        if len(parts) == 1
        else Item(
            name=parts[0].name,
            keys=keys,
            trained=tuple(t for p in parts for t in p.trained),
            base=None,
            numel=sum(p.numel for p in parts),
            joined=tuple(str(p.name) for p in parts),
        )
        for keys, parts in by_keys.items()
    ]


def _trained_item(
    model: Any,
    name: str,
    trained: tuple[str, ...],
    key: str | None,
    index: Index,
    shapes: dict[str, list[int]],
    turned: bool | None,
) -> Item:
    adapted = ".lora_" in trained[0]
    shape = shapes[name] if adapted else index.parameters[trained[0]]
    if adapted and turned is None and key is None:
        raise UserError(
            f"{name} was adapted, but the files of the base do not hold it as one tensor, so it cannot be merged; "
            "export with lora.export=adapter"
        )
    return Item(
        name=name,
        keys=(key,) if key else tuple(_apart_names(model, name, shape)),
        trained=trained,
        base=key if adapted and turned is None else None,
        numel=math.prod(shape),
        converted=key is None,
        turned=turned if adapted else None,
    )


def tensors_of(
    checkpoint: Path, index: Index, base: Base, model: Any, found: BaseFiles | None, item: Item
) -> dict[str, Tensor]:
    """Return the tensors of an item by their names in the written files, trained ones in fp32."""
    if item.turned is not None:
        assert found is not None and base.lora is not None and item.name is not None  # noqa: PT018
        shape = tuple(model.get_parameter(item.name).shape)
        update = adapters.update_of(shape, item.turned, _read(checkpoint, index, base, item), base.lora)
        return {key: found.tensor(key).float() + part for key, part in _apart(model, item, update).items()}
    if item.joined:
        read = zip(item.joined, item.trained, strict=True)
        return _reverted(model, {n: read_parameter(checkpoint, index, t, base.kind) for n, t in read})
    if item.base is None:
        return _apart(model, item, read_parameter(checkpoint, index, item.trained[0], base.kind))
    assert found is not None
    value = found.tensor(item.base)
    if item.trained:
        assert base.lora is not None
        value = adapters.merged(value, _read(checkpoint, index, base, item), base.lora)
    return {item.keys[0]: value}


def _read(checkpoint: Path, index: Index, base: Base, item: Item) -> dict[str, Tensor]:
    return {n: read_parameter(checkpoint, index, n, base.kind) for n in item.trained}


def _apart(model: Any, item: Item, value: Tensor) -> dict[str, Tensor]:
    """Return a parameter as the tensors that files of this family hold."""
    assert item.name is not None
    return _reverted(model, {item.name: value}) if item.converted else {item.keys[0]: value}


def _apart_names(model: Any, name: str, shape: Sequence[int]) -> list[str]:
    return list(_reverted(model, {name: torch.empty(shape, device="meta")}))


def _reverted(model: Any, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters as the tensors that files of this family hold."""
    from transformers.core_model_loading import revert_weight_conversion

    found: dict[str, Tensor] = revert_weight_conversion(model, parameters)
    return found
