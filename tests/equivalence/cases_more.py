"""More cases: rows that ranks share, clipping, bf16, and runs of several epochs that are stopped and continued."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cases
import numpy as np
import tiny_docs
import torch
import torch.distributed as dist
from case import Case

from sft_dist.batch import Planner, collate, sequence_shard
from sft_dist.checkpoint import io as store
from sft_dist.checkpoint import slices
from sft_dist.core.records import Position, Span, Tokens
from sft_dist.core.runfolder import RunFolder
from sft_dist.mix import Corpus
from sft_dist.model import attention
from sft_dist.model.packed import to_inputs
from sft_dist.model.ulysses import SequenceGroup
from sft_dist.pack import CostModel
from sft_dist.shards import ShardWriter, Store, finish_store
from sft_dist.train import zero
from sft_dist.train.guard import StopSignals

EPOCHS, SEQ_LEN, ROWS_PER_STEP = 3, 64, 4


def build_store(folder: Path) -> None:
    """A token store of 40 documents of 3 to 60 tokens; the last two thirds of each carry loss."""
    rng = np.random.default_rng(tiny_docs.SEED)
    with ShardWriter(folder, 0, "int32", key={}) as writer:
        for i in range(40):
            n = int(np.clip(rng.lognormal(2.5, 0.8), 3, 60))
            ids = rng.integers(1, tiny_docs.VOCAB, n).astype(np.int32)
            writer.add(
                f"{i:032x}", i % 2, 0, Tokens(ids=ids, spans=(Span(n // 3 or 1, n - (n // 3 or 1), 1.0),))
            )
    finish_store(folder, key={}, tasks=["even", "odd"], sources=["a"])


def planned(scratch: Path, start: Position, sp: int = 1) -> Iterator[Any]:
    """Work for the loop: epochs of the token store by the planner, from a position on."""
    corpus, g = Corpus({"a": Store.open(scratch / "store")}), cases.group(sp)
    cost = CostModel(linear_flops_per_token=1.0, attention_flops_per_pair=0.1)
    planner = Planner(
        corpus,
        seq_len=SEQ_LEN,
        rows_per_step=ROWS_PER_STEP,
        world_size=g.data_ranks,
        cost=cost,
        seed=tiny_docs.SEED,
    )
    for plan, after in planner.steps(start, EPOCHS):
        mine = [sequence_shard(collate(corpus, m[g.data_rank]), g.place, sp) for m in plan.micro_rows]
        yield after, plan, (lambda mine=mine: mine)


@dataclass(frozen=True, kw_only=True)
class Losses(Case):
    """The loss of every target of global batch 0, packed into one row that `sp` ranks share; or of attention that stays in its slice."""

    sp: int
    cut: bool = False

    @torch.no_grad()
    def run(self, model: str, scratch: Path) -> list[float]:

        def in_slice(attend: Any, ranks: SequenceGroup) -> Any:
            def within(*args: Any, cu_seq_lens_q: torch.Tensor, **options: Any) -> Any:
                t = args[1].size(2)
                own = (cu_seq_lens_q - ranks.place * t).clamp(0, t).unique().to(torch.int32)
                return attend(*args, cu_seq_lens_q=own, **options)

            return within

        g = cases.group(self.sp)
        with mock.patch.object(attention, "across", in_slice if self.cut else attention.across):
            engine = cases.engine_of(model, sp=self.sp)
        batch = cases.own(tiny_docs.deal(0, g.data_ranks, 1), self.sp)[0]
        nll_N = engine(*to_inputs(batch, engine.device))[1]
        attention.register(g)
        found: list[Any] = [None] * dist.get_world_size()
        places = (batch.offset + batch.target_positions).tolist()
        dist.all_gather_object(found, list(zip(places, nll_N.tolist(), strict=True)))
        return [x for _, x in sorted(pair for part in found for pair in part)]


@dataclass(frozen=True, kw_only=True)
class Bf16(Case):
    """Steps in bfloat16; the dtypes of states and weights."""

    stage: int
    steps: int = 20

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = cases.engine_of(model, stage=self.stage, dtype="bfloat16")
        out = cases.train(engine, scratch / "bf16", steps=self.steps)
        slices.allocate_states(engine)
        kept = {str(v.dtype) for s in slices.local_slices(engine) for v in s.views.values()}
        forward = {str(p.dtype) for p in engine.module.parameters()}
        return out | {"states": sorted(kept), "forward": sorted(forward)}


@dataclass(frozen=True, kw_only=True)
class Clip(Case):
    """One step: Adam's first moment is then (1 - beta1) times the gradient as it was clipped."""

    stage: int
    clip: float

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = cases.engine_of(model, stage=self.stage, clip=self.clip)
        micro = tiny_docs.deal(0, dist.get_world_size(), 1)
        loss_sum, _ = engine(*to_inputs(cases.own(micro, 1)[0], engine.device))
        scale = dist.get_world_size() / cases.plan_of(0, micro).target_weight
        engine.backward(loss_sum * scale, scale_wrt_gas=False)
        _, norm = zero.update(engine, self.clip)
        file = scratch / f"clip-s{self.stage}-{self.clip}.pt"
        moments = [tensor for (_, kind), tensor in state(engine).items() if kind == "exp_avg"]
        if dist.get_rank() == 0:
            torch.save(torch.cat(moments), file)
        return {"norm": norm, "file": str(file)}


