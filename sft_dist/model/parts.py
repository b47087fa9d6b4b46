"""Where the parts of a causal language model lie, whatever its family calls them, and what it does to its logits."""

from __future__ import annotations

from typing import Any

# names that families give one thing in their configs; one entry adds one
SOFTCAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
FACTORS = ("logit_scale", "lm_head_multiplier")  # multiply the logits
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")


def decoder_of(hf: Any) -> Any:
    """Return the stack of layers with its embedding: token ids in, last hidden states out."""
    found = hf.get_decoder()
    return found if found is not hf else hf.model  # Llama 4 takes itself for its decoder


def logit_softcap(text: Any) -> float | None:
    """Return the bound that a hyperbolic tangent puts on the logits, or None."""
    return next((float(x) for n in SOFTCAPS if (x := getattr(text, n, None))), None)


def logit_scale(text: Any) -> float:
    """Return the factor on the logits (Cohere and Falcon-H1 multiply, Granite and Inkling divide)."""
    scale = 1.0
    for name in FACTORS:
        scale *= getattr(text, name, None) or 1.0
    for name in DIVISORS:
        scale /= getattr(text, name, None) or 1.0
    return scale


def logit_rows(text: Any) -> int | None:
    """Return how many rows of the output projection are tokens, where the rest is padding that the softmax leaves out."""
    rows = getattr(text, "unpadded_vocab_size", None)
    return int(rows) if rows and rows < text.vocab_size else None
