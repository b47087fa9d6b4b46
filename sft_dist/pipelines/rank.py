"""One rank of a training run: `torchrun ... -m sft_dist.pipelines.rank --run-dir DIR`, started by launch/node.sh.

Everything it needs lies in the run folder (config.json, stores.json); Hydra and the sources never run here. What it
leaves is read by the launcher: status.json first, for exit codes lie under torchrun and srun.
"""

from __future__ import annotations

import argparse
import math
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from sft_dist.batch.collate import collate
from sft_dist.batch.sampler import Planner, SamplerState
from sft_dist.checkpoint import store as checkpoints
from sft_dist.checkpoint.export import export_checkpoint
from sft_dist.checkpoint.store import Position
from sft_dist.config import RunConfig
from sft_dist.config.load import read_run
from sft_dist.core import process
from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.records import Batch, Row, StepMetrics, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.store import append_jsonl, read_json, write_json
from sft_dist.mix import Corpus
from sft_dist.pack import CostModel
from sft_dist.pipelines.assemble import Assembled, assemble
from sft_dist.pipelines.environment import environment
from sft_dist.pipelines.heldout import held_out_loss
from sft_dist.pipelines.plan import cost_of, make_planner, open_corpus, plan_facts, total_steps
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.train import loop, zero
from sft_dist.train.guard import Heartbeat, Requests
from sft_dist.train.metrics import Meter, peak_flops
from sft_dist.train.optim import lr_at
from sft_dist.train.tracker import Tracker

log = process.logger(__name__)


def main() -> int:
    """Run one rank; return its exit code: 0 finished or stopped, 2 a user's mistake, 3 fatal."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run-dir", type=Path, required=True)
    folder = RunFolder(arguments.parse_args().run_dir)
    config = read_run(folder.path)
    zero.init_distributed(config.deepspeed.timeout_minutes)
    try:
        with Heartbeat(folder) as heartbeat:
            state = train(config, folder, heartbeat)
    except UserError as error:
        me = process.current()
        where = "" if me.is_main else f"rank {me.rank} on {socket.gethostname()}: "
        sys.stderr.write(f"error: {where}{error}\n")
        if not isinstance(error, BusyError) and (me.is_main or folder.status().get("state") != "fatal"):
            folder.set_status("fatal", reason=f"{where}{error}")
        return 2  # without leaving the process group in order: other ranks may wait inside a collective
    dist.destroy_process_group()
    return 0 if state in ("finished", "stopped") else 3


def train(config: RunConfig, folder: RunFolder, heartbeat: Heartbeat) -> str:
    """Train from wherever the run folder stands; export when finished; return the final state."""
    held = _lock(folder)
    rank, world = dist.get_rank(), dist.get_world_size()
    if config.train.threads_per_rank:
        torch.set_num_threads(config.train.threads_per_rank)
    stores = read_json(folder.stores)
    corpus = open_corpus(
        {n: Path(s["path"]) for n, s in stores["sources"].items()},
        {n: s["key"] for n, s in stores["sources"].items()},
    )
    tokenizer = TextTokenizer.load(stores["tokenizer"])
    parts = assemble(config, folder, tokenizer)
    log.info("attention: %s (%s)", parts.backend, parts.reason)
    cost = cost_of(parts.engine.module.hf.config.get_text_config().to_dict())
    planner = make_planner(config, corpus, world_size=world, cost=cost)
    plan = _Plan.of(config, planner)
    start = _resume(config, folder, parts.engine, plan.hash)
    if rank == 0:
        facts = plan_facts(
            config, planner.epoch(0), corpus, plan.steps, world, parts.parameters, stores["read"]
        )
        write_json(folder.path / "plan.json", facts)
        log.info("%s", _batch_line(config, world, plan.steps, parts.parameters))
    position, state, reason = _loop(
        config, folder, parts, planner, plan, corpus, start, stores["eval_store"], cost, heartbeat
    )
    if state == "finished" and config.train.export:
        export_checkpoint(
            folder.checkpoints / f"step-{position.step:08d}",
            parts.model_path,
            folder.export,
            dtype=config.model.dtype,
            tokenizer=tokenizer,
            template_text=stores["template_text"],
            stop_ids=stores["stop_ids"],
            part=(rank, world),
            barrier=partial(_barrier, heartbeat),
            revision=config.model.revision,
            trust_remote_code=config.model.trust_remote_code,
        )
    if rank == 0:
        why = {"reason": reason} if reason else {}
        folder.set_status(state, step=position.step, steps=plan.steps, **why)  # type: ignore[arg-type]
    if held is not None:
        held.close()
    return state


def _barrier(heartbeat: Heartbeat) -> None:
    heartbeat.progress()
    dist.barrier()
    heartbeat.progress()


def _lock(folder: RunFolder) -> IO[str] | None:
    """Hold the run folder on rank 0: two jobs on one folder would overwrite one another. All ranks learn the outcome."""
    held, refusal = None, ""
    if dist.get_rank() == 0:
        try:
            held = folder.lock()
            folder.set_status("running", step=0)
            write_json(folder.path / "env.json", environment(dist.get_world_size()))
        except BusyError as error:
            refusal = str(error)
    box = [refusal]
    dist.broadcast_object_list(box, src=0)
    if box[0]:
        raise BusyError(box[0])
    return held


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What all ranks agree on before the first step."""

    hash: int
    steps: int

    @classmethod
    def of(cls, config: RunConfig, planner: Planner) -> _Plan:
        first = planner.epoch(0)
        hashes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(hashes, first.hash)
        if len(set(hashes)) != 1:
            raise UserError(
                f"the ranks planned different epochs (hashes {hashes}), so they would train on different data; "
                "the nodes see different token stores or versions: check data.dir on every node"
            )
        return cls(hash=first.hash, steps=total_steps(config, planner, first))


