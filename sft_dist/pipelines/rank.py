"""One rank of a training run: `torchrun ... -m sft_dist.pipelines.rank --run-dir DIR`, started by launch/node.sh.

Everything it needs lies in the run folder (config.json, stores.json); Hydra and the sources never run here. What it
leaves is read by the launcher: status.json first, for exit codes lie under torchrun and srun.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from sft_dist.batch.collate import collate, sequence_slice
from sft_dist.batch.sampler import Planner, SamplerState
from sft_dist.checkpoint import store as checkpoints
from sft_dist.checkpoint.background import Saved, Saver
from sft_dist.checkpoint.export import export_checkpoint
from sft_dist.checkpoint.remote import Remote
from sft_dist.checkpoint.store import Keep, Position
from sft_dist.config import RunConfig
from sft_dist.config.load import read_run
from sft_dist.core import process
from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.records import Batch, Row, StepMetrics, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.store import append_jsonl, read_json, read_jsonl, write_json
from sft_dist.mix import Corpus
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pack import CostModel
from sft_dist.pipelines.assemble import Assembled, assemble, export_base, exports_adapter
from sft_dist.pipelines.environment import environment
from sft_dist.pipelines.estimate import host_memory
from sft_dist.pipelines.heldout import held_out_loss
from sft_dist.pipelines.memory import out_of_memory
from sft_dist.pipelines.plan import cost_of, make_planner, open_corpus, plan_facts, total_steps
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.shards.staging import stage
from sft_dist.train import loop, zero
from sft_dist.train.guard import Heartbeat, Judge, Policy, Requests
from sft_dist.train.metrics import Meter, peak_flops
from sft_dist.train.optim import lr_at, warmup_of
from sft_dist.train.profile import Profiler
from sft_dist.train.tracker import Tracker

log = process.logger("sft_dist.pipelines.rank")  # run as __main__, a name outside the package


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
    except (UserError, torch.OutOfMemoryError) as error:
        me = process.current()
        where = "" if me.is_main else f"rank {me.rank} on {socket.gethostname()}: "
        said = str(error) if isinstance(error, UserError) else _out_of_memory(config, folder)
        sys.stderr.write(f"error: {where}{said}\n")
        if not isinstance(error, BusyError) and (me.is_main or folder.status().get("state") != "fatal"):
            folder.set_status("fatal", reason=f"{where}{said}")
        return 2  # without leaving the process group in order: other ranks may wait inside a collective
    dist.destroy_process_group()
    return 0 if state in ("finished", "stopped") else 3


def _out_of_memory(config: RunConfig, folder: RunFolder) -> str:
    plan = folder.path / "plan.json"
    facts = read_json(plan) if plan.is_file() else {"tokens": 1, "target_tokens": 1}
    return out_of_memory(
        config,
        ranks=dist.get_world_size(),
        device_bytes=torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else host_memory(),
        target_share=facts["target_tokens"] / max(1, facts["tokens"]),
    )


def train(config: RunConfig, folder: RunFolder, heartbeat: Heartbeat) -> str:
    """Train from wherever the run folder stands; export when finished; return the final state."""
    held = _lock(folder)
    rank, world = dist.get_rank(), dist.get_world_size()
    if config.train.threads_per_rank:
        torch.set_num_threads(config.train.threads_per_rank)
    stores = read_json(folder.stores)
    corpus = open_corpus(
        {n: _store(s, config.launch.stage_dir) for n, s in stores["sources"].items()},
        {n: s["key"] for n, s in stores["sources"].items()},
    )
    tokenizer = TextTokenizer.load(stores["tokenizer"])
    parts = assemble(config, folder, tokenizer)
    log.info("attention: %s (%s)", parts.backend, parts.reason)
    cost = cost_of(parts.engine.module.hf.config.get_text_config().to_dict())
    planner = make_planner(config, corpus, world_size=parts.sequence.data_ranks, cost=cost)
    plan = _Plan.of(config, planner)
    remote = Remote(config.checkpoint.remote) if config.checkpoint.remote else None
    start, losses = _resume(config, folder, parts.engine, plan.hash, remote)
    policy = Policy(**config.train.model_dump(include={"on_nonfinite", "on_spike", "spike_deviations"}))
    if rank == 0:
        facts = plan_facts(
            config, planner.epoch(0), corpus, plan.steps, world, parts.parameters, stores["read"]
        )
        write_json(folder.path / "plan.json", facts)
        log.info("%s", _batch_line(config, parts.sequence, plan.steps, parts.parameters))
    position, state, reason = _loop(
        config,
        folder,
        parts,
        planner,
        plan,
        corpus,
        start,
        stores["eval_store"],
        cost,
        heartbeat,
        Judge(policy, losses),
        remote,
    )
    if state == "finished" and config.train.export:
        export_checkpoint(
            folder.checkpoints / f"step-{position.step:08d}",
            export_base(config, parts.model_path),
            folder.export,
            dtype=config.model.dtype,
            tokenizer=tokenizer,
            template_text=stores["template_text"],
            stop_ids=stores["stop_ids"],
            as_adapter=exports_adapter(config),
            part=(rank, world),
            barrier=partial(_barrier, heartbeat),
        )
    if rank == 0:
        why = {"reason": reason} if reason else {}
        folder.set_status(state, step=position.step, steps=plan.steps, **why)  # type: ignore[arg-type]
    if held is not None:
        held.close()
    return state


def _store(entry: dict[str, Any], stage_dir: str | None) -> Path:
    """Return where this node reads a store: a copy on its own disk, or where it lies."""
    if stage_dir is None:
        return Path(entry["path"])
    return stage(entry["url"] or entry["path"], Path(os.path.expandvars(stage_dir)))


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


def _resume(
    config: RunConfig, folder: RunFolder, engine: Any, plan_hash: int, remote: Remote | None
) -> tuple[Position, list[float]]:
    """Return where to start, after the newest whole checkpoint or at the beginning, and the last losses before it."""
    if remote:
        part = (dist.get_rank(), dist.get_world_size())
        fetched = remote.fetch(folder.checkpoints, part=part, barrier=dist.barrier)
        if fetched and dist.get_rank() == 0:
            folder.event("fetched", checkpoint=fetched.name, url=remote.url)
    found = checkpoints.newest(
        folder.checkpoints, lambda path, why: folder.event("bad_checkpoint", path=path.name, reason=why)
    )
    if found is None:
        if config.checkpoint.resume == "required":
            raise UserError(
                f"checkpoint.resume=required, but {folder.checkpoints} has no whole checkpoint, so there is nothing to "
                "continue; use checkpoint.resume=auto to start anew"
            )
        return Position(step=0, epoch=0, epoch_step=0), []
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
    return position, facts["losses"]


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
    judge: Judge,
    remote: Remote | None,
) -> tuple[Position, str, str]:
    """Wire the loop to the run folder: what is logged, saved and evaluated, and when."""
    engine, is_main, world = parts.engine, dist.get_rank() == 0, dist.get_world_size()
    requests = Requests(folder, is_main=is_main)
    requests.listen()
    evaluator = held_out_loss(config, engine, eval_store, cost, parts.sequence) if eval_store else None
    optim = config.optim
    tracking = config.wandb.model_dump(exclude={"mode"})
    mode = config.wandb.mode if is_main else "disabled"

    def event(kind: str, **facts: Any) -> None:
        if is_main:
            _written(folder.event, kind, **facts)

    whole = config.model_dump(mode="json")
    window = config.train.profile if is_main else None
    with (
        Tracker.start(folder.path, mode=mode, name=config.name, config=whole, **tracking) as tracker,
        closing(Profiler(window, folder.path / "profile", done=start.step)) as profiler,
    ):

        def keep(line: dict[str, Any], *, track: bool = True) -> None:
            if is_main:
                _written(append_jsonl, folder.metrics, line)
                if track:
                    tracker.log(line)

        def on_step(metrics: StepMetrics) -> None:
            values = {k: _finite(v) for k, v in asdict(metrics).items()}
            keep(
                {"kind": "train", "time": time.time(), **values},
                track=metrics.step % config.train.log_every == 0,
            )
            if is_main:
                _written(folder.set_status, "running", step=metrics.step, steps=plan.steps)
            if parts.ema is not None:
                parts.ema.after(metrics.step)
            profiler.after(metrics.step)

        def on_saved(saved: Saved) -> None:
            facts = {"step": saved.position.step, "seconds": round(saved.seconds, 3)}
            if saved.folder is None:
                log.warning(
                    "the checkpoint of step %d failed (%s); the last good one stays",
                    saved.position.step,
                    saved.error,
                )
                event("save_failed", reason=saved.error, **facts)
            elif saved.phase == "commit":
                event("saved", stall_s=round(saved.stall_s, 3), **facts)
            elif saved.error:
                log.warning(
                    "step %d was not copied to checkpoint.remote: %s", saved.position.step, saved.error
                )
                event("upload_failed", url=config.checkpoint.remote, reason=saved.error, **facts)
            elif saved.phase == "publish":
                event("uploaded", url=config.checkpoint.remote, **facts)

        def evaluate(step: int) -> float | None:
            if evaluator is None:
                return None
            scores = evaluator()
            keep({"kind": "eval", "time": time.time(), "step": step, **scores})
            return float(scores["loss"])

        retention = config.checkpoint
        saver = Saver(
            engine,
            folder.checkpoints,
            facts={"plan_hash": plan.hash},
            keep=Keep(
                last=retention.keep_last,
                best=retention.keep_best,
                optimizer_last=retention.optimizer_keep_last,
            ),
            report=on_saved,
            saved_at=start if start.step else None,
            losses=_held_out_losses(folder),
            remote=remote,
            moved=heartbeat.progress,
        )
        return loop.run(
            engine,
            _work(_steps(config, planner, start), corpus, start, plan.steps, parts.sequence),
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
                warmup=warmup_of(optim.warmup, optim.warmup_tokens, config.train.tokens_per_step),
                decay=optim.decay,
                min_share=optim.min_lr_share,
            ),
            meter=Meter(corpus.task_names, engine.device, corpus.source_names),
            requests=requests,
            heartbeat=heartbeat,
            hooks=loop.Hooks(log=on_step, event=event, evaluate=evaluate),
            saver=saver,
            judge=judge,
            seed=config.seed,
            clip=optim.clip,
            useful_flops=lambda tokens, targets, pairs: cost.useful_flops(tokens, pairs, targets),
            peak_flops=(peak_flops(engine.device) or 0) * world or None,
        )


def _written(write: Callable[..., None], *arguments: Any, **facts: Any) -> None:
    """Write a small file of the run folder; a full disk costs the line, not the run."""
    try:
        write(*arguments, **facts)
    except OSError as error:
        log.warning("%s; this line of the run's record is lost, training goes on", error)


def _held_out_losses(folder: RunFolder) -> dict[int, float]:
    """Return the held-out losses that were measured before, by step; the same on every rank."""
    lines = read_jsonl(folder.metrics) if dist.get_rank() == 0 else []
    box = [
        {m["step"]: m["loss"] for m in lines if m.get("kind") == "eval" and _finite(m["loss"]) is not None}
    ]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _steps(config: RunConfig, planner: Planner, start: Position) -> Iterator[tuple[StepPlan, SamplerState]]:
    """Yield the plan of every global batch from `start` on, and the state after it."""
    if not config.train.smoke:
        state = SamplerState(epoch=start.epoch, step=start.epoch_step)
        yield from planner.steps(state, config.train.epochs)
        return
    epoch = planner.epoch(0)
    for done, step in enumerate(epoch.heaviest(epoch.n_steps), start=1):
        yield epoch.step(step), SamplerState(epoch=0, step=done)


def _work(
    planned: Iterator[tuple[StepPlan, SamplerState]],
    corpus: Corpus,
    start: Position,
    steps: int,
    sequence: SequenceGroup,
) -> Iterator[tuple[Position, StepPlan, Callable[[], list[Batch]]]]:
    """Yield every global batch that is trained on; collating waits for the loop's thread."""
    done = start.step
    for plan, after in planned:
        if done >= steps:
            return
        done += 1
        mine = [micro[sequence.data_rank] for micro in plan.micro_rows]
        yield (
            Position(step=done, epoch=after.epoch, epoch_step=after.step),
            plan,
            partial(_collated, corpus, mine, sequence),
        )


def _collated(corpus: Corpus, micro_rows: list[tuple[Row, ...]], sequence: SequenceGroup) -> list[Batch]:
    return [sequence_slice(collate(corpus, rows), sequence.place, sequence.size) for rows in micro_rows]


def _batch_line(config: RunConfig, sequence: SequenceGroup, steps: int, parameters: int) -> str:
    rows = config.train.tokens_per_step // config.pack.seq_len
    micro = -(-rows // (sequence.data_ranks * config.train.micro_rows))
    shared = f" ({sequence.size} share a row)" if sequence.size > 1 else ""
    return (
        f"{parameters:,} parameters, {sequence.data_ranks * sequence.size} ranks{shared}, ZeRO-{config.deepspeed.stage}, {config.model.dtype}; a global batch is "
        f"{rows} rows of {config.pack.seq_len} tokens: {micro} micro-steps of {config.train.micro_rows} rows a rank; {steps} steps"
    )


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(record(main)())  # the first rank that fails leaves its traceback in TORCHELASTIC_ERROR_FILE
