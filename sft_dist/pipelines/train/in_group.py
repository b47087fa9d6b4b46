"""Training and evaluation in the caller's process group: every rank of it calls these alike. Nothing is started."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch.distributed as dist
from rich.console import Console

from sft_dist.config import RunConfig
from sft_dist.config.load import load_run_config
from sft_dist.core.collectives import from_rank_0
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.before_ranks import refuse_mistakes
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.evaluate import command as evaluation
from sft_dist.pipelines.train import worker
from sft_dist.pipelines.train.run_folder import run_folder, set_up
from sft_dist.train import zero
from sft_dist.train.guard import Heartbeat


def train_in_group(config: RunConfig) -> RunFolder:
    """Prepare on rank 0, train on all; return the run folder. Collective.

    Raises:
        UserError: On every rank, for a mistake in config or data.
        RuntimeError: When the run ended otherwise than finished or stopped.
    """
    _join(config)
    folder = run_folder(config)

    def write() -> None:
        refuse_mistakes(config)
        set_up(config, prepare(config, command="api.prepare(config)"), folder)

    _on_rank_0(write)
    with Heartbeat(folder) as heartbeat:
        state = worker.train(load_run_config(folder.path), folder, heartbeat)
    if state not in ("finished", "stopped"):
        raise RuntimeError(
            f"{folder.path} ended as {state}: {folder.status().get('reason', 'see its events.jsonl')}"
        )
    return folder


def evaluate_in_group(folder: RunFolder) -> None:
    """Generate on all ranks, score on rank 0. Collective.

    Raises:
        UserError: On every rank, for a run without a model or a mistake of its config.
    """
    _join(load_run_config(folder.path))

    def ranks() -> int:
        from_rank_0("generate")
        code = evaluation.run_rank(folder)
        dist.barrier()
        return code

    if dist.get_rank() == 0:
        try:
            evaluation.evaluate(folder, Console(stderr=True), ranks=ranks)
        except Exception as error:
            from_rank_0(f"{error}")
            raise
        told = from_rank_0("done")
    else:
        while (told := from_rank_0("")) == "generate":
            evaluation.run_rank(folder)
            dist.barrier()
    if told != "done":
        raise UserError(told)


def _join(config: RunConfig) -> None:
    """Join the group that the environment describes, unless the caller has."""
    if dist.is_initialized():
        os.environ.setdefault("RANK", str(dist.get_rank()))
        os.environ.setdefault("WORLD_SIZE", str(dist.get_world_size()))
    zero.init_distributed(config.deepspeed.timeout_minutes)


def _on_rank_0(work: Callable[[], None]) -> None:
    """Run something on rank 0 while the others wait; a mistake of the user's is raised on all. Collective."""
    failed = ""
    if dist.get_rank() == 0:
        try:
            work()
        except UserError as error:
            failed = str(error)
    if failed := from_rank_0(failed):
        raise UserError(failed)
