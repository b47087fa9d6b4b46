"""Layers with state in a packed row: each document begins anew.

In: the skeleton or the loaded model, and where the documents of the current row lie. Out: the same model, whose layers with
state see one document at a time.

A layer with state (a causal convolution, a recurrence over the tokens) reads what came before in the row, so the end of one
document would leak into the next. The slow twin calls such a layer once for each document: exact for any layer, on any device. The
fast path (recurrent_kernels.py) hands the borders to the layer's kernels, where they take them.

Shapes: T tokens of the row, S documents.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sft_dist.core.errors import UserError
from sft_dist.model import recurrent_kernels
from sft_dist.model.activation_memory import layers
from sft_dist.model.recurrent_kernels import HANDED_DOWN, Borders


class Kind(NamedTuple):
    """One kind of layer with state.

    Attributes:
        title: What the field calls it.
        kernels: What transformers calls in such a layer (`KERNELS` of recurrent_kernels.py); empty: no kernel, so that each
            document is always run alone.
    """

    title: str
    kernels: tuple[str, ...] = ()


CONVOLUTION = ("causal_conv1d_fn",)
DELTA = Kind("gated delta net", ("chunk_gated_delta_rule", *CONVOLUTION))
KDA = Kind("Kimi delta attention", ("chunk_kda", *CONVOLUTION))
MAMBA1 = Kind("Mamba", ("selective_scan_fn", "mamba_inner_fn", *CONVOLUTION))
MAMBA2 = Kind("Mamba-2", ("mamba_chunk_scan_combined", "mamba_split_conv1d_scan_combined", *CONVOLUTION))
SHORT = Kind("short convolution", CONVOLUTION)

# how the name of a layer's class ends -> what it is; one entry adds a kind of layer; a new word in a config's
# `layer_types` also goes into `KNOWN_LAYERS` of model/support.py
LAYERS: dict[str, Kind] = {
    "GatedDeltaNet": DELTA,
    "DeltaAttention": KDA,
    "JambaMambaMixer": MAMBA1,
    "ZambaMambaMixer": MAMBA1,
    "FalconMambaMixer": MAMBA1,
    "Zamba2MambaMixer": MAMBA2,
    "MambaMixer": MAMBA1,
    "BambaMixer": MAMBA2,
    "FalconH1Mixer": MAMBA2,
    "MambaLayer": MAMBA2,
    "Mamba2Mixer": MAMBA2,
    "ShortConv": SHORT,
    "ShortConvolution": SHORT,
    "PLELayer": SHORT,
    "NGramEmbedding": Kind("n-gram embedding"),
    "CCAProjection": SHORT,
    "LightningAttention": Kind("lightning attention"),
    "RecurrentBlock": Kind("gated linear recurrent unit"),
    "RwkvSelfAttention": Kind("RWKV time mixing"),
    "RwkvFeedForward": Kind("RWKV channel mixing"),
    "xLSTMBlock": Kind("xLSTM"),
    "xLSTMLayer": Kind("xLSTM"),
}

# how the name of a class ends whose attention looks replaceable and is not: an indexer picks the keys, a bias or a mask of its own
# is added, or keywords are not handed down
BY_ITSELF = (
    "Indexer", "DogeAttention", "NemotronAttention", "StableLmAttention", "InklingAttention", "Inkling2SlidingAttention", "Inkling2FullAttention",
    "Inkling2LoopSlidingAttention", "Inkling2LoopFullAttention",
)  # fmt: skip

# arguments that hold something for each token, beside the first -> where the tokens lie
TOKENS_AT = {
    "input_ids": 1, "position_ids": -1, "dynamic_input": 1, "position_embeddings": -2, "attention_mask": 1, "conv_mask": 1,
    "alibi": -1, "position_bias": -1, "prev_topk_indices": 1, "residual": 1, "relative_distance": -1,
    "key_hidden_states": 1, "value_hidden_states": 1,
}  # fmt: skip
SQUARE = {"attention_mask", "relative_distance"}  # [.., T, T]


def kind_of(module: nn.Module) -> Kind | None:
    """Return what kind of layer with state a module is, or None."""
    name = type(module).__name__
    found = [end for end in LAYERS if name.endswith(end)]
    return LAYERS[max(found, key=len)] if found else None


def layers_with_state(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost layers with state by name.

    Raises:
        UserError: For a convolution over the tokens in a layer that this file does not know.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if kind_of(module) is not None:
            found[name] = module
        elif any(isinstance(child, nn.Conv1d) for child in module.children()):
            raise UserError(
                f"{type(module).__name__} convolves along the row and is no layer that is known here, so packed documents would see "
                "one another; use another family"
            )
    return found


def own_attention(model: nn.Module) -> dict[str, nn.Module]:
    """Return the outermost attention modules by name of a model with attention that no backend can replace; else nothing.

    Replaceable is what asks the public registry of transformers for its attention function and hands down its keywords.
    """
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module).__name__.endswith("Attention") and not any(name.startswith(f"{n}.") for n in found):
            found[name] = module
    alone = any(type(m).__name__.endswith(BY_ITSELF) for m in model.modules())
    return found if alone or not all(_asks_registry(m) for m in found.values()) else {}


def _asks_registry(attention: nn.Module) -> bool:
    forward = inspect.unwrap(type(attention).forward)
    return "ALL_ATTENTION_FUNCTIONS" in forward.__code__.co_names or kind_of(attention) is not None


def keep_apart(
    modules: Iterable[nn.Module], borders: Borders, *, fast: Iterable[nn.Module] = (), device: str = "cpu"
) -> None:
    """Let modules begin anew at every document of the row, in place.

    Args:
        modules: What sees one document of the row at a time.
        borders: Of the model; `borders.by_kernel` chooses between the two ways at each call.
        fast: Those of `modules` that have a fast path too.
        device: Where the kernels run.
    """
    borders.layers = list(fast)
    with_kernels = {id(m) for m in borders.layers}
    rows = recurrent_kernels.WholeRows(device, borders)
    for module in modules:
        kind = kind_of(module)
        kernels = kind.kernels if kind else ()
        alone = partial(_each_alone, recurrent_kernels.by_document(module, kernels), borders)
        if id(module) in with_kernels:
            module.forward = partial(_either, rows.of(module, kernels), alone, borders)
        else:
            module.forward = alone


def keep_for_recomputation(hf: nn.Module, borders: Borders) -> None:
    """Let the backward pass compute a layer again with the borders that its forward pass had, in place."""
    for layer in layers(hf):
        if getattr(layer, "gradient_checkpointing", False):
            run: Any = layer._gradient_checkpointing_func  # noqa: SLF001  the only way in that takes a function
            layer._gradient_checkpointing_func = partial(_as_before, run, borders)  # type: ignore[assignment]  # noqa: SLF001


def _as_before(run: Callable[..., Any], borders: Borders, layer: Callable[..., Any], *inputs: Any) -> Any:
    row = borders.row

    def again(*inputs: Any) -> Any:
        borders.row = row
        return layer(*inputs)

    return run(again, *inputs)


def _either(
    whole: Callable[..., Any], alone: Callable[..., Any], borders: Borders, *positional: Any, **named: Any
) -> Any:
    return (whole if borders.by_kernel else alone)(*positional, **named)


@torch.compiler.disable
def _each_alone(forward: Callable[..., Any], borders: Borders, *positional: Any, **named: Any) -> Any:
    """Call a module once for each document of the row and put the results together."""
    parameters = inspect.signature(forward).parameters
    arguments = {**dict(zip(parameters, positional, strict=False)), **named}
    first = next(iter(parameters))
    assert borders.row is not None, "the borders of a row are set before its forward pass"
    lengths = list(borders.row.lengths)
    assert sum(lengths) == arguments[first].size(1), (
        f"a row of {arguments[first].size(1)} tokens with documents of {lengths}"
    )
    cut = {
        n: _cut(n, x, lengths, dim=1 if n == first else TOKENS_AT.get(n))
        for n, x in arguments.items()
        if n not in HANDED_DOWN
    }
    return _joined([forward(**{n: parts[i] for n, parts in cut.items()}) for i in range(len(lengths))])


class _Parts(list):  # type: ignore[type-arg]
    """Results that differ in shape from document to document, on their way to the next layer."""


def _cut(name: str, value: Any, lengths: list[int], *, dim: int | None) -> list[Any]:
    """Return what each document gets of an argument.

    Raises:
        UserError: For a tensor that nothing here knows how to cut.
    """
    if isinstance(value, _Parts):
        return value
    if isinstance(value, Tensor) and value.ndim:
        if dim is None:
            raise UserError(
                f"a layer is handed {name}, and nothing here knows how to cut that at the borders of documents, so it cannot be trained "
                "packed; use another family"
            )
        if name in SQUARE and value.size(-1) == value.size(-2) == sum(
            lengths
        ):  # what a document sees of itself
            ends = list(itertools.accumulate(lengths))
            return [value[..., b - n : b, b - n : b] for n, b in zip(lengths, ends, strict=True)]
        return (
            list(value.split(lengths, dim=dim)) if value.size(dim) == sum(lengths) else [value] * len(lengths)
        )
    if isinstance(value, tuple):
        return list(zip(*(_cut(name, x, lengths, dim=dim) for x in value), strict=True)) or [value] * len(
            lengths
        )
    if isinstance(value, dict):
        cut = {key: _cut(name, x, lengths, dim=dim) for key, x in value.items()}
        return [{key: parts[i] for key, parts in cut.items()} for i in range(len(lengths))]
    return [value] * len(lengths)


def _joined(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        alike = {(r.ndim, r.size(0), *r.shape[2:]) for r in results}
        return torch.cat(results, dim=1) if len(alike) == 1 else _Parts(results)
    if isinstance(results[0], (tuple, list)):
        return tuple(_joined(list(part)) for part in zip(*results, strict=True))
    return results[0] if all(r is results[0] for r in results) else None
