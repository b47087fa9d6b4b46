"""Memory, time and disk that a run needs, and what to change where it does not fit. No torch.

Where nothing is measured, the time is calculated from host time, launches, products, bytes and wires (speed.py), and the result
says so. On top of what tensors hold, the driver, NCCL and fragmentation take `RESERVED`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from sft_dist.cluster.estimate.memory import BYTES, Memory, Setup, Shape, estimate_memory
from sft_dist.cluster.estimate.speed import Seconds, micro_step
from sft_dist.config.optimizers import FP32
from sft_dist.pack import CostModel
from sft_dist.pack.devices import Device

RESERVED_SHARE = 0.05  # of the peak, lost to fragmentation with expandable segments
RESERVED_BYTES = 1 << 30  # CUDA context and NCCL's buffers
MAX_SUGGESTIONS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What an epoch's plan says.

    Attributes:
        steps: Optimizer steps of the whole run.
        tokens: Tokens of one step, padding not counted.
        targets: Of these, tokens that carry loss.
        squares: Sum of squared document lengths of one step.
    """

    steps: int
    tokens: float
    targets: float
    squares: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Time:
    """How long it takes.

    Attributes:
        tokens_per_s: Of all ranks.
        step_s: Seconds of a step.
        hours: Of the run.
        device_hours: Of all its devices.
        basis: Where the speed comes from.
        mfu: Useful FLOPs over the devices' peak; None where it is not known.
        micro_step_ms: Milliseconds of a micro-step by what takes them; empty where the speed was measured.
    """

    tokens_per_s: float
    step_s: float
    hours: float
    device_hours: float
    basis: str
    mfu: float | None = None
    micro_step_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """Overrides of the config, and the peak bytes of a rank with them."""

    overrides: tuple[str, ...]
    peak: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Speed of an earlier run: real tokens a second of all its ranks, and the useful FLOPs of one of its tokens."""

    name: str
    tokens_per_s: float
    ranks: int
    flops_per_token: float


def needed(peak: int, device: str) -> int:
    """Return what a device must have for tensors of `peak` bytes."""
    return peak if device == "cpu" else round(peak * (1 + RESERVED_SHARE)) + RESERVED_BYTES


def state_bytes(shape: Shape, a_weight: int) -> int:
    """Return the size of fp32 master weights and the optimizer's states (`a_weight` bytes for each) in a checkpoint."""
    return (FP32 + a_weight) * shape.trained


def export_bytes(shape: Shape, dtype: str) -> int:
    """Return the size of the exported model."""
    return BYTES[dtype] * shape.parameters


def with_backward(cost: CostModel, shape: Shape) -> CostModel:
    """Return a FLOP model whose backward pass is that of what is trained; model/trainable.py does it for a live model."""
    passed = shape.passed / shape.L
    return replace(
        cost,
        linear_backward=shape.trained_share + passed,
        attention_backward=2.0 * passed,
        head_backward=float(passed > 0) + float(shape.trains_head),
    )


def time_of(
    work: Work,
    cost: CostModel,
    setup: Setup,
    shape: Shape,
    *,
    fill: float,
    rows_per_step: float,
    rows: int,
    seq_len: int,
    ranks_per_node: int,
    device: Device | None,
    measured: Measured | None,
    slower: float = 1.0,
) -> Time | None:
    """Return the time of a run; None where neither a device nor a measurement is known.

    A measured speed is carried over by useful FLOPs: per rank as many a second as there.

    Args:
        work: Of the run.
        cost: FLOPs, of what is trained.
        setup: How it is trained.
        shape: The model.
        fill: Tokens over capacity of the rows.
        rows_per_step: Rows of a global batch.
        rows: `train.micro_rows`.
        seq_len: Capacity of a row in tokens.
        ranks_per_node: GPUs of a node.
        device: The GPU.
        measured: An earlier run.
        slower: By how much longer a micro-step was measured to take than is calculated.
    """
    flops = cost.useful_flops(work.tokens, work.squares, work.targets)
    parts: dict[str, float] = {}
    if measured:
        step_s = flops / (measured.tokens_per_s * measured.flops_per_token / measured.ranks * setup.ranks)
        basis = (
            f"measured in {measured.name}: {measured.tokens_per_s:,.0f} tokens/s on {measured.ranks} ranks"
        )
    elif device:
        tokens = setup.tokens * fill
        share = tokens / work.tokens
        taken = micro_step(
            shape, setup, cost, device, tokens=tokens, squares=work.squares * share, targets=work.targets * share,
            ranks_per_node=ranks_per_node,
        )  # fmt: skip
        groups = setup.ranks * setup.tokens / (rows * seq_len)  # of ranks that share rows
        step_s = slower * (max(1.0, rows_per_step / (groups * rows)) * taken.micro_step + taken.once)
        parts = {name: 1000 * seconds for name, seconds in asdict(taken).items()}
        basis = _calculated(taken) + (f"; times {slower:.2f}, as measured on one" if slower != 1.0 else "")
    else:
        return None
    hours = step_s * work.steps / 3600
    return Time(
        tokens_per_s=work.tokens / step_s,
        step_s=step_s,
        hours=hours,
        device_hours=hours * setup.ranks,
        basis=basis,
        mfu=flops / step_s / (device.peak_flops * setup.ranks) if device else None,
        micro_step_ms=parts,
    )


