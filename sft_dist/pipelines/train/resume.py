"""Run folder -> where training goes on, and the global batches that are left."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from sft_dist.batch.collate import collate, sequence_shard
from sft_dist.batch.planner import Planner
from sft_dist.checkpoint import io as checkpoints
from sft_dist.checkpoint.remote import Remote
from sft_dist.config import RunConfig
from sft_dist.core.collectives import from_rank_0
from sft_dist.core.errors import UserError
from sft_dist.core.process import logger
from sft_dist.core.records import Batch, Position, Row, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.mix import Corpus
from sft_dist.model.ulysses import SequenceGroup

log = logger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resumed:
    """Where training goes on, and what the checkpoint knows of the steps before.

    Attributes:
        position: Where to start.
        losses: Of the last steps (train.guard.SpikeDetector).
        validation_losses: By step, of all evaluations before it.
    """

    position: Position
    losses: Sequence[float] = ()
    validation_losses: Mapping[int, float] = field(default_factory=dict)


def resume(
    config: RunConfig,
    folder: RunFolder,
    engine: Any,
    remote: Remote | None,
    *,
    plan_hash: int,
    base: str | None,
) -> Resumed:
    """Fill the engine from the newest whole checkpoint, if there is one. Collective.

    Args:
        config: The run's config.
        folder: Its folder.
        engine: The engine, with the weights that training starts from.
        remote: Where checkpoints are copied to.
        plan_hash: Of the first epoch (EpochPlan.hash).
        base: Fingerprint of the model that training starts from, or None.

    Returns:
        Where to start, and what was measured before.

    Raises:
        UserError: When the checkpoint is of another data plan or model, or `checkpoint.resume=required` finds none.
    """

    def passed_over(path: Path, why: str) -> None:
        log.warning("%s is passed over: %s", path.name, why)
        folder.event("bad_checkpoint", path=path.name, reason=why)

    if remote:
        part = (dist.get_rank(), dist.get_world_size())
        fetched = remote.fetch(folder.checkpoints, part=part, barrier=dist.barrier, agree=from_rank_0)
        if fetched and dist.get_rank() == 0:
            folder.event("fetched", checkpoint=fetched.name, url=remote.url)
    found = checkpoints.newest(folder.checkpoints, passed_over)
    if found is None:
        if config.checkpoint.resume == "required":
            raise UserError(
                f"checkpoint.resume=required, but {folder.checkpoints} has no whole checkpoint, so there is nothing to "
                "continue; use checkpoint.resume=auto to start anew"
            )
        return Resumed(position=Position())
    position, facts = checkpoints.load(engine, found)
    if facts["plan_hash"] != plan_hash:
        raise UserError(
            f"{found} was trained on another data plan (stores, mixture, seq_len or tokens_per_step changed), so continuing "
            "would repeat or skip examples; restore the settings, or use another name"
        )
    if base is not None and facts.get("base", base) != base:
        raise UserError(
            f"{found} was trained from another base than the one that model.path={config.model.path} is now, so what is not in the "
            "checkpoint would come from the wrong model; give the old one by model.path or model.revision, or use another name"
        )
    if dist.get_rank() == 0:
        folder.event(
            "resumed",
            step=position.step,
            checkpoint=found.name,
            world_size=dist.get_world_size(),
            saved_world_size=facts["world_size"],
        )
        log.info("resumed %s (written by %d ranks)", found.name, facts["world_size"])
    return Resumed(
        position=position,
        losses=facts["losses"],
        validation_losses=dict(facts["validation_losses"]),
    )


def remaining(
    config: RunConfig,
    planner: Planner,
    corpus: Corpus,
    *,
    start: Position,
    steps: int,
    sequence: SequenceGroup,
) -> Iterator[tuple[Position, StepPlan, Callable[[], list[Batch]]]]:
    """Yield every global batch from `start` on: the position after it, its plan, and what collates this rank's part.

    Args:
        config: The run's config.
        planner: Plans the epochs.
        corpus: What is trained on.
        start: Position to start from.
        steps: Optimizer steps of the whole run.
        sequence: The ranks that share rows with this one.
    """
    # a slice: asking for one more would plan one more epoch
    for plan, after in islice(_planned(config, planner, start), max(0, steps - start.step)):
        mine = [micro[sequence.data_rank] for micro in plan.micro_rows]
        yield after, plan, partial(_collated, corpus, mine, sequence)


def _planned(config: RunConfig, planner: Planner, start: Position) -> Iterator[tuple[StepPlan, Position]]:
    """Yield the plan of every global batch from `start` on, and the position after it."""
    if not config.train.smoke:
        yield from planner.steps(start, math.ceil(config.train.epochs))
        return
    epoch = planner.epoch(0)
    for done, step in enumerate(epoch.heaviest(epoch.n_steps), start=1):
        yield epoch.step(step), Position(step=done, epoch_step=done)


def _collated(corpus: Corpus, micro_rows: list[tuple[Row, ...]], sequence: SequenceGroup) -> list[Batch]:
    return [sequence_shard(collate(corpus, rows), sequence.place, sequence.size) for rows in micro_rows]
