"""A store of a sample, seen as if it had as many examples as the source: for estimates before anything is built."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.shards import Store


class ExtrapolatedStore:
    """The planning arrays of a store, repeated to n examples. Has what a plan reads, and no tokens.

    Attributes are those of `shards.Store`.
    """

    def __init__(self, sample: Store, which: NDArray[np.int64]) -> None:
        self.key, self.info, self.fingerprint = sample.key, dict(sample.info), sample.fingerprint
        self.task_names, self.source_names = sample.task_names, sample.source_names
        self.lengths, self.tasks, self.sources, self.ids = (
            a[which] for a in (sample.lengths, sample.tasks, sample.sources, sample.ids)
        )
        counts = np.diff(sample.span_offsets)[which]
        self.span_offsets = np.concatenate(([0], np.cumsum(counts)))
        spans = np.repeat(sample.span_offsets[which] - self.span_offsets[:-1], counts) + np.arange(
            counts.sum()
        )
        self.span_start, self.span_length, self.span_weight = (
            a[spans] for a in (sample.span_start, sample.span_length, sample.span_weight)
        )

    @classmethod
    def of(cls, sample: Store, source_size: int) -> ExtrapolatedStore:
        """Return the store of a sample scaled to a source, or as it is when it holds all of the source.

        Args:
            sample: Store of evenly spread examples.
            source_size: Training examples of the source before rendering, which may drop some.
        """
        dropped: dict[str, Any] = sample.info["dropped"]
        factor = max(1.0, source_size / max(1, len(sample) + sum(dropped.values())))
        out = cls(sample, np.arange(round(len(sample) * factor)) % len(sample))
        out.info = {**sample.info, "dropped": {reason: round(n * factor) for reason, n in dropped.items()}}
        return out

    def __len__(self) -> int:
        return len(self.lengths)
