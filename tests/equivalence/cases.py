"""Run one launch's cases on this rank and write what rank 0 saw as JSON: `python cases.py OUT.json CASE [CASE ...]`.

Started by torchrun (test_numerics.py), one launch a world size. Every case drives the trainer's own code: the packed
model, the loss algebra, the engine, the loop and the checkpoint store, on hand-made documents with heavy-tailed lengths.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
import torch.distributed as dist

from sft_dist.checkpoint import store
from sft_dist.checkpoint.store import Position
from sft_dist.core.records import Batch, Row, StepPlan
from sft_dist.core.runfolder import RunFolder
from sft_dist.model.load import load_packed
from sft_dist.model.packed import to_inputs
from sft_dist.train import loop, zero
from sft_dist.train.guard import Heartbeat, Requests
from sft_dist.train.metrics import Meter
from sft_dist.train.optim import parameter_groups

VOCAB = 128
SEED = 7


def documents(step: int) -> list[list[int]]:
    """The documents of global batch `step`: lengths from 2 to 60, as heavy-tailed as real ones."""
    rng = np.random.default_rng([SEED, step])
    lengths = np.minimum(60, 2 + rng.pareto(1.0, 16) * 4).astype(int)
    return [rng.integers(1, VOCAB, n).tolist() for n in lengths]


def weights_of(doc: list[int]) -> list[float]:
    """Loss weight of each token: a third of the document is prompt, later tokens weigh 1 or, one in five, 0.5."""
    prompt = max(1, len(doc) // 3)
    return [0.0 if i < prompt else (0.5 if i % 5 == 0 else 1.0) for i in range(len(doc))]


def pack(docs: list[list[int]], ids: list[int]) -> Batch:
    """Lay documents end to end as collate does."""
    tokens = [t for d in docs for t in d]
    position = [i for d in docs for i in range(len(d))]
    cu = np.cumsum([0, *map(len, docs)]).astype(np.int32)
    weight = [w for d in docs for w in weights_of(d)]
    target = [i for i, w in enumerate(weight) if w > 0]
    if not docs:
        tokens, position, cu = [0, 0], [0, 1], np.array([0, 2], np.int32)
    doc_of = [k for k, d in zip(ids, docs, strict=True) for _ in d]
    return Batch(
        input_ids=np.array(tokens, np.int64),
        position_ids=np.array(position, np.int64),
        cu_seqlens=cu,
        max_seqlen=int(np.diff(cu).max()),
        target_positions=np.array(target, np.int64) - 1,
        target_ids=np.array([tokens[i] for i in target], np.int64),
        target_weights=np.array([weight[i] for i in target], np.float32),
        target_tasks=np.array([doc_of[i] % 2 for i in target], np.int64),
        doc_ids=tuple(f"doc{k}" for k in ids) or ("empty",),
        doc_cost_tokens=sum(len(d) ** 2 for d in docs),
    )


def deal(step: int, world: int, micro_steps: int) -> list[list[Batch]]:
    """The micro-batches [micro-step][rank] of a global batch: the same documents whatever world and micro_steps are."""
    docs = documents(step)
    parts = [list(range(i, len(docs), world * micro_steps)) for i in range(world * micro_steps)]
    return [
        [pack([docs[k] for k in parts[m * world + r]], parts[m * world + r]) for r in range(world)]
        for m in range(micro_steps)
    ]


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
    checkpointing: bool = False,
) -> Any:
    config = zero.zero_config(
        stage=stage,
        dtype=dtype,
        clip=clip,
        overlap_comm=True,
        reduce_bucket_size=5000,
        prefetch_bucket_size=5000,
        persistence_threshold=100,
        max_live_parameters=10**9,
        sub_group_size=20000,
        communication_dtype=None,
        extra={},
    )
    loaded = load_packed(
        model,
        dtype=dtype,
        backend="auto",
        device="cpu",
        zero_config=config if stage == 3 else None,
        gradient_checkpointing=checkpointing,
    )
    return zero.make_engine(
        loaded.module, config, parameter_groups(loaded.module, decay), betas=(0.9, 0.95), eps=1e-8
    )


def train(
    engine: Any,
    folder: Path,
    *,
    steps: int,
    start: Position | None = None,
    micro_steps: int = 2,
    save_at: int | None = None,
    poison: int | None = None,
) -> dict[str, Any]:
    """Run the real loop; return losses, norms, skipped steps and events."""
    world = dist.get_world_size()
    out: dict[str, Any] = {"losses": [], "norms": [], "skipped": [], "events": [], "task_loss": [], "lrs": []}
    start = start or Position(step=0, epoch=0, epoch_step=0)

    def work() -> Any:
        for step in range(start.step, steps):
            micro = deal(step, world, micro_steps)
            mine = [m[dist.get_rank()] for m in micro]
            plan = plan_of(step, micro)
            if poison == step and dist.get_rank() == 0:
                mine[0].target_weights[:1] = np.inf
            yield Position(step=step + 1, epoch=0, epoch_step=step + 1), plan, (lambda mine=mine: mine)

    def log(m: Any) -> None:
        out["losses"].append(m.loss)
        out["norms"].append(m.grad_norm)
        out["skipped"].append(m.skipped)
        out["task_loss"].append(dict(m.task_loss))
        out["lrs"].append(m.lr)

    def save(position: Position) -> bool:
        if position.step == save_at:
            saved = store.save(engine, folder / "checkpoints", position, {"seed": SEED}, keep_last=2)
            out["events"].append(["saved", str(saved.folder), saved.error])
        return True

    run_folder = RunFolder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with Heartbeat(run_folder) as heartbeat:
        position, state, _ = loop.run(
            engine,
            work(),
            start=start,
            schedule=loop.Schedule(
                total_steps=steps,
                save_every_steps=save_at,
                save_every_minutes=None,
                eval_every=None,
                max_skipped_steps=3,
            ),
            lr_of=lambda step: 1e-3 * min(1.0, (step + 1) / 4),
            meter=Meter(["even", "odd"], engine.device),
            requests=Requests(run_folder, is_main=dist.get_rank() == 0),
            heartbeat=heartbeat,
            hooks=loop.Hooks(
                log=log,
                event=lambda kind, **f: out["events"].append([kind, f]),
                save=save,
                evaluate=lambda step: None,
            ),
            seed=SEED,
            clip=1.0,
            useful_flops=lambda tokens, targets, pairs: 0.0,
            peak_flops=None,
        )
    return out | {"state": state, "step": position.step}


def gradient(engine: Any, micro_steps: int) -> torch.Tensor:
    """The reduced gradient of global batch 0 before clipping, all parameters laid end to end."""
    from deepspeed.utils import safe_get_full_grad

    micro = deal(0, dist.get_world_size(), micro_steps)
    plan = plan_of(0, micro)
    for m in micro:
        loss_sum, _ = engine(*to_inputs(m[dist.get_rank()], engine.device))
        engine.backward(loss_sum * (dist.get_world_size() / plan.target_weight), scale_wrt_gas=False)
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


def main(out: Path, model: str, scratch: Path, cases: list[str]) -> None:
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for case in cases:
        name, *args = case.split(":")
        value = CASES[name](model, scratch, *args)
        results[case] = value
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def case_gradient(model: str, scratch: Path, stage: str, micro_steps: str) -> str:
    g = gradient(engine_of(model, stage=int(stage)), int(micro_steps))
    file = scratch / f"grad-w{dist.get_world_size()}-s{stage}-m{micro_steps}.pt"
    if dist.get_rank() == 0:
        torch.save(g, file)
    return str(file)


def case_train(model: str, scratch: Path, stage: str, steps: str, micro_steps: str = "2") -> dict[str, Any]:
    return train(
        engine_of(model, stage=int(stage)), scratch / "train", steps=int(steps), micro_steps=int(micro_steps)
    )


def case_save(model: str, scratch: Path, stage: str, steps: str, at: str) -> dict[str, Any]:
    folder = scratch / f"save-w{dist.get_world_size()}-s{stage}"
    engine = engine_of(model, stage=int(stage))
    out = train(engine, folder, steps=int(steps), save_at=int(at))
    final = weights(engine)
    if dist.get_rank() == 0:
        torch.save(final, folder / "final.pt")
    return out | {"folder": str(folder)}


def case_resume(model: str, scratch: Path, stage: str, steps: str, from_world: str) -> dict[str, Any]:
    folder = scratch / f"save-w{from_world}-s{stage}"
    engine = engine_of(model, stage=int(stage))
    found = store.newest(folder / "checkpoints", lambda path, why: None)
    assert found is not None
    position, facts = store.load(engine, found)
    out = train(engine, scratch / "resume", steps=int(steps), start=position)
    ours, reference = weights(engine), torch.load(folder / "final.pt")
    difference = max(float((ours[n] - reference[n]).abs().max()) for n in ours)
    return out | {"facts": facts, "largest_weight_difference": difference}


def case_native_twin(model: str, scratch: Path, stage: str) -> dict[str, Any]:
    """Our slices and DeepSpeed's own checkpoint restore the same state."""
    engine = engine_of(model, stage=int(stage))
    folder = scratch / f"twin-s{stage}"
    train(engine, folder, steps=3, save_at=3)
    if dist.get_rank() == 0:
        (folder / "native").mkdir(exist_ok=True)
    dist.barrier()
    engine.save_checkpoint(str(folder / "native"), tag="t", save_latest=False)
    saved = weights(engine)
    ours = engine_of(model, stage=int(stage))
    store.load(ours, folder / "checkpoints" / "step-00000003")
    native = engine_of(model, stage=int(stage))
    native.load_checkpoint(str(folder / "native"), tag="t")
    now, then = weights(ours), weights(native)
    same = max(float((now[n] - then[n]).abs().max()) for n in now)
    kept = max(float((now[n] - saved[n]).abs().max()) for n in now)
    start = Position(step=3, epoch=0, epoch_step=3)
    a = train(ours, folder / "a", steps=6, start=start)["losses"]
    b = train(native, folder / "b", steps=6, start=start)["losses"]
    return {"weights": same, "kept": kept, "ours": a, "native": b}


def case_poison(model: str, scratch: Path, stage: str) -> dict[str, Any]:
    engine = engine_of(model, stage=int(stage))
    before = None
    out = train(engine, scratch / "poison", steps=2)
    before = weights(engine)
    out2 = train(engine, scratch / "poison", steps=3, start=Position(step=2, epoch=0, epoch_step=2), poison=2)
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


CASES = {
    "gradient": case_gradient,
    "train": case_train,
    "save": case_save,
    "resume": case_resume,
    "native_twin": case_native_twin,
    "poison": case_poison,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
