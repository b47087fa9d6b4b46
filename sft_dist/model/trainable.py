"""Which parameters are trained: all of the text part, or what the config chooses."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from sft_dist.core.errors import UserError

LAYERS = re.compile(r"layers\[(-?\d*):(-?\d*)\]")


def text_parameters(hf: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that text runs through, by name: decoder and output projection.

    An image-text model has others (vision tower, projector). Text gives them no gradient, so they stay as they are.
    """
    used = {id(p) for part in (hf.get_decoder(), hf.get_output_embeddings()) for p in part.parameters()}
    return {n: p for n, p in hf.named_parameters() if id(p) in used}


def choose(hf: Any, trainable: Sequence[str], freeze: Sequence[str]) -> None:
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
        found = [p for layer in hf.get_decoder().layers[start:stop] for p in layer.parameters()]
    else:
        found = [p for n, p in text.items() if fnmatchcase(n, entry) or fnmatchcase(n, f"{entry}.*")]
    if not found:
        near = difflib.get_close_matches(entry, list(text), n=1, cutoff=0.0)[0]
        raise UserError(
            f"model.{field} has {entry!r}, which matches no parameter of this model, so it would do nothing; "
            f"use embeddings, head, layers[0:2], or a glob over names such as {near}"
        )
    return found
