"""Stores and one epoch's draw -> how much of everything there is, and what is wrong with the mixture."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sft_dist.mix import Corpus
from sft_dist.mix.corpus import WHOLE
from sft_dist.report.card.facts import RARE, REPEATED, Amount, Balance, TaskFacts, TaskLabels


def amounts(
    corpus: Corpus, docs: NDArray[np.int64], seq_len: int, *, keep_end: bool
) -> dict[tuple[str, str], Amount]:
    """Return how much each task of each source holds, and how much of it an epoch of the documents `docs` trains on."""
    n_tasks = len(corpus.task_names)
    size = len(corpus.source_names) * n_tasks
    cell = corpus.source_of.astype(np.int64) * n_tasks + corpus.task_of
    everything = corpus.slices(np.arange(len(corpus)), WHOLE, keep_end=True)
    drawn = corpus.slices(docs, seq_len, keep_end=keep_end)
    columns = [
        np.bincount(cell, minlength=size),
        np.bincount(cell, everything.lengths, size),
        np.bincount(cell, everything.target_tokens, size),
        np.bincount(cell[docs], minlength=size),
        np.bincount(cell[docs], drawn.lengths, size),
        np.bincount(cell[docs], drawn.target_tokens, size),
    ]
    names = list(Amount.__slots__)
    return {
        (corpus.source_names[c // n_tasks], corpus.task_names[c % n_tasks]): Amount(
            **{k: int(column[c]) for k, column in zip(names, columns, strict=True)}
        )
        for c in np.flatnonzero(columns[0]).tolist()
    }


def total(parts: Iterable[Amount]) -> Amount:
    """Return the sum."""
    return sum(parts, Amount())


def balance(counts: Mapping[str, int]) -> Balance:
    """Return how even tasks with these counts are."""
    everything = max(1, sum(counts.values()))
    shares = {t: n / everything for t, n in counts.items()}
    entropy = -sum(s * math.log(s) for s in shares.values() if s)
    limit = RARE / max(1, len(shares))
    rare = sorted((s, t) for t, s in shares.items() if s < limit)
    return Balance(
        effective_tasks=math.exp(entropy),
        largest=max(shares.values(), default=0.0),
        rare=tuple(t for _, t in rare),
    )


def length_bins(lengths: NDArray[np.int32]) -> dict[int, int]:
    """Return how many lie in [2^k, 2^(k+1)), by k, without gaps."""
    exponents = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    if not len(exponents):
        return {}
    low = int(exponents.min())
    counts = np.bincount(exponents - low)
    return {low + k: int(n) for k, n in enumerate(counts)}


def by_task(
    cells: Mapping[tuple[str, str], Amount], labels: Mapping[str, TaskLabels]
) -> tuple[TaskFacts, ...]:
    """Return the tasks, the largest first."""
    names: dict[str, list[str]] = {}
    for source, task in cells:
        names.setdefault(task, []).append(source)
    tasks = [
        TaskFacts(
            name=task,
            sources=tuple(sources),
            labels=labels.get(task, TaskLabels()),
            amount=total(cells[s, task] for s in sources),
        )
        for task, sources in names.items()
    ]
    return tuple(sorted(tasks, key=lambda t: (-t.amount.examples, t.name)))


def shares(tasks: Sequence[TaskFacts], *, drawn: bool) -> dict[str, int]:
    """Return examples by task: in the stores, or in one epoch."""
    return {t.name: t.amount.drawn_examples if drawn else t.amount.examples for t in tasks}


def warnings(tasks: Sequence[TaskFacts], after: Balance, read: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return what is wrong with the mixture, by `CardFacts.warnings`'s names; what is well is left out.

    Args:
        tasks: Tasks with examples in the stores.
        after: Balance of one epoch.
        read: Tasks of the records that were read, those that are held out aside.
    """
    never = [t.name for t in tasks if not t.amount.drawn_examples]
    rare = set(after.rare)
    repeated = [t.name for t in tasks if t.amount.drawn_examples > REPEATED * t.amount.examples]
    scarce = [name for name in repeated if name in rare]
    out = {
        "nothing_kept": sorted(set(read) - {t.name for t in tasks}),
        "never_drawn": never,
        "under_represented": [t for t in after.rare if t not in {*never, *scarce}],
        "repeated": [name for name in repeated if name not in rare],
        "scarce": scarce,
    }
    return {kind: tuple(names) for kind, names in out.items() if names}
