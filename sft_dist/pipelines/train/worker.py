"""One rank of a training run: `torchrun ... -m sft_dist.pipelines.train.worker --run-dir DIR`, started by launch/node.sh.

Everything it needs lies in the run folder (config.json, stores.json); Hydra and the sources never run here. What it
leaves is read by the launcher: status.json first, for exit codes lie under torchrun and srun.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from sft_dist.batch.planner import Planner
from sft_dist.batch.shared_plan import NodePlans
from sft_dist.checkpoint.background import Saved, Saver
from sft_dist.checkpoint.export import export_checkpoint
from sft_dist.checkpoint.io import folder_name
from sft_dist.checkpoint.remote import Remote
from sft_dist.config import RunConfig, plugins
from sft_dist.config.auto import asked
from sft_dist.config.load import load_run_config
from sft_dist.core import process
from sft_dist.core.bus_error import name_mapped_file
from sft_dist.core.collectives import from_rank_0, gather
from sft_dist.core.errors import NO_ROOM, BusyError, UserError, disk_error
from sft_dist.core.files import write_checked, write_json
from sft_dist.core.records import Position, StepMetrics
from sft_dist.core.runfolder import RunFolder
from sft_dist.mix import Corpus
from sft_dist.model.trainable import with_backward
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pack import CostModel
from sft_dist.pipelines.cluster.estimate_inputs import host_memory
from sft_dist.pipelines.config_warnings import config_warnings
from sft_dist.pipelines.evaluate.verify import comparable, losses_of_engine, verify_export
from sft_dist.pipelines.train.auto import settle, settled_before
from sft_dist.pipelines.train.engine import TrainingSetup, build_engine, export_base, exports_adapter
from sft_dist.pipelines.train.oom_message import oom_message
from sft_dist.pipelines.train.planning import cost_of, make_planner, open_corpus, plan_facts, total_steps
from sft_dist.pipelines.train.resume import Resumed, remaining, resume
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.report.model_card import write_model_card
from sft_dist.shards.staging import stage
from sft_dist.shards.verify import StoreCheck
from sft_dist.train import loop, zero
from sft_dist.train.callbacks import Callbacks
from sft_dist.train.environment import environment
from sft_dist.train.evaluate import set_losses
from sft_dist.train.guard import Heartbeat, SpikeDetector, StopSignals
from sft_dist.train.metrics import Meter, peak_flops
from sft_dist.train.profile import Profiler
from sft_dist.train.run_log import RunLogger
from sft_dist.train.schedule import lr_at
from sft_dist.train.tracker import Tracker

log = process.logger(__name__)


def main() -> int:
    """Run one rank; return its exit code: 0 finished or stopped, 2 a user's mistake, 3 fatal."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run-dir", type=Path, required=True)
    folder = RunFolder(arguments.parse_args().run_dir)
    config = load_run_config(folder.path)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(mode=True)
    zero.init_distributed(config.deepspeed.timeout_minutes)
    try:
        with Heartbeat(folder) as heartbeat:
            state = train(config, folder, heartbeat)
    except (UserError, torch.OutOfMemoryError) as error:
        if isinstance(error, BusyError):
            sys.stderr.write(f"error: {error}\n")
        else:
            _say_fatal(folder, str(error) if isinstance(error, UserError) else _out_of_memory(config, folder))
        return 2  # without leaving the process group in order: other ranks may wait inside a collective
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise  # another attempt may do better
        _say_fatal(folder, disk_error(error))
        return 2
    dist.destroy_process_group()
    return 0 if state in ("finished", "stopped") else 3


def _say_fatal(folder: RunFolder, reason: str) -> None:
    me = process.current()
    where = "" if me.is_main else f"rank {me.rank} on {socket.gethostname()}: "
    sys.stderr.write(f"error: {where}{reason}\n")
    if me.is_main or folder.status().get("state") != "fatal":
        try:
            folder.set_status("fatal", reason=f"{where}{reason}")
        except OSError as problem:  # the folder is gone, or its disk is full
            sys.stderr.write(f"status.json could not be written: {problem}\n")


