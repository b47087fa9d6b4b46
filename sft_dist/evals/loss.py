"""Exported folder + examples -> the model's loss on the answers. Shows learning that exact match is too coarse to see.

Legend: B examples of a batch, T tokens of the longest, K trailing positions that hold every target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.core.records import Drop, Example, Tokens
from sft_dist.evals.generate import PromptRenderer, accepts, in_halves, left_pad
from sft_dist.evals.resumable_work import collect, run_part
from sft_dist.evals.splits import SHOWN_TOKENS, AnswerLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOP = 3  # most likely tokens that are kept at a position


def loss_part(
    model: PreTrainedModel,
    examples: Sequence[Example],
    renderer: PromptRenderer,
    folder: Path,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    label: str = "loss on answers",
) -> None:
    """Compute the answer losses of this process's slice into its part of `folder`; what is there is kept.

    An example that cannot be rendered gets a loss over no tokens, so that the parts stay complete.
    """
    mine = examples[rank::world_size]
    rendered = dict(zip((e.id for e in mine), renderer.render(mine), strict=True))

    def work(batch: Sequence[Example]) -> Iterable[Mapping[str, Any]]:
        documents = [(e.id, r) for e in batch if isinstance(r := rendered[e.id], Tokens)]
        found = answer_losses(model, [tokens for _, tokens in documents])
        losses = {
            i: (nats, sum(s.length for s in t.spans), top)
            for (i, t), (nats, top) in zip(documents, found, strict=True)
        }
        for e in batch:
            nats, tokens, top = losses.get(e.id, (0.0, 0, []))
            yield {"id": e.id, "nats": nats, "tokens": tokens, "top": top}

    run_part(
        folder,
        examples,
        work,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        length=lambda e: _length(rendered[e.id]),
        label=label,
    )


def collect_losses(
    folder: Path, examples: Sequence[Example], *, world_size: int = 1, timeout_s: float = 3600.0
) -> dict[str, AnswerLoss]:
    """Wait for the parts of every process and return the answer losses by id of the example."""
    records = collect(folder, (e.id for e in examples), world_size=world_size, timeout_s=timeout_s)
    return {i: AnswerLoss(**{**r, "top": tuple(map(tuple, r["top"]))}) for i, r in records.items()}


def answer_losses(model: PreTrainedModel, documents: Sequence[Tokens]) -> list[tuple[float, list[list[int]]]]:
    """Return the total cross-entropy of each document's target tokens, in nats, unweighted; and the likeliest tokens.

    The second are the three most likely ids at each of the first `SHOWN_TOKENS` targets, the likeliest first.

    Documents end at the right edge, so that only the last K logits are projected: with a vocabulary of 150,000 the
    logits of whole prompts would not fit. Documents longer than the model's context are scored as they are. A batch that does
    not fit into the memory of the device is split in two, down to single documents.
    """
    return in_halves(partial(_losses, model), documents, "documents") if documents else []


def _losses(model: PreTrainedModel, documents: Sequence[Tokens]) -> list[tuple[float, list[list[int]]]]:
    import torch

    device = model.device
    input_ids_BT, mask_BT = left_pad([d.ids.tolist() for d in documents], pad_id=0)
    targets_BT = torch.zeros_like(mask_BT, dtype=torch.bool)
    width = targets_BT.shape[1]
    for row, d in enumerate(documents):
        offset = width - len(d.ids)
        for span in d.spans:
            targets_BT[row, offset + span.start : offset + span.start + span.length] = True
    first = int(
        targets_BT.any(dim=0).int().argmax()
    )  # the earliest target; its predictor stands one before it
    keep = width - first + 1
    extra: dict[str, Any] = {}
    if accepts(model, "position_ids"):
        extra["position_ids"] = (mask_BT.cumsum(dim=1) - 1).clamp(min=0).to(device)
    if accepts(model, "logits_to_keep"):
        extra["logits_to_keep"] = keep
    with torch.inference_mode():
        logits_BKV = model(
            input_ids=input_ids_BT.to(device), attention_mask=mask_BT.to(device), use_cache=False, **extra
        ).logits[:, -keep:-1]
        rows, columns = targets_BT[:, first:].to(device).nonzero(as_tuple=True)
        wanted = input_ids_BT[:, first:].to(device)[rows, columns]
        logits_NV = logits_BKV[rows, columns].float()
        nats = torch.nn.functional.cross_entropy(logits_NV, wanted, reduction="none")
        totals = torch.zeros(len(documents), dtype=torch.float64, device=device)
        totals.index_add_(0, rows, nats.double())
        top_N3 = logits_NV.topk(min(TOP, logits_NV.shape[1]), dim=1).indices.tolist()
    top: list[list[list[int]]] = [[] for _ in documents]
    for row, ids in zip(rows.tolist(), top_N3, strict=True):
        if len(top[row]) < SHOWN_TOKENS:
            top[row].append(ids)
    return list(zip(totals.tolist(), top, strict=True))


def _length(rendered: Tokens | Drop) -> int:
    return 0 if isinstance(rendered, Drop) else len(rendered.ids)
