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

from sft_dist.checkpoint.background import Saver
from sft_dist.checkpoint.store import Position
from sft_dist.core.records import Batch, StepMetrics, StepPlan
from sft_dist.core.seeds import derive
from sft_dist.model.packed import to_inputs
from sft_dist.train.guard import Heartbeat, Judge, Requests, example_losses, guilty
from sft_dist.train.metrics import Meter, memory_bytes
from sft_dist.train.zero import update

Work = tuple[StepPlan, list[Batch]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What happens around a step, on every rank. `evaluate` returns the held-out loss, where there is one."""

    log: Callable[[StepMetrics], None]
    event: Callable[..., None]
    evaluate: Callable[[int], float | None]


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
    saver: Saver,
    judge: Judge,
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
        hooks: Log, event, evaluate.
        saver: Writes checkpoints in the background.
        judge: Says which steps are not worth their update.
        seed: Root of the dropout streams.
        clip: Largest gradient norm (DeepSpeed's own copy serves ZeRO 1 to 3).
        useful_flops: (tokens, targets, pairs) of a global batch -> FLOPs of forward and backward.
        peak_flops: Of all devices together, or None.

    Returns:
        The last position; finished, stopped or fatal; and the reason of a fatal end.
    """
    world, rank, device = dist.get_world_size(), dist.get_rank(), engine.device
    position, skipped, last_save = start, 0, time.monotonic()
    engine.train()
    for after, plan, batches, waited_s in _prefetched(work):
        began = time.monotonic()
        torch.manual_seed(
            derive(seed, "dropout", position.step, rank)
        )  # exact resume without saving generator states
        lr = lr_of(position.step)
        for group in engine.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        losses: list[Any] = []
        for batch in batches:
            inputs = to_inputs(batch, device)
            loss_sum, nll_N = engine(*inputs)
            # world / total target weight: see the algebra in model/loss.py
            engine.backward(loss_sum * (world / plan.target_weight), scale_wrt_gas=False)
            meter.add(batch, nll_N, inputs[-1])
            losses.append(nll_N * inputs[-1])
        stop, save = requests.poll()
        written, failed = saver.flags()
        overdue = rank == 0 and time.monotonic() - last_save > 60 * (schedule.save_every_minutes or math.inf)
        sums = meter.reduce(stop=stop, save=save or overdue, written=written, failed=failed)
        saver.agree(sums.written, sums.failed)
        loss = sums.loss / plan.target_weight
        cause = judge.wrong(loss)  # before the update, from a figure that is the same on all ranks
        if cause and not judge.stops(cause):
            _spoil(engine, batches[0])
        applied, norm = (False, math.nan) if cause and judge.stops(cause) else update(engine, clip)
        skipped = 0 if applied else skipped + 1
        if applied:
            judge.add(loss)
        else:
            cause = cause or "nonfinite"
            names = guilty(_everywhere(example_losses(batches, losses)))
            hooks.event("skipped_step", step=after.step, cause=cause, loss=_or_none(loss), examples=names)
            if judge.stops(cause):
                return position, "fatal", _stopped_before(after, position, cause, loss, saver, judge, hooks)
        position = after
        step_s = time.monotonic() - began + waited_s
        flops = useful_flops(sums.tokens, sums.targets, sums.pairs)
        hooks.log(
            StepMetrics(
                step=position.step,
                epoch=plan.epoch,
                loss=loss,
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
                source_loss=sums.source_loss,
                target_tokens_per_s=sums.targets / step_s,
            )
        )
        heartbeat.progress()
        if skipped >= schedule.max_skipped_steps:
            saver.finish()
            reason = (
                f"{skipped} steps in a row were skipped (loss or gradient not finite, or a spike), so training ended at step "
                f"{position.step}; events.jsonl names the examples, the last good checkpoint is {_name(saver.saved_at)}"
            )
            hooks.event("fatal", step=position.step, reason=reason)
            return position, "fatal", reason
        due = sums.save or sums.stop or _every(position.step, schedule.save_every_steps)
        if (
            _every(position.step, schedule.eval_every)
            and position.step < schedule.total_steps
            and not sums.stop
        ):
            due |= saver.scored(position.step, hooks.evaluate(position.step))
            engine.train()
            heartbeat.progress()
        if due:
            last_save = time.monotonic()
            saver.begin(position, {"losses": judge.losses})
            requests.served()
        if sums.stop:
            saver.finish()
            hooks.event("stopped", step=position.step, reason=requests.reason)
            if saver.saved_at != position:
                return position, "fatal", _unsaved(position, saver)
            return position, "stopped", ""
        heartbeat.progress()
    if saver.begun_at != position:
        saver.begin(position, {"losses": judge.losses})
    saver.scored(position.step, hooks.evaluate(position.step))  # while it is being written
    saver.finish()
    if saver.saved_at != position:  # once more: the disk may have room by now
        saver.begin(position, {"losses": judge.losses})
        saver.finish()
    return (
        (position, "finished", "")
        if saver.saved_at == position
        else (position, "fatal", _unsaved(position, saver))
    )


def _spoil(engine: Any, batch: Batch) -> None:
    """Make the accumulated gradient NaN, so that `update` drops it as it drops any that is not finite. Collective.

    One more backward pass through the engine, because DeepSpeed has no call that forgets gradients, and where it keeps
    them depends on stage and offload.
    """
    loss_sum, _ = engine(*to_inputs(batch, engine.device))
    engine.backward(loss_sum * math.nan, scale_wrt_gas=False)


def _stopped_before(
    after: Position, position: Position, cause: str, loss: float, saver: Saver, judge: Judge, hooks: Hooks
) -> str:
    """Keep the state that the bad step has not touched; return why training ended."""
    if position.step and saver.begun_at != position:
        saver.begin(position, {"losses": judge.losses})
    saver.finish()
    what, key = (
        (f"the loss of step {after.step} ({loss:.4g}) is a spike", "train.on_spike")
        if cause == "spike"
        else (f"the loss or gradient of step {after.step} is not finite", "train.on_nonfinite")
    )
    reason = (
        f"{what} and {key}=stop, so training ended before its update; events.jsonl names the examples, the last good "
        f"checkpoint is {_name(saver.saved_at)}: continue with {key}=skip, or without these examples under another name"
    )
    hooks.event("fatal", step=position.step, reason=reason)
    return reason


def _name(position: Position | None) -> str:
    return f"that of step {position.step}" if position else "none"


def _unsaved(position: Position, saver: Saver) -> str:
    return (
        f"the checkpoint of step {position.step} could not be written (events.jsonl says why), so the steps after the last "
        f"good checkpoint ({_name(saver.saved_at)}) are lost; make room and run the same command"
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


def _everywhere(values: list[Any]) -> list[Any]:
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, values)
    return [v for part in out for v in part]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
