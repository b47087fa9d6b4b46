"""The start-up check that packed documents do not see one another: change the first, and the second must not move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sft_dist.core.records import Batch

FIRST, SECOND = 7, 9  # tokens of the two documents
# of the loss of one target, where logits of a size of 10 are rounded: 10 / 2^8 in bfloat16
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def two_documents(vocab_size: int, first_seed: int) -> Batch:
    """Return two packed documents; `first_seed` changes the first one only. Targets lie in the second."""
    high = max(2, vocab_size)
    first = np.random.default_rng(first_seed).integers(1, high, FIRST)
    second = np.random.default_rng(0).integers(1, high, SECOND)
    targets = np.arange(FIRST + 1, FIRST + SECOND)
    ids = np.concatenate([first, second])
    return Batch.of_documents(ids, [FIRST, SECOND], targets, doc_ids=("first", "second"))


@torch.no_grad()
def measure_isolation(loss_of: Callable[[Batch], Tensor], vocab_size: int) -> float:
    """Return the largest change of any target's loss in the second document when the first is replaced."""
    one, other = (loss_of(two_documents(vocab_size, seed)).float() for seed in (1, 2))
    return float((one - other).abs().max()) if one.numel() else 0.0  # a slice of the rows may hold no target


@torch.no_grad()
def head_error(
    loss_of: Callable[[Batch], Tensor], by_model: Callable[[Batch], Tensor], vocab_size: int
) -> float:
    """Return the largest difference between the loss of a target and what the model's own forward pass gives."""
    batch = two_documents(vocab_size, 1)
    ours, theirs = loss_of(batch).float(), by_model(batch).float()
    return float((ours - theirs).abs().max()) if ours.numel() else 0.0
