"""Which parameters are trained: all of the text part, or what the config chooses; and what that saves in FLOPs."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from sft_dist.core.errors import UserError
from sft_dist.model.activation_memory import layers
from sft_dist.model.parts import decoder_of
from sft_dist.pack import CostModel

LAYERS = re.compile(r"layers\[(-?\d*):(-?\d*)\]")


def text_parameters(hf: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that text runs through, by name: decoder and output projection.

    An image-text model has others (vision tower, projector). Text gives them no gradient, so they stay as they are.
    """
    used = {id(p) for part in (decoder_of(hf), hf.get_output_embeddings()) for p in part.parameters()}
    return {n: p for n, p in hf.named_parameters() if id(p) in used}


def set_trainable(hf: Any, trainable: Sequence[str], freeze: Sequence[str]) -> None:
    """Set what is trained and freeze the rest, in place.

    Args:
        hf: The model.
        trainable: Parts that are trained: `embeddings`, `head`, `layers[a:b]` (a slice of the decoder's layers), or globs
            over names of parameters or modules; empty: the whole text part.
        freeze: Parts of those that stay as they are.

    Raises:
        UserError: When an entry matches nothing, or nothing is left to train.
    """
    text = text_parameters(hf)
    chosen = {id(p) for entry in trainable for p in _matching(hf, text, entry, "trainable")}
    chosen = chosen or {id(p) for p in text.values()}
    chosen -= {id(p) for entry in freeze for p in _matching(hf, text, entry, "freeze")}
    if not chosen:
        raise UserError(
            "model.trainable and model.freeze leave nothing to train, so every step would do nothing; narrow model.freeze"
        )
    for parameter in hf.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def _matching(hf: Any, text: dict[str, nn.Parameter], entry: str, field: str) -> list[nn.Parameter]:
    if entry in ("embeddings", "head"):
        part = hf.get_input_embeddings() if entry == "embeddings" else hf.get_output_embeddings()
        return list(part.parameters())
    if bounds := LAYERS.fullmatch(entry):
        start, stop = (int(x) if x else None for x in bounds.groups())
        found = [p for layer in decoder_of(hf).layers[start:stop] for p in layer.parameters()]
    else:
        found = [p for n, p in text.items() if fnmatchcase(n, entry) or fnmatchcase(n, f"{entry}.*")]
    if not found:
        near = difflib.get_close_matches(entry, list(text), n=1, cutoff=0.0)[0]
        raise UserError(
            f"model.{field} has {entry!r}, which matches no parameter of this model, so it would do nothing; "
            f"use embeddings, head, layers[0:2], or a glob over names such as {near}"
        )
    return found


def with_backward(cost: CostModel, hf: Any) -> CostModel:
    """Return a FLOP model whose backward pass is that of what `hf` trains, adapters counted.

    A product with a weight costs the gradient of its input down to the lowest trained layer, and the gradient of the weight
    where that is trained. Of the lowest layer all inputs count, though its first products need none; layers count by their
    matrices' elements, so experts of one layer that are trained in part weigh as if every token passed them all.

    Args:
        cost: Of the model with all of it trained, without adapters.
        hf: The model, parameters marked by `choose` or `adapters.add`.
    """
    below = any(p.requires_grad for p in hf.get_input_embeddings().parameters())
    size = trained = passed = adapters = 0
    for layer in layers(decoder_of(hf)):
        matrices = [(n, p) for n, p in layer.named_parameters() if len(shape_of(p)) > 1]
        own = sum(numel(p) for n, p in matrices if ".lora_" not in n)
        size += own
        trained += sum(numel(p) for n, p in matrices if ".lora_" not in n and p.requires_grad)
        adapters += sum(numel(p) for n, p in matrices if ".lora_" in n)
        below = below or any(p.requires_grad for p in layer.parameters())
        passed += own * below
    head = hf.get_output_embeddings()
    above = below or any(p.requires_grad for p in decoder_of(hf).parameters())
    linear, added = cost.linear_flops_per_token, 2.0 * adapters
    return replace(
        cost,
        linear_flops_per_token=linear + added,
        linear_backward=(linear * (trained + passed) / max(1, size) + 2.0 * added) / (linear + added),
        attention_backward=2.0 * passed / max(1, size),
        head_backward=float(above) + float(any(p.requires_grad for p in head.parameters())),
    )


def shape_of(parameter: Any) -> tuple[int, ...]:
    """Return the whole shape of a parameter, partitioned or not."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def numel(parameter: Any) -> int:
    """Return the elements of a whole parameter, partitioned or not."""
    return math.prod(shape_of(parameter))
