"""Config -> trained run folder: prepare what is missing, start the ranks of this machine, follow them."""

from __future__ import annotations

from rich.console import Console

from sft_dist.cluster.local_ranks import failure, ranks_of, run_ranks
from sft_dist.config import RunConfig
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.before_ranks import refuse_mistakes
from sft_dist.pipelines.data.prepare import Prepared, prepare
from sft_dist.pipelines.train.planning import (
    check_ranks,
    cost_model,
    make_planner,
    open_corpus,
    total_steps,
)
from sft_dist.pipelines.train.run_folder import run_folder, set_up
from sft_dist.report.watch import Watcher

RANK = "sft_dist.pipelines.train.worker"


def train(config: RunConfig, console: Console, *, command: str) -> RunFolder:
    """Prepare what is missing, train on this machine, return the run folder.

    Raises:
        UserError: For anything wrong with config, data or model, or when another command starts or follows this run.
        RuntimeError: When the ranks failed.
    """
    folder = run_folder(config)
    if config.launch.nodes > 1:
        raise UserError(
            f"launch.nodes={config.launch.nodes}, but this command starts ranks on this machine only; "
            "use sbatch slurm/train.sbatch, or launch/multi_node.sh on every node"
        )
    nproc = ranks_of(config.launch.nproc)
    check_ranks(config, ranks=nproc)
    with folder.launching():
        return _train(config, console, folder, nproc, command)


def _train(config: RunConfig, console: Console, folder: RunFolder, nproc: int, command: str) -> RunFolder:
    refuse_mistakes(config)
    with console.status("preparing") as status:
        prepared = prepare(config, command=command, progress=status.update)
    set_up(config, prepared, folder)
    if _nothing_left(config, prepared, folder):
        console.print(
            f"{folder.path} is finished already; use another name, or checkpoint.resume=never to start anew"
        )
        return folder
    console.print(f"training in {folder.path} on {nproc} rank{'s' * (nproc > 1)}")
    (folder.path / "status.json").unlink(missing_ok=True)  # an earlier attempt's would speak for this one
    with Watcher(folder, console) as watcher:
        code = run_ranks(folder, RANK, nproc=nproc, port=config.launch.port, watch=watcher.poll)
    state = folder.status().get("state")
    if state == "stopped":
        again = " (without checkpoint.resume=never)" if config.checkpoint.resume == "never" else ""
        console.print(f"stopped at step {folder.status()['step']}; the same command{again} continues")
    elif code or state != "finished":
        raise failure(folder, RANK, code)
    elif why := folder.status().get("reason"):
        console.print(f"ended at step {folder.status()['step']}: {why}", soft_wrap=True)
    return folder


def _nothing_left(config: RunConfig, prepared: Prepared, folder: RunFolder) -> bool:
    """True when a finished run is as long as this config asks for."""
    status = folder.status()
    if status.get("state") != "finished":
        return False
    corpus = open_corpus(prepared.stores)
    planner = make_planner(
        config, corpus, world_size=1, cost=cost_model(config, prepared.renderer.tokenizer.vocab_size)
    )
    if status.get("patience") is not None and status["patience"] == config.train.patience_evaluations:
        return True  # it has ended before its schedule, and would again
    exported = (folder.export / "config.json").is_file() or not config.train.export
    return exported and int(status["step"]) >= total_steps(config, planner, planner.epoch(0))
