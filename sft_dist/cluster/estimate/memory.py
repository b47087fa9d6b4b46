"""Shape, ZeRO stage and batch -> bytes of one rank, by part and by phase of a step. No torch.

The terms follow what the trainer allocates (model/loss.py, transformers' decoder layers, DeepSpeed 0.19); a test compares
them with the live tensor bytes of real steps. Letters: E width, A query heads x head size, G key-value heads x head size,
H query heads, I feed-forward width of what one token passes, V vocabulary, L layers, P parameters, W ranks; T tokens and
N targets of a rank's micro-batch; b bytes of a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft_dist.config.optimizers import OPTIMIZERS
from sft_dist.core.errors import UserError
from sft_dist.pack.architecture import EXPERTS, mixers_of, shared_width, size_of

BYTES = {"float32": 4, "bfloat16": 2}
FP32 = 4
# Logits of one chunk, by device: model.loss.CHUNK_LOGITS, which imports torch; a test holds them equal.
CHUNK_LOGITS = {"cpu": 1 << 24, "cuda": 1 << 27}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A decoder: the letters above, its parameters, and what of them is trained (cluster/estimate/trainable.py).

    Attributes:
        layer_parameters: Of one layer; of several kinds of layers, the mean.
        parameters: Of the model, adapters included.
        trained: Of these, those that are trained.
        inner: Feed-forward width, of one expert where there are several.
        experts: Experts of a layer; 0 for dense models.
        trains_head: Whether the output projection is trained.
        passed: Layers that the backward pass goes through: from the lowest trained one up.
        trained_share: Of the elements of the layers' matrices.
        norms_heads: Whether queries and keys are normed.
    """

    E: int
    A: int
    G: int
    H: int
    I: int  # noqa: E741  the letter of the legend
    V: int
    L: int
    layer_parameters: int
    parameters: int
    trained: int
    inner: int
    experts: int
    trains_head: bool
    passed: int
    trained_share: float
    norms_heads: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """Read the fields of a Hugging Face config (its text part).

        Raises:
            UserError: When it is not the config of a decoder.
        """
        mixers = mixers_of(config)
        needed = ("hidden_size", "num_hidden_layers", "vocab_size")
        heads = ("num_attention_heads",) if mixers.attending else ()
        if absent := [n for n in (*needed, *heads) if not size_of(config, n)]:
            raise UserError(
                f"the config of this {config.get('model_type', 'unknown')} model has no {absent[0]}, so its memory cannot be "
                "estimated; use a model of the Llama, Qwen, Mistral, Gemma or a similar family"
            )
        E, L, V = (size_of(config, n) or 0 for n in needed)
        H = size_of(config, "num_attention_heads") or 1
        head = size_of(config, "head_dim") or E // H
        A, G = H * head, (size_of(config, "num_key_value_heads") or H) * head
        experts = next((n for k in EXPERTS if (n := size_of(config, k))), 0)
        active = (size_of(config, "num_experts_per_tok") or 1) if experts else 1
        width = size_of(config, "moe_intermediate_size") if experts else None
        inner = width or size_of(config, "intermediate_size") or 4 * E
        family = str(config.get("model_type", ""))
        biases = A + 2 * G if config.get("attention_bias") or family.startswith("qwen2") else 0
        norms = 2 * E + (2 * head if family.startswith("qwen3") else 0)
        attention = E * (2 * A + 2 * G) + biases
        shared = shared_width(config) if experts else 0
        feed_forward = 3 * E * (inner * max(1, experts) + shared) + E * experts
        mixed = mixers.attending * attention + mixers.keeping * mixers.state_weights
        layer = norms + (mixed + mixers.feeding * feed_forward) // L  # the mean of a hybrid's
        # a config that does not say: tied is the default of transformers
        ends = V * E * (1 if config.get("tie_word_embeddings", True) else 2) + E
        total = L * layer + ends
        return cls(
            E=E,
            A=A,
            G=G,
            H=H,
            I=inner * active + shared,
            V=V,
            L=L,
            layer_parameters=layer,
            parameters=total,
            trained=total,
            inner=inner,
            experts=experts,
            trains_head=True,
            passed=L,
            trained_share=1.0,
            norms_heads=family.startswith(("qwen3", "gemma3", "olmo2", "olmo3")),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """How a shape is trained.

    Attributes:
        ranks: Of the whole run.
        stage: Of ZeRO.
        dtype: Of the weights in forward and backward.
        tokens: Of a rank's micro-batch: rows x seq_len, over the ranks that share rows.
        target_share: Targets over tokens.
        gradient_checkpointing: Layers computed again in backward: all (True), every k-th (k), none, or selective.
        offload_activations: Whether the inputs of such layers wait in host memory.
        mlp_tiles: Slices of the tokens that feed-forward layers run on.
        hpz: Ranks that keep a second copy of the weights among them; 1: none do.
        state_bytes: Of the optimizer's states of one weight (config/optimizers.py).
        reduce_bucket_size: Elements, as for `max_live_parameters` and `sub_group_size`.
        offload_optimizer: Whether masters, moments and gradients lie in host memory.
        on_nvme: Whether they lie on a local disk instead.
        offload_parameters: Whether the weights do.
        device: cuda or cpu.
        compiled: Whether each layer is.
        fused: Whether norms, rotary positions and gates are one kernel each.
        fused_loss: Whether the loss passes over its logits twice, in place.
    """

    ranks: int
    stage: int
    dtype: str
    tokens: int
    target_share: float
    gradient_checkpointing: bool | int | str
    reduce_bucket_size: int
    max_live_parameters: int
    sub_group_size: int
    offload_optimizer: bool = False
    on_nvme: bool = False
    offload_parameters: bool = False
    offload_activations: bool = False
    mlp_tiles: int = 1
    hpz: int = 1
    state_bytes: int = OPTIMIZERS["adamw"].state_bytes
    device: str = "cuda"
    compiled: bool = False
    fused: bool = False
    fused_loss: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes of one rank.

    Attributes:
        states: What is there all the time, by part.
        phases: What comes on top in each phase of a step, by phase and part.
        host: What offloading puts into host memory.
    """

    states: dict[str, int]
    phases: dict[str, dict[str, int]]
    host: int

    @property
    def worst(self) -> str:
        """The phase in which most is held."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part when most is held."""
        return self.states | self.phases[self.worst]

    @property
    def peak(self) -> int:
        """The most bytes that are held at once."""
        return sum(self.parts.values())


def estimate_memory(shape: Shape, setup: Setup) -> Memory:
    """Return what one rank holds."""
    b, cpu = BYTES[setup.dtype], setup.device == "cpu"
    states, host = _states(shape, setup)
    T, N = setup.tokens, round(setup.tokens * setup.target_share)
    # on CPU, sdpa_per_doc lays its documents side by side again
    attention, feed_forward = _saved_per_token(shape, b, copies=2 if cpu else 1)
    layer = T * (attention + feed_forward // setup.mlp_tiles)
    inputs, whole, again = _checkpointed(shape, setup, T * shape.E * b, layer)
    if setup.offload_activations:
        host, inputs = host + inputs, 0
    saved = T * shape.E * (FP32 + 2 * b) + inputs + whole  # the last norm and its output, then the layers
    head = shape.V * shape.E
    chunk = min(N, max(1, CHUNK_LOGITS[setup.device] // shape.V)) * shape.V
    kept = 2 * N * shape.E * b + (FP32 * head if shape.trains_head else 0)
    cast = b if b < FP32 else 0  # fp32 needs no second copy
    gathered = (
        min(_met_again(shape), setup.max_live_parameters) * b if setup.stage == 3 and setup.ranks > 1 else 0
    )
    # gradients inside one layer's backward: of gate and up once their product is gone, and of the residual stream
    work = T * (2 * shape.I * b // setup.mlp_tiles + 2 * shape.E * FP32)
    phases = {
        "loss": {
            "activations": saved,
            # logits become fp32; then their gradient, of the dtype, is multiplied into a part of the head's, which becomes fp32
            "logits and head gradient": kept
            + max(chunk * (FP32 + cast), chunk * b + (head * (FP32 + cast) if shape.trains_head else 0)),
            "gathered parameters": gathered,
        },
        "backward of the head": {
            "activations": saved,
            "logits and head gradient": kept + (head * (FP32 + cast) if shape.trains_head else 0),
            "gathered parameters": gathered,
        },
        "backward of a layer": {"activations": saved + again + work, "gathered parameters": gathered},
        "optimizer step": {"update": _update(shape, setup)},
    }
    return Memory(states=states, phases=phases, host=host)


def _met_again(shape: Shape) -> int:
    """Parameters that backward needs again, which ZeRO-3 keeps gathered: not those below the lowest trained layer."""
    below = shape.L - shape.passed
    untied = shape.parameters - shape.L * shape.layer_parameters >= 2 * shape.V * shape.E
    return shape.parameters - below * shape.layer_parameters - (shape.V * shape.E if below and untied else 0)


def _checkpointed(shape: Shape, setup: Setup, entry: int, layer: int) -> tuple[int, int, int]:
    """Return bytes of the kept inputs of layers, of layers that are kept, and of what is computed again at a time."""
    how = setup.gradient_checkpointing
    passed = shape.passed  # below the lowest trained layer nothing is kept
    if how == "selective":  # attention and every second matrix product are kept: close to half of a layer
        return passed * entry, passed * layer // 2, layer // 2 if passed else 0
    every = int(how)
    again = min(passed, shape.L // every) if every else 0
    return again * entry, (passed - again) * layer, layer if again else 0


def _saved_per_token(shape: Shape, b: int, *, copies: int) -> tuple[int, int]:
    """Bytes that autograd keeps of one layer for one token, nothing recomputed: of attention and norms, of feed-forward."""
    norms = (
        2 * (FP32 + b) * shape.E + 2 * b * shape.E
    )  # fp32 input and scaled input of two norms, their outputs
    attention = b * ((1 + copies) * shape.A + 2 * shape.G) + FP32 * shape.H  # q, k, v, output, log-sum-exp
    return norms + attention, 4 * b * shape.I  # gate, its activation, up, their product


def _states(shape: Shape, setup: Setup) -> tuple[dict[str, int], int]:
    b, W, stage = BYTES[setup.dtype], setup.ranks, setup.stage
    trained = shape.trained
    weights = b * shape.parameters // (W if stage == 3 else 1)
    if setup.hpz > 1:
        weights += b * shape.parameters // setup.hpz
    gradients = FP32 * trained // (W if stage >= 2 else 1)
    # ZeRO keeps fp32 masters of fp32 weights too
    optimizer = (setup.state_bytes + (FP32 if stage else 0)) * trained // (W if stage else 1)
    host = 0
    if setup.offload_optimizer:
        host += 0 if setup.on_nvme else optimizer + gradients
        optimizer = gradients = 0
    if setup.offload_parameters:
        host += weights
        weights = 0
    copy = (
        b * shape.trained if stage in (1, 2) and setup.device == "cpu" else 0
    )  # loaded weights stay on the host
    bucket = setup.reduce_bucket_size * b if stage else 0
    states = {
        "weights": weights + copy,
        "gradients": gradients,
        "optimizer": optimizer,
        "reduce bucket": bucket,
    }
    return states, host


def _update(shape: Shape, setup: Setup) -> int:
    """Bytes on top of the states while the optimizer runs: gradients as one tensor, and on CPU AdamW's two temporaries."""
    if setup.offload_optimizer:
        return 0
    temporaries = 2 * FP32 if setup.device == "cpu" else 0
    if setup.stage == 3:
        largest = max(shape.V * shape.E, shape.E * shape.I)
        group = min(shape.trained // setup.ranks, setup.sub_group_size + largest // setup.ranks)
        return group * (FP32 + temporaries)
    if setup.stage:
        copy = FP32 if setup.dtype == "float32" else 0
        return shape.trained // setup.ranks * (copy + temporaries)
    return FP32 * shape.trained  # all gradients are reduced as one
