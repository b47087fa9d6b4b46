"""The start-up checks of packed rows: documents do not see one another, the loss is the model's own, kernels equal their slow twin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sft_dist.core.errors import UserError
from sft_dist.core.records import Batch
from sft_dist.model import parts
from sft_dist.model.load import Loaded
from sft_dist.model.recurrent_kernels import Borders

FIRST, SECOND = 7, 9  # tokens of the two documents
# of the loss of one target, where logits of a size of 10 are rounded: 10 / 2^8 in bfloat16
HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
# for kernels of layers with state: longer than their chunks (64 to 256 tokens), and a border inside a chunk
LENGTHS = (7, 9, 300, 67)


def tokens_of(hf: Any) -> int:
    """Return how many token ids a model has, without the rows that pad its vocabulary."""
    text = hf.config.get_text_config()
    return parts.logit_rows(text) or int(text.vocab_size)


def two_documents(vocab_size: int, first_seed: int) -> Batch:
    """Return two packed documents; `first_seed` changes the first one only. Targets lie in the second."""
    return packed(vocab_size, (FIRST, SECOND), first_seed)


def packed(vocab_size: int, lengths: Sequence[int], seed: int) -> Batch:
    """Return packed documents; `seed` changes every other one, from the first on. Targets lie in those between."""
    high = max(2, vocab_size)
    ends = np.cumsum(lengths)
    ids = [
        np.random.default_rng([i // 2, 0 if i % 2 else seed]).integers(1, high, n)
        for i, n in enumerate(lengths)
    ]
    targets = [np.arange(end - n + 1, end) for n, end in zip(lengths[1::2], ends[1::2], strict=True)]
    names = tuple(f"document {i}" for i in range(len(lengths)))
    return Batch.of_documents(np.concatenate(ids), lengths, np.concatenate(targets), doc_ids=names)


@torch.no_grad()
def measure_isolation(loss_of: Callable[[Batch], Tensor], vocab_size: int) -> float:
    """Return the largest change of any target's loss in the second document when the first is replaced."""
    return _moved(*(loss_of(two_documents(vocab_size, seed)) for seed in (1, 2)))


def _moved(one: Tensor, other: Tensor) -> float:
    return (
        float((one.float() - other.float()).abs().max()) if one.numel() else 0.0
    )  # a slice of a row may hold no target


@torch.no_grad()
def head_error(
    loss_of: Callable[[Batch], Tensor], by_model: Callable[[Batch], Tensor], vocab_size: int
) -> float:
    """Return the largest difference between the loss of a target and what the model's own forward pass gives."""
    batch = two_documents(vocab_size, 1)
    ours, theirs = loss_of(batch).float(), by_model(batch).float()
    return float((ours - theirs).abs().max()) if ours.numel() else 0.0


def settle_kernels(
    loaded: Loaded,
    loss_of: Callable[[Batch], Tensor],
    asked: str,
    seq_len: int,
    *,
    gather: Callable[[str], Sequence[str]] = lambda fault: [fault],
) -> str:
    """Let layers with state see whole rows where their kernels pass the check on every rank, else each document alone.

    Args:
        loaded: The model.
        loss_of: The loss of each target of a batch, on this rank's device.
        asked: `model.recurrent`.
        seq_len: Tokens of a row.
        gather: What a rank found -> what every rank found.

    Returns:
        How such layers begin anew at every document, and why so; empty: the model has none.

    Raises:
        UserError: For `kernel` where they do not pass.
    """
    if not loaded.state:
        return ""
    module = loaded.module
    if module.borders is None or not module.borders.layers:
        return f"per_document ({loaded.recurrent or 'they lie inside attention that is run so'})"
    vocab = tokens_of(module.hf)
    faults = gather(kernel_fault(loss_of, module.borders, vocab, seq_len, module.hf.dtype))
    fault = next(filter(None, faults), "")
    if fault and asked == "kernel":
        raise UserError(
            f"model.recurrent=kernel cannot run here: the kernels of layers with state ({loaded.recurrent}) do not pass the check before "
            f"the first step: {fault}; use model.recurrent=per_document, or another version of the package"
        )
    module.borders.by_kernel = not fault
    if fault:
        return f"per_document (the kernels that are here did not pass the check before the first step: {fault}; {loaded.recurrent})"
    return f"kernel ({loaded.recurrent})"


@torch.no_grad()
def kernel_fault(
    loss_of: Callable[[Batch], Tensor], borders: Borders, vocab_size: int, seq_len: int, dtype: torch.dtype
) -> str:
    """Return what is wrong with the kernels of layers with state on this device; empty: nothing. `borders` stay as they were.

    They have passed when documents do not move one another and the mean loss of a token is that of each document alone: the mean,
    because rounding may send single tokens to other experts. Only the layers themselves are in training mode, in which some call
    fused kernels.

    Args:
        loss_of: The loss of each target of a batch.
        borders: Of the model.
        vocab_size: Of the model.
        seq_len: Tokens of a row that the model is asked for.
        dtype: Of its weights.
    """
    share = min(1.0, seq_len / sum(LENGTHS))  # some families count positions along the row
    lengths = [max(2, int(n * share)) for n in LENGTHS]
    modes = [layer.training for layer in borders.layers]
    before = borders.by_kernel
    try:
        for layer in borders.layers:
            layer.training = True
        losses = {}
        for by_kernel, seed in ((False, 1), (True, 1), (True, 2)):
            borders.by_kernel = by_kernel
            losses[by_kernel, seed] = loss_of(packed(vocab_size, lengths, seed)).float()
        moved = _moved(losses[True, 1], losses[True, 2])
        off = float((losses[True, 1] - losses[False, 1]).abs().mean())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a kernel does not like about a device or a size
        return f"they end in {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"
    finally:
        borders.by_kernel = before
        for layer, mode in zip(borders.layers, modes, strict=True):
            layer.training = mode
    if not moved <= TOLERANCE[dtype]:  # NaN must not pass
        return f"packed documents see one another (replacing some moved the loss of others by {moved:.2g})"
    if not off <= HEAD_TOLERANCE[dtype]:
        return f"the loss of a token differs from that of each document alone by {off:.2g} in the mean"
    return ""
