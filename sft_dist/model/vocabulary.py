"""More embedding rows than the base has: for tokens that were added to its tokenizer.

A new row is the mean of the old ones (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021):
new tokens start with an ordinary probability and no noise, on every rank alike.
Shapes: V rows, E model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def grown(weight_VE: Tensor, rows: int) -> Tensor:
    """Return the matrix with rows added up to `rows`, each the mean of the old ones."""
    mean_E = weight_VE.float().mean(0).to(weight_VE.dtype)
    return torch.cat([weight_VE, mean_E.expand(rows - weight_VE.size(0), -1)])


@torch.no_grad()
def grow(hf: Any, rows: int, zero_config: Mapping[str, Any] | None) -> None:
    """Add rows to the input embedding and the output projection of a loaded model, tied or not. Collective."""
    text = hf.config.get_text_config()
    if rows == text.vocab_size:
        return
    embedding, head = hf.get_input_embeddings(), hf.get_output_embeddings()
    tied = head.weight is embedding.weight
    embedding.weight = _grown_parameter(embedding, rows, zero_config)
    embedding.num_embeddings = rows
    head.weight = embedding.weight if tied else _grown_parameter(head, rows, zero_config)
    head.out_features = rows
    text.vocab_size = rows


def _grown_parameter(module: nn.Module, rows: int, zero_config: Mapping[str, Any] | None) -> nn.Parameter:
    old: Any = module.weight
    if zero_config is None:
        return nn.Parameter(grown(old.data, rows))
    import deepspeed

    with deepspeed.zero.GatheredParameters([old]):
        holder = nn.ParameterDict({"weight": nn.Parameter(grown(old.data, rows))})
    deepspeed.zero.Init(module=holder, config_dict_or_path=dict(zero_config))
    return holder["weight"]
