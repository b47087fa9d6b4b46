"""The start-up check that packed documents do not see one another: change the first, and the second must not move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sft_dist.core.records import Batch

FIRST, SECOND = 7, 9  # tokens of the two documents
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def two_documents(vocab_size: int, first_seed: int) -> Batch:
    """Return two packed documents; `first_seed` changes the first one only. Targets lie in the second."""
    high = max(2, vocab_size)
    first = np.random.default_rng(first_seed).integers(1, high, FIRST)
    second = np.random.default_rng(0).integers(1, high, SECOND)
    targets = np.arange(FIRST, FIRST + SECOND - 1)
    ids = np.concatenate([first, second]).astype(np.int64)
    return Batch(
        input_ids=ids,
        position_ids=np.concatenate([np.arange(FIRST), np.arange(SECOND)]).astype(np.int64),
        cu_seqlens=np.array([0, FIRST, FIRST + SECOND], np.int32),
        max_seqlen=SECOND,
        target_positions=targets,
        target_ids=ids[targets + 1],
        target_weights=np.ones(len(targets), np.float32),
        target_tasks=np.zeros(len(targets), np.int64),
        doc_ids=("first", "second"),
        doc_cost_tokens=FIRST**2 + SECOND**2,
    )


@torch.no_grad()
def measure(loss_of: Callable[[Batch], Tensor], vocab_size: int) -> float:
    """Return the largest change of any target's loss in the second document when the first is replaced."""
    one, other = (loss_of(two_documents(vocab_size, seed)).float() for seed in (1, 2))
    return float((one - other).abs().max())