def _calculated(taken: Seconds) -> str:
    ms = {name: f"{1000 * seconds:,.0f}" for name, seconds in asdict(taken).items()}
    return (
        f"calculated, confirmed by no GPU: a micro-step is bound by {taken.bound_by}; ms of the host {ms['host']}, of products "
        f"{ms['products']}, attention {ms['attention']}, memory {ms['memory']}, network {ms['wires']}; --like RUN takes the speed of an earlier run"
    )


def suggestions(
    shape: Shape, setup: Setup, *, rows: int, seq_len: int, limit_bytes: int
) -> tuple[Suggestion, ...]:
    """Return changes that make a run fit, the cheapest in speed first; nothing when it fits as it is.

    Args:
        shape: The model.
        setup: As configured.
        rows: `train.micro_rows`.
        seq_len: `pack.seq_len`.
        limit_bytes: Memory of a device.
    """

    def peak_of(changed: Setup) -> int:
        return needed(estimate_memory(shape, changed).peak, setup.device)

    if peak_of(setup) <= limit_bytes:
        return ()
    found: list[Suggestion] = []
    for overrides, changed in _candidates(setup, rows, seq_len):
        covered = any(set(f.overrides) <= set(overrides) for f in found)
        if not covered and (peak := peak_of(changed)) <= limit_bytes:
            found.append(Suggestion(overrides=overrides, peak=peak))
        if len(found) == MAX_SUGGESTIONS:
            break
    return tuple(found)


def _candidates(setup: Setup, rows: int, seq_len: int) -> Iterator[tuple[tuple[str, ...], Setup]]:
    """Yield ways to need less, each with its overrides: first what costs no speed, last what changes the training."""
    fewer: list[tuple[tuple[str, ...], Setup]] = [((), setup)]
    if not setup.gradient_checkpointing:
        fewer.append((("model.gradient_checkpointing=true",), replace(setup, gradient_checkpointing=True)))
    steps: list[tuple[str, dict[str, object]]] = []
    smaller = rows // 2
    while smaller >= 1:
        steps.append((f"train.micro_rows={smaller}", {"tokens": setup.tokens * smaller // rows}))
        smaller //= 2
    combined = list(fewer)
    for name, change in steps:
        combined += [((*names, name), replace(base, **change)) for names, base in fewer]  # type: ignore[arg-type]
    staged = list(combined)
    for stage in range(setup.stage + 1, 4):
        staged += [((*n, f"deepspeed.stage={stage}"), replace(base, stage=stage)) for n, base in combined]
    nodes = [
        ((*n, f"{setup.ranks * more} ranks"), replace(base, ranks=setup.ranks * more))
        for more in (2, 4, 8)
        for n, base in staged
        if base.stage
    ]
    offloaded = [
        (
            (*n, "deepspeed.offload_optimizer=cpu"),
            replace(base, offload_optimizer=True),
        )
        for n, base in staged
        if base.stage
    ]
    shorter = [
        ((*n, f"pack.seq_len={seq_len // part}"), replace(base, tokens=base.tokens // part))
        for part in (2, 4)
        for n, base in staged
    ]
    yield from (c for c in staged if c[0])
    yield from nodes
    yield from offloaded
    yield from shorter


def as_dict(usage: Memory) -> dict[str, object]:
    """Return a rank's memory for JSON, in bytes."""
    return {
        "peak": usage.peak,
        "worst_phase": usage.worst,
        "parts": usage.parts,
        "states": usage.states,
        "phases": usage.phases,
        "host": usage.host,
    }
