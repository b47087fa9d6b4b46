"""One rank of a training run: `torchrun ... -m sft_dist.pipelines.rank --run-dir DIR`, started by launch/node.sh.

Everything it needs lies in the run folder (config.json, stores.json); Hydra and the sources never run here. What it
leaves is read by the launcher: status.json first, for exit codes lie under torchrun and srun.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sft_dist.batch.collate import collate
from sft_dist.batch.sampler import Planner, SamplerState
from sft_dist.checkpoint import store as checkpoints
from sft_dist.checkpoint.export import export_checkpoint
from sft_dist.checkpoint.store import Position
from sft_dist.config import RunConfig
from sft_dist.config.load import thaw
from sft_dist.core import process
from sft_dist.core.errors import UserError
from sft_dist.core.records import Batch, StepMetrics, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.seeds import derive
from sft_dist.core.store import append_jsonl, read_json, write_json
from sft_dist.mix import Corpus
from sft_dist.model import leak
from sft_dist.model.load import create_initial, load_packed, read_config
from sft_dist.model.packed import to_inputs
from sft_dist.pipelines.plan import cost_of, make_planner, open_corpus, plan_facts, total_steps
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.shards import Store
from sft_dist.train import loop, zero
from sft_dist.train.guard import Heartbeat, Requests
from sft_dist.train.metrics import Meter, peak_flops
from sft_dist.train.optim import lr_at, parameter_groups
from sft_dist.train.tracker import Tracker

log = process.logger(__name__)


def main() -> int:
    """Run one rank; return its exit code: 0 finished or stopped, 2 a user's mistake, 3 fatal."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--run-dir", type=Path, required=True)
    folder = RunFolder(arguments.parse_args().run_dir)
    config = thaw(folder.config.read_text(encoding="utf-8"))
    try:
        zero.init_distributed(config.deepspeed.timeout_minutes)
        return _Run(config, folder).run()
    except UserError as error:
        if process.current().is_main:
            folder.set_status("fatal", reason=str(error))
            sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Run:
    """The parts of a run, built in order; `run` walks through them."""

    def __init__(self, config: RunConfig, folder: RunFolder) -> None:
        self.config, self.folder = config, folder
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.main = self.rank == 0
        self.device = torch.device(zero.device_type(), int(os.environ.get("LOCAL_RANK", "0"))) if zero.device_type() == "cuda" else torch.device("cpu")

    def run(self) -> int:
        """Train, export; return the exit code."""
        held = self._alone()  # noqa: F841  the lock lives as long as this frame
        config = self.config
        torch.set_num_threads(config.train.threads_per_rank or max(1, torch.get_num_threads()))
        stores = read_json(self.folder.stores)
        corpus = open_corpus({n: Path(s["path"]) for n, s in stores["sources"].items()}, {n: s["key"] for n, s in stores["sources"].items()})
        tokenizer = TextTokenizer.load(stores["tokenizer"])
        model_path = self._initial_model(tokenizer)
        engine = self._engine(model_path, tokenizer.vocab_size)
        cost = cost_of(engine.module.hf.config.get_text_config().to_dict())
        planner = make_planner(config, corpus, world_size=self.world, cost=cost)
        first = planner.epoch(0)
        self._same_everywhere(first.hash)
        steps = total_steps(config, planner, first)
        start = self._resume(engine, first.hash)
        parameters = sum(math.prod(getattr(p, "ds_shape", p.shape)) for p in engine.module.parameters())
        if self.main:
            write_json(self.folder.path / "plan.json", plan_facts(config, first, corpus, steps, self.world, parameters, stores["read"]))
            log.info("%s", _batch_line(config, self.world, steps, parameters))
        position, state = self._train(engine, planner, corpus, start, steps, stores, first.hash, cost)
        if state == "finished" and config.train.export:
            export_checkpoint(
                self.folder.checkpoints / f"step-{position.step:08d}", model_path, self.folder.export, dtype=config.model.dtype,
                tokenizer=tokenizer, template_text=stores["template_text"], stop_ids=stores["stop_ids"], part=(self.rank, self.world),
                barrier=dist.barrier, revision=config.model.revision, trust_remote_code=config.model.trust_remote_code,
            )
        if self.main:
            self.folder.set_status(state, step=position.step, steps=steps)  # type: ignore[arg-type]
        return 0 if state in ("finished", "stopped") else 3

    def _alone(self) -> Any:
        """Hold the run folder: two jobs on one folder would overwrite one another. All ranks learn the outcome."""
        held, refusal = None, ""
        if self.main:
            try:
                held = self.folder.lock()
                self.folder.set_status("running", step=0)
                write_json(self.folder.path / "env.json", _environment(self.world))
            except UserError as error:
                refusal = str(error)
        box = [refusal]
        dist.broadcast_object_list(box, src=0)
        if box[0]:
            raise UserError(box[0])
        return held

    def _initial_model(self, tokenizer: TextTokenizer) -> str:
        """Return the folder or hub id that training starts from; a shape is first written as a model folder."""
        model = self.config.model
        if model.shape is None:
            assert model.path is not None
            return model.path
        folder = self.folder.path / "init"
        if self.main and not (folder / "config.json").is_file():
            create_initial(
                folder, shape=model.shape.model_dump(), vocab_size=tokenizer.vocab_size, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id,
                pad_id=tokenizer.pad_id, seed=derive(self.config.seed, "init"),
            )
        dist.barrier()
        return str(folder)

    def _engine(self, model_path: str, vocab_size: int) -> Any:
        config = self.config
        zero_config = zero.zero_config(
            dtype=config.model.dtype, clip=config.optim.clip, **config.deepspeed.model_dump(exclude={"timeout_minutes"})
        )
        loaded = load_packed(
            model_path, dtype=config.model.dtype, backend=config.model.attention, device=self.device.type,
            zero_config=zero_config if config.deepspeed.stage == 3 else None, gradient_checkpointing=config.model.gradient_checkpointing,
            revision=config.model.revision, trust_remote_code=config.model.trust_remote_code, min_vocab_size=vocab_size,
        )
        log.info("attention: %s (%s)", loaded.backend, loaded.reason)
        engine = zero.make_engine(
            loaded.module, zero_config, parameter_groups(loaded.module, config.optim.weight_decay), betas=config.optim.betas, eps=config.optim.eps
        )
        self._check_leak(engine, loaded.backend)
        return engine

    def _check_leak(self, engine: Any, backend: str) -> None:
        """Refuse to train when a packed document can see another."""
        engine.eval()
        vocab = engine.module.hf.config.get_text_config().vocab_size
        moved = leak.measure(lambda batch: engine(*to_inputs(batch, self.device))[1], vocab)
        engine.train()
        if moved > leak.TOLERANCE[engine.module.hf.dtype]:
            raise UserError(
                f"packed documents see one another with model.attention={backend} (replacing one document moved the loss of "
                f"another by {moved:.2g}), so training would be wrong; use model.attention=sdpa_dense, or another model"
            )

    def _same_everywhere(self, plan_hash: int) -> None:
        hashes: list[Any] = [None] * self.world
        dist.all_gather_object(hashes, plan_hash)
        if len(set(hashes)) != 1:
            raise UserError(
                f"the ranks planned different epochs (hashes {hashes}), so they would train on different data; "
                "the nodes see different token stores or versions: check data.dir on every node"
            )

    def _resume(self, engine: Any, plan_hash: int) -> Position:
        """Return where to start: the newest whole checkpoint, or the beginning."""
        mode = self.config.checkpoint.resume
        found = None
        if mode != "never":
            found = checkpoints.newest(self.folder.checkpoints, lambda path, why: self._event("bad_checkpoint", path=path.name, reason=why))
        if found is None:
            if mode == "required":
                raise UserError(
                    f"checkpoint.resume=required, but {self.folder.checkpoints} has no whole checkpoint, so there is nothing to continue; "
                    "use checkpoint.resume=auto to start anew"
                )
            return Position(step=0, epoch=0, epoch_step=0)
        position, facts = checkpoints.load(engine, found)
        if facts["plan_hash"] != plan_hash:
            raise UserError(
                f"{found} was trained on another data plan (stores, mixture, seq_len or tokens_per_step changed), so continuing "
                "would repeat or skip examples; restore the settings, or use another name"
            )
        self._event("resumed", step=position.step, checkpoint=found.name, world_size=self.world, saved_world_size=facts["world_size"])
        log.info("resumed %s (written by %d ranks)", found.name, facts["world_size"])
        return position

    def _train(
        self, engine: Any, planner: Planner, corpus: Corpus, start: Position, steps: int, stores: dict[str, Any], plan_hash: int, cost: Any
    ) -> tuple[Position, str]:
        config, folder = self.config, self.folder
        optim = config.optim
        requests = Requests(folder, is_main=self.main)
        requests.listen()
        evaluator = self._evaluator(engine, stores, cost)
        with Heartbeat(folder) as heartbeat, Tracker.start(config, folder, is_main=self.main) as tracker:

            def on_step(metrics: StepMetrics) -> None:
                if self.main:
                    line = {"kind": "train", "time": time.time(), **{k: _finite(v) for k, v in dataclasses.asdict(metrics).items()}}
                    append_jsonl(folder.metrics, line)
                    folder.set_status("running", step=metrics.step, steps=steps)
                    if metrics.step % config.train.log_every == 0:
                        tracker.log(line)

            def save(position: Position) -> None:
                began = time.monotonic()
                saved = checkpoints.save(engine, folder.checkpoints, position, {"plan_hash": plan_hash}, config.checkpoint.keep_last)
                if self.main:
                    folder.clear("save")
                if saved.folder:
                    self._event("saved", step=position.step, seconds=round(time.monotonic() - began, 3))
                else:
                    log.warning("checkpoint at step %d failed (%s); the last good one stays", position.step, saved.error)
                    self._event("save_failed", step=position.step, reason=saved.error)

            def evaluate(step: int) -> None:
                if evaluator is not None:
                    line = {"kind": "eval", "time": time.time(), "step": step, **evaluator()}
                    if self.main:
                        append_jsonl(folder.metrics, line)
                        tracker.log(line)

            return loop.run(
                engine,
                _work(planner, corpus, start, steps, config.train.epochs, self.rank),
                start=start,
                schedule=loop.Schedule(
                    total_steps=steps, save_every_steps=config.checkpoint.save_every_steps, save_every_minutes=config.checkpoint.save_every_minutes,
                    eval_every=config.train.eval_every, max_skipped_steps=config.train.max_skipped_steps,
                ),
                lr_of=lambda step: lr_at(
                    step, total_steps=steps, peak=optim.lr, schedule=optim.schedule, warmup=optim.warmup, decay=optim.decay,
                    min_share=optim.min_lr_share,
                ),
                meter=Meter(corpus.task_names, engine.device),
                requests=requests,
                heartbeat=heartbeat,
                hooks=loop.Hooks(log=on_step, event=self._event, save=save, evaluate=evaluate),
                seed=config.seed,
                clip=optim.clip,
                useful_flops=cost.useful_flops,
                peak_flops=(peak_flops(self.device) or 0) * self.world or None,
            )

    def _evaluator(self, engine: Any, stores: dict[str, Any], cost: Any) -> Callable[[], dict[str, Any]] | None:
        """Return a function that computes the held-out loss, per task; every rank runs the same number of passes."""
        if not stores["eval_store"]:
            return None
        corpus = Corpus({"eval": Store.open(Path(stores["eval_store"]))})
        rows = self.world * self.config.train.micro_rows
        planner = Planner(corpus, seq_len=self.config.pack.seq_len, rows_per_step=rows, micro_rows=self.config.train.micro_rows, world_size=self.world, cost=cost, seed=self.config.seed)
        plan = planner.epoch(0)
        passes = min(plan.n_steps, max(1, self.config.train.eval_tokens // (rows * self.config.pack.seq_len)))
        meter = Meter(corpus.task_names, engine.device)

        @torch.no_grad()
        def evaluate() -> dict[str, Any]:
            engine.eval()
            weight = 0.0
            for i in range(passes):
                step = plan.step(i)
                weight += step.target_weight
                for micro in step.micro_rows:
                    batch = collate(corpus, micro[self.rank])
                    inputs = to_inputs(batch, self.device)
                    loss_sum, nll_N = engine(*inputs)
                    meter.add(batch, loss_sum, nll_N, inputs[-1])
            sums = meter.reduce(stop=False, save=False)
            engine.train()
            return {"loss": sums.loss / weight, "task_loss": sums.task_loss}

        return evaluate

    def _event(self, kind: str, **facts: Any) -> None:
        if self.main:
            self.folder.event(kind, **facts)


def _work(
    planner: Planner, corpus: Corpus, start: Position, steps: int, epochs: int, rank: int
) -> Iterator[tuple[Position, StepPlan, Callable[[], list[Batch]]]]:
    """Yield every global batch from `start` on; collating waits for the loop's thread."""
    done = start.step
    for plan, after in planner.steps(SamplerState(epoch=start.epoch, step=start.epoch_step), epochs):
        if done >= steps:
            return
        done += 1
        mine = [micro[rank] for micro in plan.micro_rows]
        yield Position(step=done, epoch=after.epoch, epoch_step=after.step), plan, lambda mine=mine: [collate(corpus, rows) for rows in mine]


def _batch_line(config: RunConfig, world: int, steps: int, parameters: int) -> str:
    rows = config.train.tokens_per_step // config.pack.seq_len
    micro = -(-rows // (world * config.train.micro_rows))
    return (
        f"{parameters:,} parameters, {world} ranks, ZeRO-{config.deepspeed.stage}, {config.model.dtype}; a global batch is {rows} rows of "
        f"{config.pack.seq_len} tokens: {micro} micro-steps of {config.train.micro_rows} rows a rank; {steps} steps"
    )


def _environment(world: int) -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for name in ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy", "flash-attn", "liger-kernel", "sft-dist"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return {
        "versions": {k: v for k, v in versions.items() if v},
        "python": platform.python_version(),
        "hosts": [socket.gethostname()],
        "world_size": world,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "started": time.time(),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
