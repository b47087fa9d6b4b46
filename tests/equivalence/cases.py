"""Cases that run_cases.py runs on every rank of a launch, and what they are made of.

Every case drives the trainer's own code: the packed model, the loss algebra, the engine, the loop and the checkpoint
store, on hand-made documents with heavy-tailed lengths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
import torch.distributed as dist
from case import Case
from loading import load
from tiny_docs import SEED, deal, documents, weights_of

from sft_dist.batch import sequence_shard
from sft_dist.checkpoint import io as store
from sft_dist.checkpoint.background import Saved, Saver
from sft_dist.config.train import CheckpointConfig, DeepSpeedConfig, OptimConfig, TrainConfig
from sft_dist.core.records import Batch, Position, Row, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.model import ulysses
from sft_dist.model.packed import to_inputs
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.train import loop, zero
from sft_dist.train.guard import Heartbeat, SpikeDetector, StopSignals
from sft_dist.train.metrics import Meter
from sft_dist.train.optim import parameter_groups
from sft_dist.train.schedule import lr_at

ZERO = Position(step=0, epoch=0, epoch_step=0)


@cache
def group(sp: int) -> SequenceGroup:
    """The ranks that share rows with this one. Collective."""
    return ulysses.join(sp, timeout_minutes=2)


def own(micro: list[list[Batch]], sp: int) -> list[Batch]:
    """What this rank runs of the micro-batches [micro-step][data rank]."""
    g = group(sp)
    return [sequence_shard(m[g.data_rank], g.place, sp) for m in micro]


def plan_of(step: int, micro: list[list[Batch]]) -> StepPlan:
    """The plan of a global batch; the loop reads its denominator from here."""
    total = float(sum(sum(weights_of(d)) for d in documents(step)))
    empty = Row(docs=np.array([], np.int64), starts=np.array([], np.int32), lengths=np.array([], np.int32))
    rows = tuple(tuple((empty,) for _ in m) for m in micro)
    return StepPlan(epoch=0, step=step, micro_rows=rows, target_weight=total, imbalance=1.0, fill=1.0)


def engine_of(
    model: str,
    *,
    stage: int = 3,
    dtype: str = "float32",
    decay: float = 0.1,
    clip: float | None = 1.0,
    checkpointing: Any = False,
    sp: int = 1,
    change: Callable[[Any], None] = lambda module: None,
    optim: Mapping[str, Any] = MappingProxyType({}),
    **zero_options: Any,
) -> Any:
    config = zero.zero_config(
        DeepSpeedConfig(
            stage=stage,
            reduce_bucket_size=5000,
            prefetch_bucket_size=5000,
            persistence_threshold=100,
            sub_group_size=20000,
            **zero_options,
        ),
        dtype=dtype,
        clip=clip,
    )
    loaded = load(
        model,
        dtype=dtype,
        zero_config=config if stage == 3 else None,
        gradient_checkpointing=checkpointing,
        sequence=group(sp),
    )
    change(loaded.module)
    settings = OptimConfig(weight_decay=decay, **optim)
    return zero.make_engine(loaded.module, config, parameter_groups(loaded.module, settings), settings)


class SaverAt(Saver):
    """Saves at these steps only; the end of every little run is not worth a checkpoint."""

    at: tuple[int, ...] = ()

    def begin(self, position: Position, facts: Any = None) -> None:
        if position.step in self.at:
            super().begin(position, facts)
        else:
            self.saved_at = self.begun_at = position


def hand_made(
    start: Position,
    steps: int,
    *,
    micro_steps: int = 2,
    sp: int = 1,
    poison: int | None = None,
    spike: int | None = None,
    leave_out: int | None = None,
) -> Iterator[Any]:
    """Work for the loop: the documents above, from a position on."""
    for step in range(start.step, steps):
        if step == leave_out:
            continue
        micro = deal(step, group(sp).data_ranks, micro_steps)
        mine = own(micro, sp)
        if poison == step and dist.get_rank() == 0:
            mine[0].target_weights[:1] = np.inf
        if spike == step and dist.get_rank() == 1:
            mine[0].target_weights[:3] *= 500  # of its first document
        after = Position(step=step + 1, epoch=0, epoch_step=step + 1)
        yield after, plan_of(step, micro), (lambda mine=mine: mine)


def train(
    engine: Any,
    folder: Path,
    *,
    steps: int,
    start: Position = ZERO,
    work: Iterator[Any] | None = None,
    save_at: tuple[int, ...] = (),
    policy: TrainConfig | None = None,
    requests: StopSignals | None = None,
    **made: Any,
) -> dict[str, Any]:
    """Run the real loop over `work` (else `hand_made(..., **made)`); return what it logged, and the ids of each step."""
    out: dict[str, Any] = {
        n: [] for n in ("losses", "norms", "skipped", "events", "task_loss", "lrs", "metrics")
    }
    seen: dict[int, list[str]] = {}

    def watched() -> Iterator[Any]:
        for after, plan, batches in work or hand_made(start, steps, **made):
            seen[after.step] = [i for b in batches() for i in b.doc_ids if len(b.input_ids) > b.padding]
            yield after, plan, batches

    def log(m: Any) -> None:
        out["losses"].append(m.loss)
        out["norms"].append(m.grad_norm)
        out["skipped"].append(m.skipped)
        out["task_loss"].append(dict(m.task_loss))
        out["lrs"].append(m.lr)
        out["metrics"].append({n: getattr(m, n) for n in ("tokens", "target_tokens", "tokens_per_s", "mfu", "step_s")})  # fmt: skip

    def report(saved: Saved) -> None:
        out["events"].append([saved.phase, str(saved.folder), saved.error])

    saver = SaverAt(
        engine,
        folder / "checkpoints",
        facts={"seed": SEED},
        keep=CheckpointConfig(keep_last=9),
        report=report,
        saved_at=start,
    )
    saver.at = save_at
    run_folder = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with Heartbeat(run_folder) as heartbeat:
        position, state, reason = loop.run(
            engine,
            watched(),
            loop.Steps(
                start=start,
                total=steps,
                in_epoch=steps,
                lr_of=lambda step: lr_at(
                    step,
                    OptimConfig(lr=1e-3, schedule="constant", warmup_steps=4),
                    total_steps=steps,
                    tokens_per_step=1,
                ),
            ),
            train=TrainConfig(max_skipped_steps=3),
            checkpoint=CheckpointConfig(save_every_steps=1, save_every_minutes=None),
            meter=Meter(["even", "odd"], engine.device),
            guards=loop.Guards(
                requests=requests or StopSignals(run_folder, is_main=dist.get_rank() == 0),
                heartbeat=heartbeat,
                spikes=SpikeDetector(policy or TrainConfig(), [4.9] * 16),
            ),
            hooks=loop.Hooks(
                log=log,
                event=lambda kind, **f: out["events"].append([kind, f]),
                evaluate=lambda step: None,
            ),
            saver=saver,
            seed=SEED,
            clip=1.0,
            flops=loop.Flops(
                useful=lambda tokens, targets, pairs: 3.0 * tokens + 5.0 * targets + 7.0 * pairs, peak=1e9
            ),
        )
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, seen)
    done = range(start.step + 1, position.step + 1)
    out["ids"] = [sorted({i for rank in everyone for i in rank.get(step, ())}) for step in done]
    return out | {"state": state, "step": position.step, "reason": reason}


def gradient(engine: Any, micro_steps: int, sp: int = 1, variant: str = "") -> tuple[torch.Tensor, float]:
    """The reduced gradient of global batch 0 before clipping, all parameters laid end to end; and the loss."""
    micro = deal(0, group(sp).data_ranks, micro_steps, variant)
    plan = plan_of(0, micro)
    total = torch.zeros(1, dtype=torch.float64)
    for batch in own(micro, sp):
        inputs = to_inputs(batch, engine.device)
        loss_sum, nll_N = engine(*inputs)
        engine.backward(loss_sum * (dist.get_world_size() / plan.target_weight), scale_wrt_gas=False)
        total += float((nll_N * inputs[-1]).double().sum())
    dist.all_reduce(total)
    return reduced(engine), float(total) / plan.target_weight


def reduced(engine: Any) -> torch.Tensor:
    """The reduced gradient, all parameters laid end to end."""
    from deepspeed.utils import safe_get_full_grad

    parts = []
    for _, p in engine.module.named_parameters():
        g = safe_get_full_grad(p) if engine.zero_optimization_stage() else p.grad.clone()
        if engine.zero_optimization_stage() == 0:
            dist.all_reduce(g)
            g /= dist.get_world_size()
        parts.append(g.float().flatten())
    return torch.cat(parts)


def weights(engine: Any) -> dict[str, torch.Tensor]:
    """The full fp32 master weights, by name."""
    from deepspeed.utils import safe_get_full_fp32_param

    stage = engine.zero_optimization_stage()
    return {
        n: (safe_get_full_fp32_param(p) if stage else p.detach()).clone().flatten()
        for n, p in engine.module.named_parameters()
    }


@dataclass(frozen=True, kw_only=True)
class Gradient(Case):
    """The reduced gradient of global batch 0, in a file, and the loss."""

    stage: int
    micro_steps: int
    sp: int = 1
    variant: str = ""

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = engine_of(model, stage=self.stage, sp=self.sp, checkpointing=self.variant == "checkpointing")
        g, loss = gradient(engine, self.micro_steps, self.sp, self.variant)
        file = (
            scratch
            / f"grad-w{dist.get_world_size()}-s{self.stage}-m{self.micro_steps}-p{self.sp}-{self.variant}.pt"
        )
        if dist.get_rank() == 0:
            torch.save(g, file)
        return {"file": str(file), "loss": loss}


@dataclass(frozen=True, kw_only=True)
class Train(Case):
    """Steps of the real loop; what it logged, and the final weights in a file."""

    stage: int
    steps: int = 20
    micro_steps: int = 2
    sp: int = 1

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = engine_of(model, stage=self.stage, sp=self.sp)
        out = train(engine, scratch / "train", steps=self.steps, micro_steps=self.micro_steps, sp=self.sp)
        file = scratch / f"trained-w{dist.get_world_size()}-s{self.stage}-m{self.micro_steps}-p{self.sp}.pt"
        final = weights(engine)
        if dist.get_rank() == 0:
            torch.save(final, file)
        return out | {"weights": str(file)}


@dataclass(frozen=True, kw_only=True)
class Save(Case):
    """Steps with a checkpoint on the way; the final weights lie beside it."""

    stage: int
    steps: int = 8
    at: int = 4
    sp: int = 1

    def folder_name(self, world: int) -> str:
        """Where a launch of `world` ranks saves."""
        return f"save-w{world}-s{self.stage}-p{self.sp}"

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        folder = scratch / self.folder_name(dist.get_world_size())
        engine = engine_of(model, stage=self.stage, sp=self.sp)
        out = train(engine, folder, steps=self.steps, save_at=(self.at,), sp=self.sp)
        final = weights(engine)
        if dist.get_rank() == 0:
            torch.save(final, folder / "final.pt")
        return out | {"folder": str(folder)}


@dataclass(frozen=True, kw_only=True)
class Resume(Case):
    """The steps after a checkpoint of `saved`, by `world` ranks, continued by a new process."""

    saved: Save
    world: int

    @property
    def needs(self) -> tuple[tuple[int, Case], ...]:
        return ((self.world, self.saved),)

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        folder = scratch / self.saved.folder_name(self.world)
        engine = engine_of(model, stage=self.saved.stage)
        found = store.newest(folder / "checkpoints", lambda path, why: None)
        assert found is not None
        position, facts = store.load(engine, found)
        out = train(engine, scratch / "resume", steps=self.saved.steps, start=position)
        ours, reference = weights(engine), torch.load(folder / "final.pt")
        difference = max(float((ours[n] - reference[n]).abs().max()) for n in ours)
        return out | {"facts": facts, "largest_weight_difference": difference}


@dataclass(frozen=True, kw_only=True)
class NativeTwin(Case):
    """Our slices and DeepSpeed's own checkpoint restore the same state."""

    stage: int

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = engine_of(model, stage=self.stage)
        folder = scratch / f"twin-s{self.stage}"
        train(engine, folder, steps=3, save_at=(3,))
        if dist.get_rank() == 0:
            (folder / "native").mkdir(exist_ok=True)
        dist.barrier()
        engine.save_checkpoint(str(folder / "native"), tag="t", save_latest=False)
        saved = weights(engine)
        ours = engine_of(model, stage=self.stage)
        store.load(ours, folder / "checkpoints" / "step-00000003")
        native = engine_of(model, stage=self.stage)
        native.load_checkpoint(str(folder / "native"), tag="t")
        now, then = weights(ours), weights(native)
        same = max(float((now[n] - then[n]).abs().max()) for n in now)
        kept = max(float((now[n] - saved[n]).abs().max()) for n in now)
        start = Position(step=3, epoch=0, epoch_step=3)
        a = train(ours, folder / "a", steps=6, start=start)["losses"]
        b = train(native, folder / "b", steps=6, start=start)["losses"]
        return {"weights": same, "kept": kept, "ours": a, "native": b}


