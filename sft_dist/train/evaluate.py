"""Loss on held-out examples during training, per task: packed, by the same engine, the same passes on every rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sft_dist.batch.collate import collate, sequence_shard
from sft_dist.batch.planner import Planner
from sft_dist.config import RunConfig
from sft_dist.mix import Corpus
from sft_dist.model.packed import upload
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pack import CostModel
from sft_dist.shards import Store
from sft_dist.train.metrics import Meter


def held_out_loss(
    config: RunConfig,
    engine: Any,
    eval_store: str,
    cost: CostModel,
    sequence: SequenceGroup,
    moved: Callable[[], None],
) -> Callable[[], dict[str, Any]]:
    """Return a function that computes {loss, task_loss} over at most `train.eval_tokens` tokens. Collective.

    `moved` is called after every pass, for a heartbeat: a long evaluation is no hang.
    """
    rank, world = sequence.data_rank, sequence.data_ranks
    corpus = Corpus({"eval": Store.open(Path(eval_store))})
    micro_rows, seq_len = config.train.micro_rows, config.pack.seq_len
    planner = Planner(
        corpus,
        seq_len=seq_len,
        rows_per_step=world * micro_rows,
        micro_rows=micro_rows,
        world_size=world,
        cost=cost,
        seed=config.seed,
    )
    plan = planner.epoch(0)
    passes = min(plan.n_steps, max(1, config.train.eval_tokens // (world * micro_rows * seq_len)))
    meter = Meter(corpus.task_names, engine.device)

    @torch.no_grad()
    def evaluate() -> dict[str, Any]:
        engine.eval()
        weight = 0.0
        for i in range(passes):
            step = plan.step(i)
            weight += step.target_weight
            for micro in step.micro_rows:
                batch = sequence_shard(collate(corpus, micro[rank]), sequence.place, sequence.size)
                held = upload(batch, engine.device, meter.codes(batch))
                _, nll_N = engine(*held.arrive())
                meter.add(held, nll_N)
                moved()
        sums = meter.reduce(stop=False, save=False)
        engine.train()
        return {"loss": sums.loss / weight, "task_loss": sums.task_loss}

    return evaluate
