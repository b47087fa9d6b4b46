"""Losses on the evaluation sets during training: packed, by the same engine, the same passes on every rank.

In: the stores of the curves (`core.sets.CURVES`). Out: the loss of each curve, and of each task that judges.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sft_dist.batch.collate import collate, sequence_shard
from sft_dist.batch.epoch_plan import EpochPlan
from sft_dist.batch.planner import Planner
from sft_dist.config import RunConfig
from sft_dist.config.auto import asked
from sft_dist.core.sets import VALIDATION
from sft_dist.mix import Corpus
from sft_dist.model.packed import upload
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pack import CostModel
from sft_dist.shards import Store
from sft_dist.train.metrics import Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class _Curve:
    """The examples of one curve, and the passes that are made over them."""

    corpus: Corpus
    plan: EpochPlan
    passes: int
    meter: Meter


def set_losses(
    config: RunConfig,
    engine: Any,
    eval_stores: Mapping[str, str],
    cost: CostModel,
    sequence: SequenceGroup,
    moved: Callable[[], None],
) -> Callable[[], dict[str, Any]]:
    """Return a function that computes {loss, set_loss, task_loss} over at most `train.eval_tokens` tokens. Collective.

    `loss` is that of the validation set, None without one: it is what chooses. `set_loss` has every curve, each from an equal part of
    the tokens; `task_loss` the tasks of the sets that judge.

    Args:
        config: The run's config.
        engine: The engine that trains.
        eval_stores: Curve -> folder of its store.
        cost: What rows cost, for an even load.
        sequence: The ranks that share rows with this one.
        moved: Called after every pass, for a heartbeat: a long evaluation is no hang.
    """
    rank, world = sequence.data_rank, sequence.data_ranks
    micro_rows, seq_len = asked(config)["micro_rows"], config.pack.seq_len
    budget = config.train.eval_tokens // max(1, len(eval_stores))

    def curve(folder: str) -> _Curve:
        corpus = Corpus({"eval": Store.open(Path(folder))})
        plan = Planner(
            corpus,
            seq_len=seq_len,
            rows_per_step=world * micro_rows,
            micro_rows=micro_rows,
            world_size=world,
            cost=cost,
            seed=config.seed,
        ).epoch(0)
        passes = min(plan.n_steps, max(1, budget // (world * micro_rows * seq_len)))
        return _Curve(corpus=corpus, plan=plan, passes=passes, meter=Meter(corpus.task_names, engine.device))

    curves = {name: curve(folder) for name, folder in eval_stores.items()}

    def measure(curve: _Curve) -> tuple[float, dict[str, float]]:
        weight = 0.0
        for i in range(curve.passes):
            step = curve.plan.step(i)
            weight += step.target_weight
            for micro in step.micro_rows:
                batch = sequence_shard(collate(curve.corpus, micro[rank]), sequence.place, sequence.size)
                held = upload(batch, engine.device, curve.meter.codes(batch))
                _, nll_N = engine(*held.arrive())
                curve.meter.add(held, nll_N)
                moved()
        sums = curve.meter.reduce()
        return sums.total["loss"] / weight, sums.task_loss

    @torch.no_grad()
    def evaluate() -> dict[str, Any]:
        engine.eval()
        found = {name: measure(curve) for name, curve in curves.items()}
        engine.train()
        return {
            "loss": found[VALIDATION][0] if VALIDATION in found else None,
            "set_loss": {name: loss for name, (loss, _) in found.items()},
            "task_loss": {
                task: loss
                for name, (_, tasks) in found.items()
                if name != VALIDATION
                for task, loss in tasks.items()
            },
        }

    return evaluate
