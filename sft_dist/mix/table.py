"""Corpus and draw -> what mixing did to every source and task, for `check`, plan.json and the data card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sft_dist.mix.corpus import Corpus


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureLine:
    """One source (`task` is None) or the part of one task that a source holds.

    Attributes:
        source: Source name.
        task: Task name, or None for the sum over the source.
        examples_before: Examples in the store.
        share_before: Of all examples in all stores.
        examples_after: Draws in one epoch.
        share_after: Of all draws.
        epochs: Passes over it in one epoch of training: draws over examples.
    """

    source: str
    task: str | None
    examples_before: int
    share_before: float
    examples_after: int
    share_after: float
    epochs: float


def mixture_table(corpus: Corpus, indices: NDArray[np.int64]) -> list[MixtureLine]:
    """Return a line for each source, followed by one for each of its tasks, for the draw `indices`."""
    n_tasks = len(corpus.task_names)
    shape = (len(corpus.stores), n_tasks)
    cells = corpus.source_of.astype(np.int64) * n_tasks + corpus.task_of
    size = shape[0] * shape[1]
    before = np.bincount(cells, minlength=size).reshape(shape)
    after = np.bincount(cells[indices], minlength=size).reshape(shape)
    totals = max(int(before.sum()), 1), max(int(after.sum()), 1)

    def line(source: str, task: str | None, n: int, drawn: int) -> MixtureLine:
        return MixtureLine(
            source=source,
            task=task,
            examples_before=n,
            share_before=n / totals[0],
            examples_after=drawn,
            share_after=drawn / totals[1],
            epochs=drawn / n,
        )

    out = []
    for s, source in enumerate(corpus.source_names):
        out.append(line(source, None, int(before[s].sum()), int(after[s].sum())))
        out += [
            line(source, corpus.task_names[t], int(before[s, t]), int(after[s, t]))
            for t in np.flatnonzero(before[s]).tolist()
        ]
    return out