def _out_of_memory(config: RunConfig, folder: RunFolder) -> str:
    facts = {"tokens": 1, "target_tokens": 1}
    with suppress(UserError):
        facts |= folder.plan("tokens", "target_tokens")
    return oom_message(
        settled_before(config, folder),
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
    remote = Remote(config.checkpoint.remote) if config.checkpoint.remote else None
    if remote:
        remote.probe(f"rank-{rank}")  # now: a failed upload later is but a warning
    stores = folder.read_stores()
    paths = {n: _store(s, config.launch.stage_dir) for n, s in stores["sources"].items()}
    corpus = open_corpus(paths, {n: s["key"] for n, s in stores["sources"].items()})
    name_mapped_file(partial(_say_fatal, folder))
    check = StoreCheck(paths.values() if process.current().local_rank == 0 else None)
    tokenizer = TextTokenizer.load(stores["tokenizer"], added=config.render.added)
    config = settle(config, folder)
    parts = build_engine(config, folder, tokenizer)
    if check.small:
        check.wait()
    log.info("attention: %s (%s)", parts.backend, parts.reason)
    if parts.recurrent:
        log.info("layers with state: %s", parts.recurrent)
    plan = _Plan.of(config, corpus, parts, stores["read"])
    resumed = resume(config, folder, parts.engine, remote, plan_hash=plan.hash, base=parts.base)
    if rank == 0:
        write_checked(folder.path / "plan.json", plan.facts)
        log.info("%s", _batch_line(config, parts.sequence, plan.steps, parts.parameters))
        for warning in config_warnings(config, ranks=world, steps=plan.steps):
            log.warning("%s", warning)
    position, state, reason, best = _loop(
        config,
        folder,
        parts,
        plan,
        resumed,
        check,
        heartbeat,
        remote,
        stores["eval_stores"],
    )
    if state == "finished" and config.train.export:
        expected = None
        if config.train.verify_export and not comparable(config):
            expected = losses_of_engine(config, parts, tokenizer.vocab_size)
        export_checkpoint(
            _exported(config, folder, position.step, best),
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
        if rank == 0 and config.train.verify_export:
            verify_export(config, folder, folder.export, vocab_size=tokenizer.vocab_size, expected=expected)
        if rank == 0:
            write_model_card(folder.path, folder.export)
    if rank == 0:
        why: dict[str, Any] = {"reason": reason} if reason else {}
        if reason and state == "finished":
            why["patience"] = config.train.patience_evaluations  # the same command has nothing left to do
        folder.set_status(state, step=position.step, steps=plan.steps, **why)  # type: ignore[arg-type]
    if held is not None:
        held.close()
    return state


def _exported(config: RunConfig, folder: RunFolder, last: int, best: int) -> Path:
    """Return the checkpoint that is exported. The best may be gone, where an earlier part of the run kept none."""
    folders = {step: folder.checkpoints / folder_name(step) for step in (last, best)}
    if config.train.export_best and best and best != last:
        if from_rank_0(folders[best].is_dir()):
            log.info("the export is of step %d, which has the lowest validation loss", best)
            return folders[best]
        log.warning(
            "the checkpoint of the lowest validation loss (step %d) is gone; the export is of step %d",
            best,
            last,
        )
    return folders[last]


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
    held, refusal, hosts = None, "", gather(socket.gethostname())
    if dist.get_rank() == 0:
        try:
            held = folder.lock()
            folder.set_status("running", step=0)
            write_json(folder.path / "env.json", environment(hosts))
        except BusyError as error:
            refusal = str(error)
    if refusal := from_rank_0(refusal):
        raise BusyError(refusal)
    return held


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What all ranks agree on before the first step. The epochs themselves are the planner's: they are large."""

    corpus: Corpus
    planner: Planner
    facts: dict[str, Any]
    hash: int
    steps: int
    epoch_steps: int
    cost: CostModel

    @classmethod
    def of(cls, config: RunConfig, corpus: Corpus, parts: TrainingSetup, read: dict[str, Any]) -> _Plan:
        """Plan the first epoch once a node, and compare on every rank."""
        cost = cost_of(parts.engine.module.hf.config.get_text_config().to_dict())
        shared = NodePlans.of_run(
            from_rank_0(secrets.token_hex(8)),
            leads=int(os.environ.get("LOCAL_RANK", "0")) == 0,
            patience_s=30.0 * config.deepspeed.timeout_minutes,
        )
        planner = make_planner(config, corpus, world_size=parts.sequence.data_ranks, cost=cost, shared=shared)
        first = planner.epoch(0)
        hashes = gather(first.hash)
        if len(set(hashes)) != 1:
            raise UserError(
                f"the ranks planned different epochs (hashes {hashes}), so they would train on different data; "
                "the nodes see different token stores or versions: check data.dir on every node"
            )
        # every epoch is planned for this, so by one rank
        steps = from_rank_0(total_steps(config, planner, first) if dist.get_rank() == 0 else 0)
        facts: dict[str, Any] = {}  # of rank 0, who writes them
        if dist.get_rank() == 0:
            facts = plan_facts(config, first, corpus, steps, dist.get_world_size(), parts.parameters, read)
        return cls(
            corpus=corpus,
            planner=planner,
            facts=facts,
            hash=first.hash,
            steps=steps,
            epoch_steps=first.n_steps,
            cost=cost,
        )


def _loop(
    config: RunConfig,
    folder: RunFolder,
    parts: TrainingSetup,
    plan: _Plan,
    resumed: Resumed,
    check: StoreCheck,
    heartbeat: Heartbeat,
    remote: Remote | None,
    eval_stores: dict[str, str],
) -> tuple[Position, str, str, int]:
    """Wire the loop to the run folder: what is logged, saved and evaluated, and when. Return how it ended, and the best step."""
    engine, is_main = parts.engine, dist.get_rank() == 0
    corpus, cost, optim, start = plan.corpus, plan.cost, config.optim, resumed.position
    requests = StopSignals(folder, is_main=is_main)
    requests.listen()
    evaluator = None
    if eval_stores:
        evaluator = set_losses(config, engine, eval_stores, cost, parts.sequence, moved=heartbeat.progress)
    useful = with_backward(cost, engine.module.hf)
    with (
        Tracker.start(
            folder.path,
            mode=config.wandb.mode if is_main else "disabled",
            tensorboard=config.train.tensorboard and is_main,
            done=start.step,
            log_every=config.train.log_every_steps,
            name=config.name,
            config=config.model_dump(mode="json"),
            **config.wandb.model_dump(exclude={"mode"}),
        ) as tracker,
        closing(
            Profiler(config.train.profile if is_main else None, folder.path / "profile", done=start.step)
        ) as profiler,
    ):
        lines = RunLogger(
            folder,
            tracker,
            is_main=is_main,
            steps=plan.steps,
            log_every=config.train.log_every_steps,
            remote=config.checkpoint.remote,
            tasks=corpus.task_names,
        )

        callbacks = Callbacks(plugins.CALLBACKS, folder.path, is_main=is_main)

        def on_step(metrics: StepMetrics) -> None:
            check.look()
            lines.step(metrics)
            callbacks.tell("on_step", metrics)
            if parts.ema is not None:
                parts.ema.after(metrics.step)
            profiler.after(metrics.step)

        def evaluate(step: int) -> float | None:
            if evaluator is None:
                return None
            scores = evaluator()
            lines.evaluation(step, scores)
            callbacks.tell("on_evaluation", step, scores)
            chosen_by: float | None = scores["loss"]  # of the validation set; what judges chooses nothing
            return chosen_by

        def saved(outcome: Saved) -> None:
            lines.saved(outcome)
            if outcome.folder is not None and outcome.phase == "commit":
                callbacks.tell("on_save", outcome.position.step, outcome.folder)

        def settle() -> None:
            check.wait()  # nothing is kept that was trained on damaged data
            if parts.ema is not None:
                parts.ema.settle()

        saver = Saver(
            engine,
            folder.checkpoints,
            facts={"plan_hash": plan.hash, "base": parts.base},
            keep=config.checkpoint,
            report=saved,
            saved_at=start if start.step else None,
            losses=resumed.validation_losses,
            remote=remote,
            moved=heartbeat.progress,
            settle=settle,
        )
        ended = loop.run(
            engine,
            remaining(config, plan.planner, corpus, start=start, steps=plan.steps, sequence=parts.sequence),
            loop.Steps(
                start=start,
                total=plan.steps,
                in_epoch=plan.epoch_steps,
                lr_of=lambda step: lr_at(
                    step, optim, total_steps=plan.steps, tokens_per_step=config.train.tokens_per_step
                ),
            ),
            train=config.train,
            checkpoint=config.checkpoint,
            clip=optim.clip,
            seed=config.seed,
            guards=loop.Guards(
                requests=requests, heartbeat=heartbeat, spikes=SpikeDetector(config.train, resumed.losses)
            ),
            saver=saver,
            hooks=loop.Hooks(log=on_step, event=lines.event, evaluate=evaluate),
            meter=Meter(
                corpus.task_names,
                engine.device,
                corpus.source_names,
                (dist.get_rank(), dist.get_world_size()),
            ),
            flops=loop.Flops(
                useful=lambda tokens, targets, pairs: useful.useful_flops(tokens, pairs, targets),
                peak=(peak_flops(engine.device) or 0) * dist.get_world_size() or None,
            ),
        )
        callbacks.tell("on_end", ended[1])
        return (*ended, saver.best)


def _batch_line(config: RunConfig, sequence: SequenceGroup, steps: int, parameters: int) -> str:
    rows = config.train.tokens_per_step // config.pack.seq_len
    micro = -(-rows // (sequence.data_ranks * asked(config)["micro_rows"]))
    shared = f" ({sequence.size} share a row)" if sequence.size > 1 else ""
    return (
        f"{parameters:,} parameters, {sequence.data_ranks * sequence.size} ranks{shared}, ZeRO-{config.deepspeed.stage}, {config.model.dtype}; a global batch is "
        f"{rows} rows of {config.pack.seq_len} tokens: {micro} micro-steps of {config.train.micro_rows} rows a rank; {steps} steps"
    )


if __name__ == "__main__":
    sys.exit(record(main)())  # the first rank that fails leaves its traceback in TORCHELASTIC_ERROR_FILE
