"""config.json of a decoder -> its sizes under one name each, and which of its layers attend, keep a state, or do neither.

Families give one thing many names, and a hybrid has layers of several kinds: only those that attend cost the square of a
document's length. No torch. What a family does beyond this (shared layers, indexers) counts as plain layers.

Letters: E width, K and V widths of keys and values of a recurrence, S size of its state, C tokens that it computes at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# size -> the names that families give it, beside its own; one entry adds one
NAMES: dict[str, tuple[str, ...]] = {
    "hidden_size": ("n_embd", "d_model"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab_size": (),
    "head_dim": (),
    "num_key_value_heads": ("num_kv_heads",),
    "num_experts_per_tok": ("num_experts_per_token",),
    "n_shared_experts": ("num_shared_experts",),
}
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# families whose feed-forward part has no gate: two matrices in the place of three
WITHOUT_GATE = {
    "arcee", "bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron", "nemotron_h", "opt",
    "phi", "starcoder2",
}  # fmt: skip
WITHOUT_ATTENTION = {"mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"}
BOTH = {"falcon_h1"}  # every layer attends and keeps a state
CHUNK = 64  # tokens that gated delta nets compute at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixers:
    """What the layers of a decoder mix tokens with.

    Attributes:
        attending: Layers that attend.
        keeping: Layers that keep a state.
        feeding: Layers with a feed-forward part.
        state_weights: Elements of the matrices of one layer that keeps a state.
        state_flops: FLOPs of a token in its recurrence, forward.
    """

    attending: int
    keeping: int
    feeding: int
    state_weights: int = 0
    state_flops: float = 0.0


def size_of(config: Mapping[str, Any], name: str) -> int | None:
    """Return a size by its name here, whatever the config calls it; of several, one a layer, the largest."""
    for key in (name, *NAMES.get(name, ())):
        value = config.get(key)
        if isinstance(value, (list, tuple)) and value:
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    if name == "num_hidden_layers":  # of a config that lists them only
        return len(_listed(config)) or None
    return None


def key_value_heads(config: Mapping[str, Any]) -> int | None:
    """Return the heads of keys and values; None: as many as of queries."""
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        return 1
    return size_of(config, "num_key_value_heads")


def latent_attention(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return elements of the matrices of a layer of latent attention, and widths of queries and values together; None: another kind."""
    rank, turned = size_of(config, "kv_lora_rank"), size_of(config, "qk_rope_head_dim")
    if not rank or not turned:
        return None
    E, H = size_of(config, "hidden_size") or 0, size_of(config, "num_attention_heads") or 1
    plain = size_of(config, "qk_nope_head_dim") or 0
    value = size_of(config, "v_head_dim") or plain
    queries = H * (plain + turned)
    low = size_of(config, "q_lora_rank")
    weights = (E * low + low * queries) if low else E * queries
    weights += E * (rank + turned) + rank * H * (plain + value) + H * value * E
    return weights, queries + H * value