def _resume(config: RunConfig, folder: RunFolder, engine: Any, plan_hash: int) -> Position:
    """Return where to start: after the newest whole checkpoint, or at the beginning."""
    found = checkpoints.newest(
        folder.checkpoints, lambda path, why: folder.event("bad_checkpoint", path=path.name, reason=why)
    )
    if found is None:
        if config.checkpoint.resume == "required":
            raise UserError(
                f"checkpoint.resume=required, but {folder.checkpoints} has no whole checkpoint, so there is nothing to "
                "continue; use checkpoint.resume=auto to start anew"
            )
        return Position(step=0, epoch=0, epoch_step=0)
    position, facts = checkpoints.load(engine, found)
    if facts["plan_hash"] != plan_hash:
        raise UserError(
            f"{found} was trained on another data plan (stores, mixture, seq_len or tokens_per_step changed), so continuing "
            "would repeat or skip examples; restore the settings, or use another name"
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
    return position


def _loop(
    config: RunConfig,
    folder: RunFolder,
    parts: Assembled,
    planner: Planner,
    plan: _Plan,
    corpus: Corpus,
    start: Position,
    eval_store: str | None,
    cost: CostModel,
    heartbeat: Heartbeat,
) -> tuple[Position, str, str]:
    """Wire the loop to the run folder: what is logged, saved and evaluated, and when."""
    engine, is_main, world = parts.engine, dist.get_rank() == 0, dist.get_world_size()
    requests = Requests(folder, is_main=is_main)
    requests.listen()
    evaluator = held_out_loss(config, engine, eval_store, cost) if eval_store else None
    optim = config.optim
    tracking = config.wandb.model_dump(exclude={"mode"})
    mode = config.wandb.mode if is_main else "disabled"

    def event(kind: str, **facts: Any) -> None:
        if is_main:
            folder.event(kind, **facts)

    whole = config.model_dump(mode="json")
    with Tracker.start(folder.path, mode=mode, name=config.name, config=whole, **tracking) as tracker:

        def keep(line: dict[str, Any], *, track: bool = True) -> None:
            if is_main:
                append_jsonl(folder.metrics, line)
                if track:
                    tracker.log(line)

        def on_step(metrics: StepMetrics) -> None:
            values = {k: _finite(v) for k, v in asdict(metrics).items()}
            keep(
                {"kind": "train", "time": time.time(), **values},
                track=metrics.step % config.train.log_every == 0,
            )
            if is_main:
                folder.set_status("running", step=metrics.step, steps=plan.steps)

        def save(position: Position) -> bool:
            began = time.monotonic()
            facts = {"plan_hash": plan.hash}
            saved = checkpoints.save(engine, folder.checkpoints, position, facts, config.checkpoint.keep_last)
            if is_main:
                folder.clear("save")
            if saved.folder:
                event("saved", step=position.step, seconds=round(time.monotonic() - began, 3))
            else:
                log.warning(
                    "the checkpoint at step %d failed (%s); the last good one stays",
                    position.step,
                    saved.error,
                )
                event("save_failed", step=position.step, reason=saved.error)
            return saved.folder is not None

        def evaluate(step: int) -> None:
            if evaluator is not None:
                keep({"kind": "eval", "time": time.time(), "step": step, **evaluator()})

        return loop.run(
            engine,
            _work(planner, corpus, start, plan.steps, config.train.epochs),
            start=start,
            schedule=loop.Schedule(
                total_steps=plan.steps,
                save_every_steps=config.checkpoint.save_every_steps,
                save_every_minutes=config.checkpoint.save_every_minutes,
                eval_every=config.train.eval_every,
                max_skipped_steps=config.train.max_skipped_steps,
            ),
            lr_of=lambda step: lr_at(
                step,
                total_steps=plan.steps,
                peak=optim.lr,
                schedule=optim.schedule,
                warmup=optim.warmup,
                decay=optim.decay,
                min_share=optim.min_lr_share,
            ),
            meter=Meter(corpus.task_names, engine.device),
            requests=requests,
            heartbeat=heartbeat,
            hooks=loop.Hooks(log=on_step, event=event, save=save, evaluate=evaluate),
            seed=config.seed,
            clip=optim.clip,
            useful_flops=lambda tokens, targets, pairs: cost.useful_flops(tokens, pairs, targets),
            peak_flops=(peak_flops(engine.device) or 0) * world or None,
        )


def _work(
    planner: Planner, corpus: Corpus, start: Position, steps: int, epochs: int
) -> Iterator[tuple[Position, StepPlan, Callable[[], list[Batch]]]]:
    """Yield every global batch from `start` on; collating waits for the loop's thread."""
    done, rank = start.step, dist.get_rank()
    for plan, after in planner.steps(SamplerState(epoch=start.epoch, step=start.epoch_step), epochs):
        if done >= steps:
            return
        done += 1
        mine = [micro[rank] for micro in plan.micro_rows]
        yield (
            Position(step=done, epoch=after.epoch, epoch_step=after.step),
            plan,
            partial(_collated, corpus, mine),
        )


def _collated(corpus: Corpus, micro_rows: list[tuple[Row, ...]]) -> list[Batch]:
    return [collate(corpus, rows) for rows in micro_rows]


def _batch_line(config: RunConfig, world: int, steps: int, parameters: int) -> str:
    rows = config.train.tokens_per_step // config.pack.seq_len
    micro = -(-rows // (world * config.train.micro_rows))
    return (
        f"{parameters:,} parameters, {world} ranks, ZeRO-{config.deepspeed.stage}, {config.model.dtype}; a global batch is "
        f"{rows} rows of {config.pack.seq_len} tokens: {micro} micro-steps of {config.train.micro_rows} rows a rank; {steps} steps"
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(record(main)())  # the first rank that fails leaves its traceback in TORCHELASTIC_ERROR_FILE
