"""Shape, setup and device -> milliseconds of a micro-step, by what takes them. Calculated: no GPU has confirmed it yet. No torch.

A micro-step takes as long as the slowest of three that run side by side: the host that launches it, the device that works,
and the wires. Per item the constants stand below with where they come from: host times were measured on a CPU by stage
(bench/host.py: Python around 28 layers of toy width), launches and bytes counted on fake tensors of full-size models
(Qwen3-0.6B, Llama-3.2-1B and -3B), rates are those that others publish for these kernels. `sft-dist doctor --prove` measures
all of them on a device at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from sft_dist.cluster.estimate.memory import BYTES, CHUNK_LOGITS, FP32, Setup, Shape
from sft_dist.pack import CostModel
from sft_dist.pack.devices import Device

# Host milliseconds of one layer, forward and backward, on the CPU of a GPU server (0.7 of what was measured): by stage and
# whether layers are compiled; (nothing recomputed, everything recomputed).
HOST_MS = {
    (0, False): (1.2, 2.6),
    (1, False): (1.7, 3.0),
    (2, False): (2.1, 3.5),
    (3, False): (3.8, 6.3),  # whole layers are gathered at once
    (0, True): (0.6, 1.1),
    (1, True): (1.0, 1.4),
    (2, True): (1.4, 1.8),
    (3, True): (2.3, 2.6),
}
LAUNCH_S = 4.5e-6
# Kernels of one layer: (as transformers writes it, fused or compiled)
LAUNCHES, LAUNCHES_AGAIN = (171, 60), (52, 20)
# What kernels reach: of the peak for matrix products and attention (FlashAttention 2, heads of 128), of the bandwidth for the rest
PRODUCTS, ATTENTION, BANDWIDTH = 0.58, 0.31, 0.8
# Bytes that a layer's other kernels read and write for one token, over the width of what they work on, forward and backward,
# at 2 bytes a number: of the residual stream, of queries and keys, of the same where they are normed, of the feed-forward width
UNFUSED = (293.0, 82.0, 130.0, 38.0)
FUSED = (85.0, 10.0, 12.0, 22.0)
AGAIN = 0.27  # of these bytes once more where a layer is computed again
# Bytes for each logit, and for each element of the projection's gradient and chunk: as written plainly, and in two passes
LOSS_BYTES = {False: (51.0, 14.0), True: (8.0, 8.0)}
ACCUMULATED = 10.0  # bytes for each gradient that is added to its fp32 sum
UPDATED = 28.0  # bytes for each parameter that the optimizer updates
BETWEEN_NODES = 40e9  # bytes a second of one GPU over 400 Gb/s


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Of one micro-step of one rank, and of what happens once a step."""

    host: float
    products: float
    attention: float
    memory: float
    wires: float
    once: float

    @property
    def device(self) -> float:
        """The device's work, one kernel after the other."""
        return self.products + self.attention + self.memory

    @property
    def micro_step(self) -> float:
        """What a micro-step takes: the slowest of the three."""
        return max(self.host, self.device, self.wires)

    @property
    def bound_by(self) -> str:
        """Which of the three that is."""
        times = {"the host": self.host, "the device": self.device, "the network": self.wires}
        return max(times, key=lambda name: times[name])


def micro_step(
    shape: Shape,
    setup: Setup,
    cost: CostModel,
    device: Device,
    *,
    tokens: float,
    squares: float,
    targets: float,
    ranks_per_node: int,
) -> Seconds:
    """Return the seconds of a micro-step.

    Args:
        shape: The model.
        setup: How it is trained.
        cost: FLOPs, backward included as in `with_backward`.
        device: The GPU.
        tokens: Of the rank's micro-batch.
        squares: Sum of squared document lengths in it.
        targets: Tokens that carry loss.
        ranks_per_node: GPUs of a node.
    """
    again = _share_again(setup)
    fast = setup.compiled or setup.fused
    products = (1.0 + cost.linear_backward + again) * cost.linear_flops_per_token * tokens
    products += (1.0 + cost.head_backward) * cost.head_flops_per_target * targets
    scores = (1.0 + again + (2.5 if cost.attention_backward else 0.0)) * cost.attention_flops_per_pair
    peak, memory = device.peak_flops, BANDWIDTH * device.bandwidth
    moved = _layer_bytes(shape, setup, fused=fast) * (1.0 + AGAIN * again) * tokens * shape.L
    moved += _loss_bytes(shape, setup, targets) + ACCUMULATED * shape.trained
    launches = LAUNCHES[fast] + again * LAUNCHES_AGAIN[fast]
    plain, recomputed = HOST_MS[setup.stage, setup.compiled]
    host = (plain + again * (recomputed - plain)) / 1e3 + launches * LAUNCH_S
    micro_wires, step_wires = _wire_bytes(shape, setup)
    link = device.link if setup.ranks <= ranks_per_node else BETWEEN_NODES
    mine = shape.trained / (setup.ranks if setup.stage else 1)
    return Seconds(
        host=host * shape.L,
        products=products / (PRODUCTS * peak),
        attention=scores * 0.5 * squares / (ATTENTION * peak),
        memory=moved / memory,
        wires=micro_wires / link,
        once=UPDATED * mine / memory + step_wires / link,
    )


def _share_again(setup: Setup) -> float:
    """Share of the layers' forward pass that is run again in the backward pass."""
    how = setup.gradient_checkpointing
    return 0.3 if how == "selective" else (1.0 / int(how) if how else 0.0)


def _layer_bytes(shape: Shape, setup: Setup, *, fused: bool) -> float:
    stream, rope, normed, inner = FUSED if fused else UNFUSED
    heads = shape.A + shape.G
    total = stream * shape.E + rope * heads + inner * shape.I + (normed * heads if shape.norms_heads else 0.0)
    return total * BYTES[setup.dtype] / 2


def _loss_bytes(shape: Shape, setup: Setup, targets: float) -> float:
    each_logit, each_weight = LOSS_BYTES[setup.fused_loss]
    chunks = -(-targets // max(1, CHUNK_LOGITS[setup.device] // shape.V))
    weights = each_weight * chunks * shape.V * shape.E if shape.trains_head else 0.0
    return each_logit * targets * shape.V + weights


def _wire_bytes(shape: Shape, setup: Setup) -> tuple[float, float]:
    """Bytes that one rank sends for every micro-step, and once a step."""
    others = (setup.ranks - 1) / setup.ranks
    weights, gradients = BYTES[setup.dtype] * shape.parameters, BYTES[setup.dtype] * shape.trained
    if setup.stage == 3:
        return others * (2 * weights + gradients), 0.0  # gathered for forward and backward, reduced
    once = others * BYTES[setup.dtype] * shape.trained  # updated weights are gathered
    if setup.stage == 2:
        return others * gradients, once
    return 0.0, once + 2 * others * (gradients if setup.stage else FP32 * shape.trained)