def dense_width(config: Mapping[str, Any]) -> int:
    """Return the width of a feed-forward part that is no expert."""
    width = size_of(config, "intermediate_size") or 4 * (size_of(config, "hidden_size") or 0)
    if config.get("model_type") == "recurrent_gemma":  # its config counts both halves
        return width // 2
    if config.get("block_auto_adjust_ff_dim") and config.get("model_type") in ("lfm2", "lfm2_vl"):
        multiple = int(config.get("block_multiple_of") or 1)
        width = int(float(config.get("block_ffn_dim_multiplier") or 1.0) * int(2 * width / 3))
        return -(-width // multiple) * multiple
    return width


def mlp_matrices(config: Mapping[str, Any]) -> int:
    """Return how many matrices a feed-forward part has."""
    return 2 if config.get("model_type") in WITHOUT_GATE else 3


def dense_layers(config: Mapping[str, Any]) -> int:
    """Return how many feed-forward layers of a mixture of experts have no experts."""
    L = size_of(config, "num_hidden_layers") or 0
    if isinstance(kinds := config.get("mlp_layer_types"), (list, tuple)):
        return kinds.count("dense")
    if alone := _kinds(config, L).count("mlp"):
        return alone
    if every := config.get("expert_layer_period"):
        return sum(i % every != (config.get("expert_layer_offset") or 0) for i in range(L))
    only, step = config.get("mlp_only_layers") or (), config.get("decoder_sparse_step") or 1
    if only or step > 1:
        return sum(i in only or (i + 1) % step != 0 for i in range(L))
    for name in ("first_k_dense_replace", "num_dense_layers"):
        if isinstance(first := config.get(name), int):
            return min(first, L)
    return 0


def shared_width(config: Mapping[str, Any]) -> int:
    """Return the feed-forward width that every token passes beside its experts."""
    for name in (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
    ):
        if width := size_of(config, name):
            return width
    return (size_of(config, "n_shared_experts") or 0) * (size_of(config, "moe_intermediate_size") or 0)


def mixers_of(config: Mapping[str, Any]) -> Mixers:
    """Return what the layers of a decoder's config.json (its text part) mix tokens with."""
    L = size_of(config, "num_hidden_layers") or 0
    family = str(config.get("model_type", ""))
    kinds = _kinds(config, L)
    attending = sum("attention" in k and k != "linear_attention" for k in kinds) + kinds.count("hybrid")
    keeping = sum(k in ("linear_attention", "conv", "mamba", "recurrent", "short_conv") for k in kinds)
    if family.startswith("zamba"):  # every layer keeps a state, some attend as well
        keeping = len(kinds)
    if family in WITHOUT_ATTENTION:
        attending, keeping = 0, L
    elif family in BOTH:
        attending = keeping = L
    alone = sum(k in ("moe", "mlp") for k in kinds)  # layers that are nothing but a feed-forward part
    feeding = alone or (0 if family in WITHOUT_ATTENTION else L)
    weights, flops = _state(config) if keeping else (0, 0.0)
    return Mixers(
        attending=attending, keeping=keeping, feeding=feeding, state_weights=weights, state_flops=flops
    )


def _listed(config: Mapping[str, Any]) -> list[str]:
    """Return the kind of each layer where the config has a list or a pattern of them; else nothing."""
    listed = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(listed, (list, tuple)) and listed:
        return [str(k) for k in listed]
    if isinstance(pattern := config.get("hybrid_override_pattern"), str):
        return [{"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}.get(c, "attention") for c in pattern]
    return []


def _kinds(config: Mapping[str, Any], L: int) -> list[str]:
    """Return the kind of each layer, as the config says it: by a list, a pattern, or a period."""
    if listed := _listed(config):
        return listed
    if isinstance(blocks := config.get("block_types"), (list, tuple)) and blocks:  # repeated over the layers
        return [str(blocks[i % len(blocks)]) for i in range(L)]
    if isinstance(where := config.get("attn_layer_indices"), (list, tuple)):
        return ["attention" if i in where else "mamba" for i in range(L)]
    if every := config.get("attn_layer_period"):
        at = config.get("attn_layer_offset") or 0
        return ["attention" if i % every == at else "mamba" for i in range(L)]
    if every := config.get("full_attention_interval"):
        return ["linear_attention" if (i + 1) % every else "full_attention" for i in range(L)]
    return ["attention"] * L


def _state(config: Mapping[str, Any]) -> tuple[int, float]:
    """Return elements of the matrices of a layer with state, and FLOPs of a token in its recurrence."""
    E = size_of(config, "hidden_size") or 0

    def first(*names: str) -> int:
        values = (config.get(n) for n in names)
        return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), 0)

    kernel = first("linear_conv_kernel_dim", "mamba_d_conv", "conv_kernel", "conv_L_cache", "conv1d_width")
    if heads := first("linear_num_value_heads", "linear_num_heads"):  # gated delta net, Kimi delta attention
        d_k, d_v = (
            first("linear_key_head_dim", "linear_head_dim"),
            first("linear_value_head_dim", "linear_head_dim"),
        )
        K, V = (first("linear_num_key_heads") or heads) * d_k, heads * d_v
        weights = E * (2 * K + 2 * V + 2 * heads) + V * E + kernel * (2 * K + V)
        # inside a chunk: keys by keys, queries by keys, and three products with the triangle; across: three with the state
        return weights, heads * (2.0 * CHUNK * (3 * d_k + 2 * d_v) + 6.0 * d_k * d_v)
    S = first("mamba_d_state", "ssm_state_size", "state_size")
    heads = first("mamba_n_heads", "mamba_num_heads", "n_mamba_heads") or (
        first("num_heads") if config.get("model_type") == "mamba2" else 0
    )
    inner = first("mamba_d_ssm") or E * (first("mamba_expand", "expand") or 2)
    if heads and S:  # Mamba-2
        size = first("mamba_d_head", "mamba_head_dim") or inner // heads
        inner, groups = heads * size, first("mamba_n_groups", "mamba_ngroups", "n_groups") or 1
        C = first("mamba_chunk_size", "chunk_size") or 256
        weights = E * (2 * inner + 2 * groups * S + heads) + inner * E + kernel * (inner + 2 * groups * S)
        return weights, heads * (2.0 * C * (S + size) + 4.0 * S * size)
    if S:  # Mamba
        rank = first("mamba_dt_rank", "time_step_rank") or -(-E // 16)
        weights = E * 2 * inner + inner * (rank + 2 * S) + rank * inner + inner * E + kernel * inner
        return weights, 6.0 * inner * S
    if config.get("conv_L_cache"):  # short convolution
        return 4 * E * E + kernel * E, 0.0
    width = first("lru_width") or E
    return 4 * E * width, 0.0
