"""The loop, on one page: plan -> micro-steps -> one reduction -> update -> log, save, evaluate when it is time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sft_dist.checkpoint.background import Saver
from sft_dist.config.train import CheckpointConfig, TrainConfig
from sft_dist.core.collectives import gather
from sft_dist.core.records import Batch, Position, StepMetrics, StepPlan
from sft_dist.core.rng import derive
from sft_dist.model.packed import MicroBatch, upload
from sft_dist.train import stop_messages
from sft_dist.train.guard import (
    Heartbeat,
    SpikeDetector,
    StopSignals,
    example_losses,
    since_lowest,
    worst_examples,
)
from sft_dist.train.metrics import Meter, Step, step_metrics
from sft_dist.train.zero import update


@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What happens around a step, on every rank. `evaluate` returns the validation loss, where there is one."""

    log: Callable[[StepMetrics], None]
    event: Callable[..., None]
    evaluate: Callable[[int], float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """Which steps a run takes, and at what rate.

    Attributes:
        start: Position to start from.
        total: Optimizer steps of the whole run.
        in_epoch: Of the first epoch; evaluations and saves by epoch are spread over so many.
        lr_of: Learning rate of a zero-based optimizer step.
    """

    start: Position
    total: int
    in_epoch: int
    lr_of: Callable[[int], float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guards:
    """What ends a run or skips a step.

    Attributes:
        requests: Stop and save requests.
        heartbeat: Told of progress.
        spikes: Says which steps are not worth their update.
    """

    requests: StopSignals
    heartbeat: Heartbeat
    spikes: SpikeDetector


@dataclass(frozen=True, kw_only=True, slots=True)
class Flops:
    """What a step computes, and what the devices could.

    Attributes:
        useful: (tokens, targets, pairs) of a global batch -> FLOPs of forward and backward.
        peak: FLOPs a second of all devices together, or None.
    """

    useful: Callable[[int, int, int], float]
    peak: float | None


def run(
    engine: Any,
    work: Iterable[tuple[Position, StepPlan, Callable[[], list[Batch]]]],
    steps: Steps,
    *,
    train: TrainConfig,
    checkpoint: CheckpointConfig,
    clip: float | None,
    seed: int,
    guards: Guards,
    saver: Saver,
    hooks: Hooks,
    meter: Meter,
    flops: Flops,
) -> tuple[Position, str, str]:
    """Train until the schedule ends or all ranks agree to stop.

    Args:
        engine: The DeepSpeed engine.
        work: For every global batch from the start on: the position after it, its plan, and a function that collates
            this rank's micro-batches. Taken, run and sent to the device in a thread, one step ahead.
        steps: Where to start and end, and the learning rate.
        train: The section of that name: when to evaluate, how many skipped steps end the run.
        checkpoint: The section of that name: when to save.
        clip: Largest gradient norm (DeepSpeed's own copy serves ZeRO 1 to 3).
        seed: Root of the dropout streams.
        guards: What ends the run or skips a step.
        saver: Writes checkpoints in the background.
        hooks: Log, event, evaluate.
        meter: Adds up and reduces.
        flops: For the share of the devices' speed that is used.

    Returns:
        The last position; finished, stopped or fatal; and the reason of a fatal end.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    position, skipped, last_save = steps.start, 0, time.monotonic()
    if steps.start.step and (why := _exhausted(saver, train)):  # a restart of a run that had ended so
        return _ended(steps.start, "finished", saver, why)
    if not steps.start.step:
        hooks.evaluate(0)  # where the curves begin; it chooses nothing, for there is no checkpoint of it
        guards.heartbeat.progress()
    engine.train()

    def ready(batch: Batch) -> MicroBatch:
        return upload(batch, engine.device, meter.codes(batch))

    for after, plan, batches, waited_s in prefetched(work, ready):
        began = time.monotonic()
        begin_step(engine, batches, plan.target_weight, derive(seed, "dropout", position.step, rank))
        lr = _set_rate(engine, steps.lr_of(position.step))
        scale = world / plan.target_weight  # see the algebra in model/loss.py
        losses = [micro_step(engine, batch, scale, meter) for batch in batches]
        stop, save = guards.requests.poll()
        written, failed = saver.flags()
        overdue = rank == 0 and time.monotonic() - last_save > 60 * (
            checkpoint.save_every_minutes or math.inf
        )
        sums = meter.reduce(
            guards.heartbeat.pace.own(), stop=stop, save=save or overdue, written=written, failed=failed
        )
        saver.agree(sums.ranks["written"], sums.ranks["failed"])
        loss = sums.total["loss"] / plan.target_weight  # the same on all ranks
        load = engine.module.balance.loads() if engine.module.balance else {}
        cause, norm = _update(engine, clip, guards.spikes, loss, _largest(batches))
        if cause:
            names = worst_examples(
                chain.from_iterable(gather(example_losses([b.batch for b in batches], losses)))
            )
            hooks.event("skipped_step", step=after.step, cause=cause, loss=_or_none(loss), examples=names)
            if guards.spikes.stops(cause):
                _keep(position, saver, guards.spikes)
                return _fatal(position, stop_messages.stopped(after.step, cause, loss, saver.saved_at), hooks)
        position, skipped = after, skipped + 1 if cause else 0
        hooks.log(
            step_metrics(
                Step(
                    plan=plan,
                    sums=sums,
                    step=position.step,
                    lr=lr,
                    grad_norm=norm,
                    skipped=bool(cause),
                    step_s=time.monotonic() - began + waited_s,
                    data_wait_s=waited_s,
                    useful_flops=flops.useful(*(int(sums.total[n]) for n in ("tokens", "targets", "pairs"))),
                    peak_flops=flops.peak,
                    device=engine.device,
                    router_load=load,
                )
            )
        )
        guards.heartbeat.progress()
        if slow := guards.heartbeat.slowest(sums.pace):
            hooks.event("straggler", step=position.step, **slow)
        if skipped >= train.max_skipped_steps:
            saver.finish()
            return _fatal(position, stop_messages.skipped(skipped, position.step, saver.saved_at), hooks)
        stopping = sums.ranks["stop"] > 0
        due = sums.ranks["save"] > 0 or stopping or _every(position.step, checkpoint.save_every_steps)
        due |= _in_epoch(position, checkpoint.saves_per_epoch, steps.in_epoch)
        last = stopping or position.step == steps.total  # the last evaluation comes after the loop
        scored = _every(position.step, train.eval_every_steps)
        scored |= _in_epoch(position, train.evals_per_epoch, steps.in_epoch)
        why = ""
        if scored and not last:
            due |= saver.scored(position.step, hooks.evaluate(position.step))
            engine.train()
            guards.heartbeat.progress()
            why = _exhausted(saver, train)
            due |= bool(why)
        if due:
            last_save = time.monotonic()
            saver.begin(position, {"losses": guards.spikes.losses})
            guards.requests.served()
        if stopping:
            saver.finish()
            hooks.event("stopped", step=position.step, reason=guards.requests.reason)
            return _ended(position, "stopped", saver)
        if why:
            saver.finish()
            hooks.event("ended_early", step=position.step, reason=why)
            return _ended(position, "finished", saver, why)
        guards.heartbeat.progress()
    if saver.begun_at != position:
        saver.begin(position, {"losses": guards.spikes.losses})
    saver.scored(position.step, hooks.evaluate(position.step))  # while it is being written
    saver.finish()
    if saver.saved_at != position:  # once more: the disk may have room by now
        saver.begin(position, {"losses": guards.spikes.losses})
        saver.finish()
    return _ended(position, "finished", saver)


def _set_rate(engine: Any, lr: float) -> float:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def begin_step(engine: Any, batches: list[MicroBatch], weight: float, seed: int) -> None:
    """Seed dropout, and let routers be counted that are balanced over the step, with the same draws. Collective."""
    balance = engine.module.balance

    def count(batch: MicroBatch) -> None:
        balance.real = batch.real_tokens
        *tokens, targets, ids, weights = batch.arrive()
        with torch.no_grad():
            engine(*tokens, targets[:0], ids[:0], weights[:0])

    if balance:
        torch.manual_seed(seed)
        balance.begin_step(count, batches, weight)
    torch.manual_seed(seed)  # of the step: resume needs no generator states


def micro_step(engine: Any, batch: MicroBatch, scale: float, meter: Meter) -> Tensor:
    """Run forward and backward; return the weighted loss of each target. Nothing here waits for the device."""
    if engine.module.balance:
        engine.module.balance.real = batch.real_tokens
    loss_sum, nll_N = engine(*batch.arrive())
    engine.backward(loss_sum * scale, scale_wrt_gas=False)
    meter.add(batch, nll_N)
    return nll_N * batch.weights_N


def _update(
    engine: Any, clip: float | None, spikes: SpikeDetector, loss: float, batch: MicroBatch
) -> tuple[str, float]:
    """Apply the update unless something is wrong with the step; return what, and the gradient norm. Collective.

    A bad loss is seen before the update. Where its step is skipped, the gradient is made NaN, so that `update` drops it as
    it drops any that is not finite: one more backward pass through the engine, because DeepSpeed has no call that forgets
    gradients, and where it keeps them depends on stage and offload.
    """
    cause = spikes.wrong(loss)
    if cause and spikes.stops(cause):
        return cause, math.nan
    if cause:
        loss_sum, _ = engine(*batch.arrive())
        engine.backward(loss_sum * math.nan, scale_wrt_gas=False)
    applied, norm = update(engine, clip)
    if applied:
        spikes.add(loss)
    return "" if applied else cause or "nonfinite", norm


def _largest(batches: list[MicroBatch]) -> MicroBatch:
    """Return the micro-batch of most tokens, the same for ranks that share rows. An empty one has no gradient to poison."""
    return max(batches, key=lambda micro: int(micro.batch.cu_seqlens[-1]))


def _keep(position: Position, saver: Saver, spikes: SpikeDetector) -> None:
    """Save the state that a bad step has not touched."""
    if position.step and saver.begun_at != position:
        saver.begin(position, {"losses": spikes.losses})
    saver.finish()


def _fatal(position: Position, reason: str, hooks: Hooks) -> tuple[Position, str, str]:
    hooks.event("fatal", step=position.step, reason=reason)
    return position, "fatal", reason


def _ended(position: Position, state: str, saver: Saver, why: str = "") -> tuple[Position, str, str]:
    """Return how training ended: as it should, if the last state is on disk."""
    if saver.saved_at != position:
        return position, "fatal", stop_messages.unsaved(position.step, saver.saved_at)
    return position, state, why


def _exhausted(saver: Saver, train: TrainConfig) -> str:
    """Return why the run ends before its schedule; empty: it goes on. The same on all ranks."""
    patience, losses = train.patience_evaluations, saver.losses
    if patience is None or since_lowest(losses, train.patience_nats) < patience:
        return ""
    best = saver.best
    return (
        f"{patience} evaluations have not lowered the validation loss (lowest {losses[best]:.4f}, at step {best}); "
        "train.patience_evaluations"
    )


def prefetched(
    work: Iterable[tuple[Position, StepPlan, Callable[[], list[Batch]]]],
    ready: Callable[[Batch], MicroBatch],
) -> Iterator[tuple[Position, StepPlan, list[MicroBatch], float]]:
    """Plan, collate and upload the next step in a thread while this one runs; yield with the seconds waited for it."""
    queue = iter(work)

    def ahead() -> tuple[Position, StepPlan, list[MicroBatch]] | None:
        item = next(queue, None)
        return (item[0], item[1], [ready(batch) for batch in item[2]()]) if item else None

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ahead)
        while True:
            began = time.monotonic()
            made = future.result()
            waited = time.monotonic() - began
            if made is None:
                return
            future = pool.submit(ahead)
            yield *made, waited


def _every(step: int, period: int | None) -> bool:
    return period is not None and step % period == 0


def _in_epoch(position: Position, per_epoch: int | None, epoch_steps: int) -> bool:
    """Whether one of `per_epoch` evenly spread marks of an epoch lies at this position; the last is the epoch's end."""
    if per_epoch is None:
        return False
    at = position.epoch_step
    return at == 0 or (
        at < epoch_steps and at * per_epoch // epoch_steps > (at - 1) * per_epoch // epoch_steps
    )


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
