"""Several stores seen as one: a global index over all examples, without copying a token.

n examples of all stores together, in the order of the stores.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Span
from sft_dist.pack.jit import jit
from sft_dist.shards import Store

WHOLE = 2**31 - 1  # longer than any document
PROMPT_SHARE = 16  # a prompt of which less than a row's sixteenth would remain is none


@dataclass(frozen=True, kw_only=True, slots=True)
class TruncatedSpans:
    """What is used of each of N documents after truncation.

    Attributes:
        starts: int32 [N] first stored token that is used.
        lengths: int32 [N] tokens that are used.
        target_tokens: int32 [N] tokens that carry loss among them, the first never counted.
        target_weights: float64 [N] sum of their loss weights.
    """

    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    target_tokens: NDArray[np.int32]
    target_weights: NDArray[np.float64]


class Corpus:
    """The stores of a mixture behind one index.

    Args:
        stores: Store by source name; the order fixes the global index.

    Attributes:
        stores: The stores, in order.
        source_names: Names of the sources, in order.
        task_names: Names of all tasks; a task that several sources hold is one task.
        first: [stores + 1] global index of the first example of each store, then n.
        lengths: int32 [n] stored tokens of each example.
        source_of: int32 [n] code into `source_names`.
        task_of: int32 [n] code into `task_names`.
        fingerprint: 32 hex digits that stand for the content of all stores.
    """

    def __init__(self, stores: Mapping[str, Store]) -> None:
        if not stores:
            raise UserError(
                "the mixture has no sources, so there is nothing to train on; add one under data.sources"
            )
        _check_tokenizers(stores)
        self.stores = list(stores.values())
        self.source_names = list(stores)
        sizes = [len(s) for s in self.stores]
        self.first: list[int] = np.concatenate(([0], np.cumsum(sizes))).tolist()
        self.lengths = _joined([s.lengths for s in self.stores])
        self.source_of = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        self.task_names, self.task_of = _joined_tasks(self.stores)
        self.fingerprint = fingerprint([[n, s.fingerprint] for n, s in stores.items()])

    def __len__(self) -> int:
        return self.first[-1]

    def locate(self, i: int) -> tuple[Store, int]:
        """Return the store of global index `i` and the index inside it."""
        k = bisect.bisect_right(self.first, i) - 1
        return self.stores[k], i - self.first[k]

    def token_ids(self, i: int, start: int = 0, length: int | None = None) -> NDArray[Any]:
        """Return a view of tokens `start .. start+length-1` of example `i`, in the stored dtype."""
        store, local = self.locate(i)
        return store.token_ids(local, start, length)

    def spans(self, i: int) -> tuple[Span, ...]:
        """Return the spans of example `i`, in stored coordinates."""
        store, local = self.locate(i)
        return store.spans(local)

    def id_hex(self, i: int) -> str:
        """Return the content address of example `i`."""
        store, local = self.locate(i)
        return store.id_hex(local)

    def parts(
        self, indices: NDArray[np.int64]
    ) -> Iterator[tuple[Store, NDArray[np.int64], NDArray[np.int64]]]:
        """Split indices by store: yield the store, the places in `indices`, the indices inside the store."""
        if len(self.stores) == 1:
            yield self.stores[0], np.arange(len(indices)), indices
            return
        owner = self.source_of[indices]
        for k, store in enumerate(self.stores):
            places = np.flatnonzero(owner == k)
            if len(places):
                yield store, places, indices[places] - self.first[k]

    def target_tokens(self, indices: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return how many tokens carry loss in each document, uncut."""
        return self.slices(indices, WHOLE, keep_end=True).target_tokens

    def slices(self, indices: NDArray[np.int64], seq_len: int, *, keep_end: bool) -> TruncatedSpans:
        """Return what remains of documents when each is cut to `seq_len` tokens, and the loss weight in it.

        Args:
            indices: [N] documents.
            seq_len: Tokens that remain at most.
            keep_end: Whether a document that is too long keeps its last tokens (else its first). It then begins behind an
                answer of which the beginning, or nearly all that stands before it, is cut: no answer is kept without a prompt.
        """
        stored = self.lengths[indices]
        lengths = np.minimum(stored, np.int32(seq_len))
        starts = stored - lengths if keep_end else np.zeros_like(lengths)
        cut = bool((starts > 0).any())
        tokens, weights = np.zeros(len(indices), np.int32), np.zeros(len(indices), np.float64)
        for store, places, local in self.parts(indices):
            columns = (store.span_offsets, store.span_start, store.span_length, store.span_weight)
            if cut:
                _begin_with_a_prompt(
                    local, places, starts, lengths, *columns[:3], max(1, seq_len // PROMPT_SHARE)
                )
            _targets(local, places, starts, lengths, *columns, tokens, weights)
        return TruncatedSpans(starts=starts, lengths=lengths, target_tokens=tokens, target_weights=weights)


@jit
def _begin_with_a_prompt(
    local: NDArray[np.int64],
    places: NDArray[np.int64],
    starts: NDArray[np.int32],
    lengths: NDArray[np.int32],
    span_offsets: NDArray[np.int64],
    span_start: NDArray[np.int32],
    span_length: NDArray[np.int32],
    least: int,
) -> None:
    """Move the start of each cut document behind the answers that would stand there without a prompt.

    An answer needs `least` tokens before it, or all that stand between it and the answer before. A document that has no
    prompt at all (a text whose tokens all carry loss) stays as it is.
    """
    for j in range(len(local)):
        place = places[j]
        first, end = span_offsets[local[j]], span_offsets[local[j] + 1]
        if starts[place] == 0 or first == end or span_start[first] <= 1:
            continue
        before = 0  # where the answer before ends
        for k in range(first, end):
            stop = span_start[k] + span_length[k]
            gap = span_start[k] - before
            before = stop
            if stop <= starts[place]:
                continue
            if gap > 0 and span_start[k] - starts[place] >= min(gap, least):
                break
            lengths[place] -= stop - starts[place]
            starts[place] = stop


@jit
def _targets(
    local: NDArray[np.int64],
    places: NDArray[np.int64],
    starts: NDArray[np.int32],
    lengths: NDArray[np.int32],
    span_offsets: NDArray[np.int64],
    span_start: NDArray[np.int32],
    span_length: NDArray[np.int32],
    span_weight: NDArray[np.float32],
    tokens: NDArray[np.int32],
    weights: NDArray[np.float64],
) -> None:
    """Add up target tokens and weights of each document inside its slice."""
    for j in range(len(local)):
        place = places[j]
        first = starts[place] + 1  # nothing predicts the first token of a slice
        end = starts[place] + lengths[place]
        for k in range(span_offsets[local[j]], span_offsets[local[j] + 1]):
            n = min(span_start[k] + span_length[k], end) - max(span_start[k], first)
            if n > 0:
                tokens[place] += n
                weights[place] += n * np.float64(span_weight[k])


def _check_tokenizers(stores: Mapping[str, Store]) -> None:
    """Ids of two vocabularies must never meet in one batch. A store's key names its tokenizer."""
    names: dict[Any, list[str]] = {}
    for name, store in stores.items():
        names.setdefault(store.key.get("tokenizer"), []).append(name)
    if len(names) > 1:
        groups = "; ".join(f"{', '.join(group)}: {tokenizer}" for tokenizer, group in names.items())
        raise UserError(
            f"the stores of the mixture were tokenised with different tokenizers ({groups}), so the same id means "
            "different text; prepare them again with one tokenizer: sft-dist prepare"
        )


def _joined(arrays: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _joined_tasks(stores: list[Store]) -> tuple[list[str], NDArray[np.int32]]:
    codes: dict[str, int] = {}
    columns = []
    for store in stores:
        table = np.array([codes.setdefault(name, len(codes)) for name in store.task_names], np.int32)
        same = np.array_equal(table, np.arange(len(table)))
        columns.append(store.tasks if same else table[store.tasks])
    return list(codes), _joined(columns)
