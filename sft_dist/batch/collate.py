"""Rows -> Batch: documents laid end to end, positions restarting, targets as positions instead of labels.

T tokens, S documents, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sft_dist.core.records import Batch, Row
from sft_dist.mix import Corpus

EMPTY = replace(
    Batch.of_documents(np.zeros(2, np.int64), [2], np.zeros(0, np.int64)), doc_cost_tokens=0, padding=2
)


def collate(corpus: Corpus, rows: Sequence[Row]) -> Batch:
    """Read the documents of rows that one rank runs side by side.

    No rows give `EMPTY`, two tokens without a target: a rank without work still runs the model, for every rank must
    take part in every collective of ZeRO-3.

    A target at token p of a document is predicted from position p - 1. The first token of a document (or of the
    slice that truncation left) is never a target: nothing in its own document predicts it.
    """
    if not any(row.tokens for row in rows):
        return EMPTY
    lengths = np.concatenate([row.lengths for row in rows]).astype(np.int64)
    cu_seqlens = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    input_ids = np.empty(cu_seqlens[-1], np.int64)
    doc_ids: list[str] = []
    doc_sources: list[int] = []
    spans: list[
        tuple[int, int, float, int]
    ] = []  # first target, end, weight, task; in positions of the batch
    for row in rows:
        for doc, start, length in zip(
            row.docs.tolist(), row.starts.tolist(), row.lengths.tolist(), strict=True
        ):
            base = int(cu_seqlens[len(doc_ids)])
            input_ids[base : base + length] = corpus.token_ids(doc, start, length)
            doc_ids.append(corpus.id_hex(doc))
            doc_sources.append(int(corpus.source_of[doc]))
            task = int(corpus.task_of[doc])
            for span in corpus.spans(doc):
                first, end = max(span.start - start, 1), min(span.start + span.length - start, length)
                if first < end:
                    spans.append((base + first, base + end, span.weight, task))
    firsts, ends, weights, tasks = np.array(spans, np.float64).reshape(-1, 4).T
    counts = (ends - firsts).astype(np.int64)
    targets = np.repeat(ends.astype(np.int64) - np.cumsum(counts), counts) + np.arange(counts.sum())
    return Batch.of_documents(
        input_ids,
        lengths,
        targets,
        weights_N=np.repeat(weights, counts),
        tasks_N=np.repeat(tasks, counts),
        doc_ids=tuple(doc_ids),
        doc_sources=tuple(doc_sources),
    )


def sequence_shard(batch: Batch, place: int, size: int) -> Batch:
    """Return the `place`-th of `size` equal, contiguous slices of a micro-batch, for the ranks that share its rows.

    Document borders stay those of the whole. A target belongs to the slice that holds its predicting token, so over
    all slices every token, target and document cost is counted once. Tokens that do not divide are filled up by a
    document without targets.
    """
    if size == 1:
        return batch
    T = len(batch.input_ids)
    filler = -T % size
    length = (T + filler) // size
    first = place * length
    own = (batch.target_positions >= first) & (batch.target_positions < first + length)
    return replace(
        batch,
        input_ids=np.pad(batch.input_ids, (0, filler))[first : first + length],
        position_ids=np.append(batch.position_ids, np.arange(filler))[first : first + length],
        cu_seqlens=np.append(batch.cu_seqlens, np.int32(T + filler)) if filler else batch.cu_seqlens,
        max_seqlen=max(batch.max_seqlen, filler),
        target_positions=batch.target_positions[own] - first,
        target_ids=batch.target_ids[own],
        target_weights=batch.target_weights[own],
        target_tasks=batch.target_tasks[own],
        doc_cost_tokens=0 if place else batch.doc_cost_tokens,
        offset=first,
        padding=min(length, max(0, first + length - (T - batch.padding))),
    )
