"""What a model's config says that packed training cannot do rightly: refused here, before any weight is read."""

from __future__ import annotations

from typing import Any

from sft_dist.core.errors import UserError

# Kinds of layers that configs name. Those with attention alone, or that look at one token at a time; those that begin anew at every
# document because model/recurrent.py sees to it; those that no backend replaces, whose own code sees one document at a time.
KNOWN_LAYERS = {
    "full_attention", "sliding_attention", "chunked_attention", "moe", "mlp", "dense", "sparse", "attention", "global", "local",
    "linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "hybrid_sliding", "ssm", "hash_moe", "mamba_attention",
    "indexed_attention", "sparse_attention", "compressed_sparse_attention", "heavily_compressed_attention", "deepseek_sparse_attention",
    "minimax_m3_sparse",
}  # fmt: skip

DEQUANTISE = {"fp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}


def check_supported(config: Any, path: str) -> None:
    """Refuse a model that cannot be trained packed.

    Args:
        config: Its transformers config.
        path: The folder or hub id, for the message.

    Raises:
        UserError: For unknown kinds of layers, attention that looks ahead, quantised weights.
    """
    text = config.get_text_config()
    name = text.model_type
    layers = set(getattr(text, "layer_types", None) or getattr(text, "block_types", None) or ())
    if other := sorted(layers - KNOWN_LAYERS):
        raise UserError(
            f"{name} has {', '.join(other)} layers, which nobody has proved exact in packed rows here, so it is refused; "
            "use a family that docs/models.md lists"
        )
    if getattr(text, "is_causal", True) is False or getattr(text, "use_bidirectional_attention", None) in (
        True,
        "all",
    ):
        raise UserError(
            f"{name} attends to later tokens, so it would read the answers that it is trained on; use a causal model"
        )
    if quantisation := getattr(config, "quantization_config", None):
        raise UserError(_quantised(quantisation, path))


def _quantised(quantisation: Any, path: str) -> str:
    as_dict = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    method = str(getattr(as_dict.get("quant_method"), "value", as_dict.get("quant_method")))
    cause = f"{path} holds weights quantised by {method}, which have no gradient; "
    if method in DEQUANTISE:
        kind = DEQUANTISE[method]
        return cause + (
            f'write a bfloat16 copy once: python -c "from transformers import AutoModelForCausalLM, {kind}; '
            f"AutoModelForCausalLM.from_pretrained('{path}', quantization_config={kind}(dequantize=True), dtype='bfloat16')"
            f".save_pretrained('bf16')\", then set model.path=bf16 and model.tokenizer={path}"
        )
    return (
        cause
        + "set model.path to the original that was quantised (lora.quantize_base=nf4 quantises it on the fly)"
    )


def rows_for(base: int, tokens: int, multiple: int | None, path: str) -> int:
    """Return how many embedding rows to train with.

    Args:
        base: Rows of the base model.
        tokens: Largest token id of the tokenizer plus one.
        multiple: `model.vocab_multiple`.
        path: The model, for the message.

    Raises:
        UserError: When the tokenizer has more tokens than the model and no rows may be added.
    """
    if multiple is not None:
        return -(-max(base, tokens) // multiple) * multiple
    if tokens > base:
        raise UserError(
            f"the tokenizer has ids up to {tokens - 1}, the model {path} embeds {base} tokens; training would read beyond the "
            "embedding. Use the tokenizer that belongs to the model (model.tokenizer=null), or add rows with model.vocab_multiple=64"
        )
    return base