@dataclass(frozen=True, kw_only=True)
class Epochs(Case):
    """Epochs of a planned store to the end, or until SIGTERM comes to the last rank in its forward pass `term_pass`."""

    name: str
    steps: int = 9
    saves: tuple[int, ...] = ()
    term_pass: int | None = None
    sp: int = 1

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        folder = scratch / f"epochs-{self.name}"
        if dist.get_rank() == 0 and not (scratch / "store").exists():
            build_store(scratch / "store")
        dist.barrier()
        engine = cases.engine_of(model, sp=self.sp)
        requests = StopSignals(RunFolder(folder), is_main=dist.get_rank() == 0)
        if self.term_pass is not None:
            folder.mkdir(parents=True, exist_ok=True)
            requests.listen()
            passes = iter(range(10**6))

            def strike(*_: Any) -> None:
                if next(passes) == self.term_pass and dist.get_rank() == dist.get_world_size() - 1:
                    os.kill(os.getpid(), signal.SIGTERM)

            engine.module.register_forward_pre_hook(strike)
        out = cases.train(
            engine,
            folder,
            steps=self.steps,
            work=planned(scratch, cases.ZERO, self.sp),
            save_at=self.saves,
            requests=requests,
        )
        final = state(engine)
        if dist.get_rank() == 0:
            torch.save(final, folder / "final.pt")
        return out


WHOLE = Epochs(name="whole", saves=(3, 4, 8))


@dataclass(frozen=True, kw_only=True)
class EpochsResume(Case):
    """The steps after a checkpoint of `saved` (by two ranks); their end beside that of the uninterrupted run."""

    saved: Epochs
    at: int
    sp: int = 1

    @property
    def needs(self) -> tuple[tuple[int, Case], ...]:
        return ((2, self.saved), (2, WHOLE))

    def run(self, model: str, scratch: Path) -> dict[str, Any]:
        engine = cases.engine_of(model, sp=self.sp)
        position, _ = store.load(
            engine, scratch / f"epochs-{self.saved.name}" / "checkpoints" / f"step-{self.at:08d}"
        )
        work = planned(scratch, position, self.sp)
        out = cases.train(
            engine, scratch / "epochs-resume", steps=self.saved.steps, start=position, work=work
        )
        ours, reference = state(engine), torch.load(scratch / f"epochs-{WHOLE.name}" / "final.pt")
        difference = max(float((ours[k] - reference[k]).abs().max()) for k in reference)
        return out | {"difference": difference, "start": [position.epoch, position.epoch_step]}


def state(engine: Any) -> dict[tuple[str, str], torch.Tensor]:
    """Master weights and Adam's moments, whole, flat, in fp32, by parameter and kind."""
    slices.allocate_states(engine)
    mine = {piece.name: piece for piece in slices.local_slices(engine)}
    idle = (
        engine.zero_optimization_stage() == 0 and dist.get_rank() > 0
    )  # rank 0 holds all that the others hold
    out = {}
    for name, shape in slices.parameter_shapes(engine).items():
        for kind in ("master", "exp_avg", "exp_avg_sq"):
            whole = torch.zeros(math.prod(shape))
            if not idle and (piece := mine.get(name)):
                whole[piece.start : piece.start + piece.length] = piece.views[kind].float()
            dist.all_reduce(whole)
            out[name, kind] = whole
    return out
