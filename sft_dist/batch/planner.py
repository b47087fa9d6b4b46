"""Corpus -> EpochPlan: draw, truncate, pack, order. A function of data, settings, seed and epoch, of nothing else.

One rank of each node plans from the index arrays for all that are there (shared_plan.py), and all ranks compare
`EpochPlan.hash`; nothing is broadcast, no shard is opened. Resuming is planning the epoch and asking for the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sft_dist.batch.epoch_plan import EpochPlan, Geometry, PlanCounts
from sft_dist.batch.last_batch import spread_tail
from sft_dist.batch.shared_plan import NodePlans, PlannedEpoch
from sft_dist.core.errors import UserError
from sft_dist.core.records import Position, StepPlan
from sft_dist.core.rng import derive
from sft_dist.mix import Corpus, Mixture, draw, make_pool
from sft_dist.mix.corpus import TruncatedSpans
from sft_dist.pack import CostModel, assign_rows, order_rows
from sft_dist.pack.assign import WINDOW
from sft_dist.pack.jit import jit

TooLong = Literal["drop", "truncate_prompt", "truncate_answer", "error"]


class Planner:
    """Plans epochs of a corpus.

    Args:
        corpus: The stores.
        mixture: How they are mixed.
        seq_len: Tokens a row holds.
        too_long: What happens to a longer document: "drop"; "truncate_prompt" keeps its last seq_len tokens, but no
            answer without its prompt; "truncate_answer" its first; "error".
        window: Documents that packing sorts together.
        packing: False puts one document into each row.
        rows_per_step: Rows of a global batch.
        micro_rows: Rows that one rank runs side by side.
        world_size: Ranks.
        balance_window: Global batches whose rows are ordered by cost together; 1: inside each batch only.
        short_first_steps: Global batches at the start of the first epoch whose rows come by length of their documents.
        seed: The run's seed.
        cost: FLOPs by tokens and squared document lengths; orders rows over global batches.
        micro_cost: What a device spends on a row (CostModel.on_device), by which the rows of a global batch are dealt to
            micro-steps; which rows a batch has does not depend on it. None: `cost`.
        shared: Where the ranks of this node find plans; None: each plans for itself.

    Raises:
        UserError: The settings contradict each other or the data.
    """

    def __init__(
        self,
        corpus: Corpus,
        *,
        seq_len: int,
        rows_per_step: int,
        world_size: int,
        cost: CostModel,
        seed: int,
        mixture: Mixture | None = None,
        too_long: TooLong = "truncate_prompt",
        window: int = WINDOW,
        packing: bool = True,
        micro_rows: int = 1,
        balance_window: int = 1,
        short_first_steps: int = 0,
        micro_cost: CostModel | None = None,
        shared: NodePlans | None = None,
    ) -> None:
        assert min(rows_per_step, micro_rows, world_size, window, balance_window) >= 1
        self._corpus = corpus
        self._mixture = mixture or Mixture()
        self._too_long = too_long
        self._window = window
        self._packing = packing
        self._balance_window = balance_window
        self._short_first_steps = short_first_steps
        self._seed = seed
        self._cost, self._micro_cost = cost, micro_cost or cost
        self._geometry = Geometry(
            seq_len=seq_len,
            keep_end=too_long == "truncate_prompt",
            rows_per_step=rows_per_step,
            micro_rows=micro_rows,
            world_size=world_size,
        )
        self._shared = shared
        self._pool = make_pool(corpus, self._mixture, seed) if shared is None or shared.leads else None
        self._planned: EpochPlan | None = None

    def epoch(self, epoch: int) -> EpochPlan:
        """Plan one epoch (zero-based). Depends on no other epoch; the last that was planned is kept, and no other."""
        if self._planned is None or self._planned.epoch != epoch:
            self._planned = None
            plan = partial(self._plan, epoch)
            found = plan() if self._shared is None else self._shared.epoch(epoch, plan)
            self._planned = EpochPlan(
                corpus=self._corpus,
                epoch=epoch,
                docs=found.docs,
                row_first=found.row_first,
                counts=found.counts,
                geometry=self._geometry,
                cost=self._micro_cost,
                seed=self._seed,
            )
        return self._planned

    def _plan(self, epoch: int) -> PlannedEpoch:
        g = self._geometry
        if self._pool is None:  # another rank should have planned
            self._pool = make_pool(self._corpus, self._mixture, self._seed)
        drawn = draw(self._corpus, self._mixture, seed=self._seed, epoch=epoch, pool=self._pool)
        slices = self._corpus.slices(drawn, g.seq_len, keep_end=g.keep_end)
        kept, dropped, truncated = self._kept(drawn, slices)
        docs, lengths = drawn[kept], slices.lengths[kept]
        targets, weight = slices.target_tokens[kept], float(slices.target_weights[kept].sum())
        n_drawn = len(drawn)
        del drawn, slices, kept

        seed = derive(self._seed, "epoch", epoch)
        rows = (
            assign_rows(lengths, g.seq_len, self._window)
            if self._packing
            else np.arange(len(docs), dtype=np.int32)
        )
        n_rows = int(rows.max()) + 1
        tokens, squares, row_targets = _row_sums(rows, lengths, targets, n_rows)
        costs = self._cost.row_cost(tokens, squares, row_targets)
        order = order_rows(costs, g.rows_per_step, self._balance_window, seed)
        if epoch == 0 and self._short_first_steps:
            # the same rows as without, so what the steps after these train on does not change
            early = order[: self._short_first_steps * g.rows_per_step]
            early[:] = early[np.argsort((squares / tokens)[early], kind="stable")]
        by_row, row_first = _group(rows, order)
        tail = spread_tail(lengths[by_row], row_first, g.rows_per_step)
        counts = PlanCounts(
            drawn=n_drawn,
            examples=len(docs),
            tokens=int(tokens.sum()),
            target_tokens=int(row_targets.sum()),
            target_weight=weight,
            rows=n_rows,
            fill=float(tokens.sum()) / (n_rows * g.seq_len),
            steps=-(-n_rows // g.rows_per_step),
            truncated=truncated,
            dropped=dropped,
            duplicates=self._pool.duplicates,
        )
        return PlannedEpoch(docs=docs[by_row[tail.order]], row_first=tail.row_first, counts=counts)

    def steps(self, start: Position, epochs: int) -> Iterator[tuple[StepPlan, Position]]:
        """Yield global batches from `start` to the end of epoch `epochs` - 1, each with the position after it."""
        done, first = start.step, start.epoch_step
        for epoch in range(start.epoch, epochs):
            plan = self.epoch(epoch)
            for i in range(first, plan.n_steps):
                done, last = done + 1, i + 1 == plan.n_steps
                yield plan.step(i), Position(step=done, epoch=epoch + last, epoch_step=0 if last else i + 1)
            first = 0
            del plan  # else it would lie beside the next one while that is planned

    def _kept(
        self, drawn: NDArray[np.int64], slices: TruncatedSpans
    ) -> tuple[NDArray[np.bool_], dict[str, int], int]:
        """Return which documents are trained on, the others counted by reason, and how many were cut."""
        seq_len = self._geometry.seq_len
        stored = self._corpus.lengths[drawn]
        long = stored > seq_len
        n_long = int(long.sum())
        if n_long and self._too_long == "error":
            raise UserError(
                f"{n_long} documents are longer than pack.seq_len={seq_len} tokens (the longest has {stored.max()}) and "
                "pack.too_long=error; raise pack.seq_len, or set pack.too_long to drop, truncate_prompt or truncate_answer"
            )
        if n_long and n_long == len(drawn) and self._too_long == "drop":
            raise UserError(
                f"pack.seq_len={seq_len} is shorter than every document (the shortest has {stored.min()} tokens) and "
                "pack.too_long=drop, so nothing would be trained on; raise pack.seq_len"
            )
        no_target = slices.target_weights == 0
        kept = ~no_target
        cut = "answer_exceeds_row" if self._too_long == "truncate_prompt" else "prompt_exceeds_row"
        reasons = {"no_target": no_target & ~long, cut: no_target & long}
        if self._too_long == "drop":
            kept &= ~long
            reasons = {"too_long": long, "no_target": no_target & ~long}
        dropped = {reason: int(which.sum()) for reason, which in reasons.items() if which.any()}
        if not kept.any():
            raise UserError(
                f"none of the {len(drawn)} documents can be trained on ({dropped}); no answer fits into "
                f"pack.seq_len={seq_len} with its prompt: raise pack.seq_len, or look at render.train_on and pack.too_long"
            )
        return kept, dropped, int((long & kept).sum())


@jit
def _row_sums(
    rows: NDArray[np.int32], lengths: NDArray[np.int32], targets: NDArray[np.int32], n_rows: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return tokens, squared document lengths and target tokens of each row."""
    tokens, squares, target_tokens = np.zeros(n_rows), np.zeros(n_rows), np.zeros(n_rows)
    for i in range(len(rows)):
        length = np.float64(lengths[i])
        tokens[rows[i]] += length
        squares[rows[i]] += length * length
        target_tokens[rows[i]] += targets[i]
    return tokens, squares, target_tokens


@jit
def _group(rows: NDArray[np.int32], order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Group documents by row, rows in `order`: return the documents, [D], and where each row begins, [R+1]."""
    place = np.empty(len(order), np.int64)
    for k in range(len(order)):
        place[order[k]] = k
    first = np.zeros(len(order) + 1, np.int64)
    for row in rows:
        first[place[row] + 1] += 1
    for k in range(len(order)):
        first[k + 1] += first[k]
    at = first[:-1].copy()
    docs = np.empty(len(rows), np.int64)
    for i in range(len(rows)):
        k = place[rows[i]]
        docs[at[k]] = i
        at[k] += 1
    return docs, first
