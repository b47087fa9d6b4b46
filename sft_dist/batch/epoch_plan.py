"""One epoch's plan: which documents lie in which row, which rows form each global batch.

D documents in the epoch, R rows. A plan does not know the number of ranks until a step is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sft_dist.core.records import Row, StepPlan
from sft_dist.core.rng import derive
from sft_dist.mix import Corpus
from sft_dist.pack import CostModel, deal, imbalance


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCounts:
    """What an epoch consists of; the line that `check` ends in.

    Attributes:
        drawn: Documents that the mixture drew.
        examples: Documents that are trained on.
        tokens: Their tokens after truncation.
        target_tokens: Tokens that carry loss.
        target_weight: Sum of their loss weights.
        rows: Rows that packing filled, before the last batch is spread.
        fill: Tokens over the capacity of these rows.
        steps: Global batches.
        truncated: Documents that were cut to fit a row.
        dropped: Documents that were drawn and are not trained on, by reason.
        duplicates: Examples that were not drawn because an earlier source holds them.
    """

    drawn: int
    examples: int
    tokens: int
    target_tokens: int
    target_weight: float
    rows: int
    fill: float
    steps: int
    truncated: int
    dropped: Mapping[str, int]
    duplicates: int


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskCounts:
    """One task before mixing (whole stores) and after it (one epoch).

    Attributes:
        task: Task name.
        examples_before: Examples in the stores.
        tokens_before: Their tokens, untruncated.
        examples_after: Documents trained on in the epoch.
        tokens_after: Their tokens.
        target_tokens_after: Their tokens that carry loss.
        share_after: Of all documents of the epoch.
        epochs: Passes over the task: documents over examples.
    """

    task: str
    examples_before: int
    tokens_before: int
    examples_after: int
    tokens_after: int
    target_tokens_after: int
    share_after: float
    epochs: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """How rows are cut and dealt.

    Attributes:
        seq_len: Tokens a row holds.
        keep_end: Whether a document that is too long keeps its last tokens (else its first).
        rows_per_step: Rows of a global batch.
        micro_rows: Rows that one rank runs side by side.
        world_size: Ranks.
    """

    seq_len: int
    keep_end: bool
    rows_per_step: int
    micro_rows: int
    world_size: int


class EpochPlan:
    """An epoch as documents grouped by row; `step(i)` is O(1) in the size of the epoch.

    Attributes:
        epoch: Zero-based.
        counts: What it consists of.
        docs: int64 [D] index into the corpus, row by row in training order.
        row_first: int64 [R+1] where each row begins in `docs`, then D.
    """

    def __init__(
        self,
        *,
        corpus: Corpus,
        epoch: int,
        docs: NDArray[np.int64],
        row_first: NDArray[np.int64],
        counts: PlanCounts,
        geometry: Geometry,
        cost: CostModel,
        seed: int,
    ) -> None:
        self.epoch = epoch
        self.counts = counts
        self.docs = docs
        self.row_first = row_first
        self._corpus = corpus
        self._geometry = geometry
        self._cost = cost
        self._seed = seed

    @property
    def n_steps(self) -> int:
        """Global batches in the epoch."""
        return self.counts.steps

    @cached_property
    def hash(self) -> int:
        """64 bits that are equal on two ranks exactly when they train the same rows in the same order.

        The content of the stores, the truncation and the batch size are covered; the number of ranks is not.
        """
        g = self._geometry
        digest = xxhash.xxh3_64(
            f"{self._corpus.fingerprint} {g.seq_len} {g.keep_end} {g.rows_per_step}".encode()
        )
        digest.update(self.docs.data)
        digest.update(self.row_first.data)
        return digest.intdigest()

    def rows(self, step: int) -> list[Row]:
        """Return the rows of one global batch, in an order that does not depend on the number of ranks."""
        assert 0 <= step < self.n_steps, f"step {step} of an epoch of {self.n_steps}"
        return self._rows(step)[0]

    def step(self, step: int) -> StepPlan:
        """Return one global batch, dealt to micro-steps and ranks."""
        assert 0 <= step < self.n_steps, f"step {step} of an epoch of {self.n_steps}"
        g = self._geometry
        rows, target_tokens, target_weight = self._rows(step)
        tokens = np.array([row.tokens for row in rows], np.float64)
        squares = np.array([np.square(row.lengths, dtype=np.float64).sum() for row in rows])
        costs = self._cost.row_cost(tokens, squares, target_tokens).tolist()
        dealing = deal(costs, g.world_size, g.micro_rows, derive(self._seed, "deal", self.epoch, step))
        return StepPlan(
            epoch=self.epoch,
            step=step,
            micro_rows=tuple(tuple(tuple(rows[r] for r in rank) for rank in micro) for micro in dealing),
            target_weight=target_weight,
            imbalance=imbalance(costs, dealing),
            fill=float(tokens.sum()) / (g.rows_per_step * g.seq_len),
        )

    def heaviest(self, n: int) -> list[int]:
        """Return the `n` steps with the most expensive rows, the most expensive first: where memory is short, if anywhere."""
        g = self._geometry
        slices = self._corpus.slices(self.docs, g.seq_len, keep_end=g.keep_end)

        def by_row(values: NDArray[Any]) -> NDArray[np.float64]:
            return np.diff(np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])[self.row_first])

        lengths = slices.lengths.astype(np.float64)
        costs = self._cost.row_cost(by_row(lengths), by_row(lengths**2), by_row(slices.target_tokens))
        worst = np.maximum.reduceat(costs, np.arange(0, len(costs), g.rows_per_step))
        return np.argsort(-worst, kind="stable")[:n].tolist()

    def passes(self) -> dict[str, float]:
        """Return how often the epoch passes over each source: documents that it trains on over examples of the store."""
        drawn = np.bincount(self._corpus.source_of[self.docs], minlength=len(self._corpus.source_names))
        sizes = np.diff(self._corpus.first)
        return dict(zip(self._corpus.source_names, (drawn / np.maximum(sizes, 1)).tolist(), strict=True))

    def shares(self, unit: str) -> dict[str, float]:
        """Return each source's share of what the epoch trains on: of its examples, tokens or targets (`mix.unit`), as they are cut."""
        slices = self._corpus.slices(self.docs, self._geometry.seq_len, keep_end=self._geometry.keep_end)
        counted = {"tokens": slices.lengths, "targets": slices.target_tokens}.get(unit)
        names = self._corpus.source_names
        drawn = np.bincount(self._corpus.source_of[self.docs], counted, len(names))
        return dict(zip(names, (drawn / max(1.0, float(drawn.sum()))).tolist(), strict=True))

    def task_table(self) -> list[TaskCounts]:
        """Return a line for each task, before and after mixing."""
        corpus, n = self._corpus, len(self._corpus.task_names)
        slices = corpus.slices(self.docs, self._geometry.seq_len, keep_end=self._geometry.keep_end)
        task = corpus.task_of[self.docs]
        columns = [
            np.bincount(corpus.task_of, minlength=n),
            np.bincount(corpus.task_of, corpus.lengths, n),
            np.bincount(task, minlength=n),
            np.bincount(task, slices.lengths, n),
            np.bincount(task, slices.target_tokens, n),
        ]
        return [
            TaskCounts(
                task=name,
                examples_before=int(before),
                tokens_before=int(tokens_before),
                examples_after=int(after),
                tokens_after=int(tokens),
                target_tokens_after=int(targets),
                share_after=after / max(len(task), 1),
                epochs=after / before if before else 0.0,
            )
            for name, before, tokens_before, after, tokens, targets in zip(
                corpus.task_names, *columns, strict=True
            )
        ]

    def _rows(self, step: int) -> tuple[list[Row], NDArray[np.float64], float]:
        """Return the rows of a step, the target tokens of each, and the loss weight of all."""
        g = self._geometry
        first = self.row_first[step * g.rows_per_step : (step + 1) * g.rows_per_step + 1]
        docs = self.docs[first[0] : first[-1]].copy()  # a view would hold the whole epoch in memory
        slices = self._corpus.slices(docs, g.seq_len, keep_end=g.keep_end)
        cuts = (first - first[0]).tolist()
        parts = [slice(a, b) for a, b in pairwise(cuts)]
        rows = [Row(docs=docs[p], starts=slices.starts[p], lengths=slices.lengths[p]) for p in parts]
        target_tokens = np.array([slices.target_tokens[p].sum() for p in parts], np.float64)
        return rows, target_tokens, float(slices.target_weights.sum())
