"""The loop, on one page: plan -> micro-steps -> one reduction -> update -> log, save, evaluate when it is time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from sft_dist.checkpoint.store import Position
from sft_dist.core.records import Batch, StepMetrics, StepPlan
from sft_dist.core.seeds import derive
from sft_dist.model.packed import to_inputs
from sft_dist.train.guard import Heartbeat, Requests
from sft_dist.train.metrics import Meter, memory_bytes
from sft_dist.train.zero import update

Work = tuple[StepPlan, list[Batch]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What happens around a step, on every rank. `save` says whether the checkpoint is whole; the others nothing."""

    log: Callable[[StepMetrics], None]
    event: Callable[..., None]
    save: Callable[[Position], bool]
    evaluate: Callable[[int], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """When things happen, in optimizer steps (and minutes); None is never."""

    total_steps: int
    save_every_steps: int | None
    save_every_minutes: float | None
    eval_every: int | None
    max_skipped_steps: int


def run(
    engine: Any,
    work: Iterable[tuple[Position, StepPlan, Callable[[], list[Batch]]]],
    *,
    start: Position,
    schedule: Schedule,
    lr_of: Callable[[int], float],
    meter: Meter,
    requests: Requests,
    heartbeat: Heartbeat,
    hooks: Hooks,
    seed: int,
    clip: float | None,
    useful_flops: Callable[[int, int, int], float],
    peak_flops: float | None,
) -> tuple[Position, str, str]:
    """Train from `start` until the schedule ends or all ranks agree to stop.

    Args:
        engine: The DeepSpeed engine.
        work: For every global batch from `start` on: the position after it, its plan, and a function that collates
            this rank's micro-batches (run one step ahead in a thread).
        start: Position to start from.
        schedule: When things happen.
        lr_of: Learning rate of a zero-based optimizer step.
        meter: Adds up and reduces.
        requests: Stop and save requests.
        heartbeat: Told of progress.
        hooks: Log, event, save, evaluate.
        seed: Root of the dropout streams.
        clip: Largest gradient norm (DeepSpeed's own copy serves ZeRO 1 to 3).
        useful_flops: (tokens, targets, pairs) of a global batch -> FLOPs of forward and backward.
        peak_flops: Of all devices together, or None.

    Returns:
        The last position; finished, stopped or fatal; and the reason of a fatal end.
    """
    world, rank, device = dist.get_world_size(), dist.get_rank(), engine.device
    position, skipped, last_save, saved_at = start, 0, time.monotonic(), start
    engine.train()
    for after, plan, batches, waited_s in _prefetched(work):
        began = time.monotonic()
        torch.manual_seed(
            derive(seed, "dropout", position.step, rank)
        )  # exact resume without saving generator states
        lr = lr_of(position.step)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr
        losses: list[Any] = []
        for batch in batches:
            inputs = to_inputs(batch, device)
            loss_sum, nll_N = engine(*inputs)
            # world / total target weight: see the algebra in model/loss.py
            engine.backward(loss_sum * (world / plan.target_weight), scale_wrt_gas=False)
            meter.add(batch, loss_sum, nll_N, inputs[-1])
            losses.append(nll_N * inputs[-1])
        stop, save = requests.poll()
        overdue = rank == 0 and time.monotonic() - last_save > 60 * (schedule.save_every_minutes or math.inf)
        sums = meter.reduce(stop=stop, save=save or overdue)
        applied, norm = update(engine, clip)
        position = after
        skipped = 0 if applied else skipped + 1
        if not applied:
            guilty = _everywhere([i for b, n in zip(batches, losses, strict=True) for i in _non_finite(b, n)])
            hooks.event(
                "skipped_step",
                step=position.step,
                loss=_or_none(sums.loss / plan.target_weight),
                examples=guilty[:32],
            )
        step_s = time.monotonic() - began + waited_s
        flops = useful_flops(sums.tokens, sums.targets, sums.pairs)
        hooks.log(
            StepMetrics(
                step=position.step,
                epoch=plan.epoch,
                loss=sums.loss / plan.target_weight,
                grad_norm=norm,
                lr=lr,
                tokens=sums.tokens,
                target_tokens=sums.targets,
                tokens_per_s=sums.tokens / step_s,
                mfu=flops / step_s / peak_flops if peak_flops else None,
                fill=plan.fill,
                imbalance=plan.imbalance,
                step_s=step_s,
                data_wait_s=waited_s,
                memory_bytes=memory_bytes(device),
                skipped=not applied,
                task_loss=sums.task_loss,
            )
        )
        heartbeat.progress()
        if skipped >= schedule.max_skipped_steps:
            reason = (
                f"{skipped} steps in a row had a loss or gradient that is not finite, so training ended at step {position.step}; "
                f"events.jsonl names the examples, the last good checkpoint is that of step {saved_at.step}"
            )
            hooks.event("fatal", step=position.step, reason=reason)
            return position, "fatal", reason
        due = sums.save or sums.stop or _every(position.step, schedule.save_every_steps)
        if due and hooks.save(position):
            last_save, saved_at = time.monotonic(), position
        if sums.stop:
            hooks.event("stopped", step=position.step, reason=requests.reason)
            if saved_at != position:
                return position, "fatal", _unsaved(position, saved_at)
            return position, "stopped", ""
        if _every(position.step, schedule.eval_every) and position.step < schedule.total_steps:
            hooks.evaluate(position.step)
            engine.train()
        heartbeat.progress()
    if (saved_at != position or position.step == 0) and not hooks.save(position):
        return position, "fatal", _unsaved(position, saved_at)
    hooks.evaluate(position.step)
    return position, "finished", ""


def _unsaved(position: Position, saved_at: Position) -> str:
    return (
        f"the checkpoint of step {position.step} could not be written (events.jsonl says why), so the steps after "
        f"{saved_at.step} are lost; make room and run the same command"
    )


def _prefetched(
    work: Iterable[tuple[Position, StepPlan, Callable[[], list[Batch]]]],
) -> Iterator[tuple[Position, StepPlan, list[Batch], float]]:
    """Collate the next step's micro-batches in a thread while this one runs; yield with the seconds waited."""
    with ThreadPoolExecutor(1) as pool:
        queue = iter(work)
        ahead = next(queue, None)
        future = pool.submit(ahead[2]) if ahead else None
        while ahead and future:
            began = time.monotonic()
            batches = future.result()
            now, waited = ahead, time.monotonic() - began
            ahead = next(queue, None)
            future = pool.submit(ahead[2]) if ahead else None
            yield now[0], now[1], batches, waited


def _every(step: int, period: int | None) -> bool:
    return period is not None and step % period == 0


def _non_finite(batch: Batch, loss_N: Any) -> list[str]:
    """Return the ids of examples with a non-finite loss."""
    positions = batch.target_positions[(~torch.isfinite(loss_N)).cpu().numpy()]
    return sorted({batch.doc_ids[i] for i in batch.cu_seqlens[1:].searchsorted(positions, side="right")})


def _everywhere(values: list[str]) -> list[str]:
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, values)
    return [v for part in out for v in part]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