@dataclass(frozen=True, kw_only=True)
class Poison(Case):
    """A step whose loss is not finite, between steps that are sound."""

    stage: int

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = engine_of(model, stage=self.stage)
        before = None
        out = train(engine, scratch / "poison", steps=2)
        before = weights(engine)
        out2 = train(
            engine, scratch / "poison", steps=3, start=Position(step=2, epoch=0, epoch_step=2), poison=2
        )
        after = weights(engine)
        moved = max(float((before[n] - after[n]).abs().max()) for n in before)
        out3 = train(engine, scratch / "poison", steps=4, start=Position(step=3, epoch=0, epoch_step=3))
        return {
            "moved": moved,
            "skipped": out2["skipped"],
            "events": out2["events"],
            "next_loss": out3["losses"],
            "first": out["losses"],
        }


@dataclass(frozen=True, kw_only=True)
class Bad(Case):
    """A planted bad batch at step 4, and the state of a run that never saw it."""

    stage: int
    cause: str
    action: str

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        bad, good = engine_of(model, stage=self.stage), engine_of(model, stage=self.stage)
        folder = scratch / f"bad-s{self.stage}-{self.cause}-{self.action}"
        planted = {"poison" if self.cause == "nonfinite" else "spike": 4}
        policy = TrainConfig(**{f"on_{self.cause}": self.action})
        save_at = (4,) if self.action == "stop" else ()
        out = train(bad, folder, steps=7, policy=policy, save_at=save_at, **planted)
        if self.action == "stop":
            train(good, scratch / "good", steps=4)
        else:
            train(good, scratch / "good", steps=7, leave_out=4)
        ours, theirs = (store.copy_parts(e)[0] for e in (bad, good))
        same = all(torch.equal(ours[k][n], theirs[k][n]) for k in theirs for n in theirs[k])
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, (same, out["state"], out["step"]))
        names = sorted(p.name for p in (folder / "checkpoints").glob("step-*"))
        return out | {"everywhere": everywhere, "checkpoints": names}
