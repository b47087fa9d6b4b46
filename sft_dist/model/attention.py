"""Which way a model attends over packed documents: the fastest of model/backends.py that is present and right for each layer.

In: what the layers of a model ask for, and `model.attention`. Out: the name of an attention function that transformers calls in
place of its own. transformers builds no mask for such a name, and the documents arrive as `cu_seq_lens_q`.

The choice is made again for each kind of layer, from the tensors of its call: heads, windows, sinks and caps differ inside
one model. A keyword that nothing here knows is an error.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sft_dist.core.errors import UserError
from sft_dist.model.backends import BACKENDS, Needs
from sft_dist.model.ulysses import SequenceGroup, across

ALONE = "own_per_doc"  # the class's own attention code, called once for each document (model/recurrent.py)

# What models hand to attention that changes nothing here: borders come as cu_seq_lens_q, positions are in the queries and keys
# already, dropout inside attention is not applied (docs/models.md).
WITHOUT_EFFECT = {
    "cu_seq_lens_k", "max_length_k", "position_ids", "position_embeddings", "use_cache", "dropout", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "logits_to_keep", "num_items_in_batch", "cache",
    "cache_position", "seq_idx", "layer_idx", "is_causal", "deterministic", "use_top_left_mask", "target_dtype",
}  # fmt: skip
OPTIONS = {"scaling", "cu_seq_lens_q", "max_length_q", "sliding_window", "softcap", "s_aux"}


def registered_name(backend: str, sequence_ranks: int = 1) -> str:
    """Return the `attn_implementation` of a backend or of auto, over rows that this many ranks share."""
    if backend == ALONE:
        return "eager"
    # transformers reads meaning into names: one with "sdpa" or "flash" in it is refused where a model has no code of its
    # own for that (Gemma 2, gpt-oss), though ours is what runs
    name = backend.removeprefix("sdpa_").replace("flash", "fa")
    return f"sft_dist_{name}" + (f"_over_{sequence_ranks}" if sequence_ranks > 1 else "")


def register(sequence: SequenceGroup | None = None) -> None:
    """Make every backend, and auto, known to transformers, over the rows that a group of ranks shares. Idempotent."""
    from transformers import AttentionInterface

    for name in ("auto", *BACKENDS):
        attend = functools.partial(_attend, name)
        if sequence is None or sequence.size == 1:
            AttentionInterface.register(registered_name(name), attend)
        else:
            AttentionInterface.register(registered_name(name, sequence.size), across(attend, sequence))


def _attend(
    backend: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attend by the backend that is right for this call.

    Raises:
        UserError: For a keyword that is unknown here, or that the named backend cannot honour.
    """
    options = {n: x for n, x in given.items() if n in OPTIONS and x is not None}
    unknown = {n for n, x in given.items() if x is not None} - OPTIONS - WITHOUT_EFFECT
    if unknown or given.get("is_causal") is False:
        what = ", ".join(sorted(unknown)) or "is_causal=False"
        raise UserError(
            f"{type(module).__name__} asks attention for {what}, which no backend here computes, so it would be trained wrongly; use "
            "another family"
        )
    if "sliding_window" not in given and (window := _window(module)):
        options["sliding_window"] = window
    chunk = _chunk(module)
    if chunk and options.get("cu_seq_lens_q") is not None:
        options["cu_seq_lens_q"] = chunk_borders(options["cu_seq_lens_q"], chunk)
        options["max_length_q"] = min(chunk, options.get("max_length_q") or chunk)
    name = _of_call(
        backend,
        query.size(-1),
        query.dtype,
        query.device.type,
        "sliding_window" in options,
        "softcap" in options,
        "s_aux" in options,
        value.size(-1),
    )
    return BACKENDS[name].attend(module, query, key, value, attention_mask, **options)


@torch.compiler.assume_constant_result  # type: ignore[misc]
@functools.cache
def _of_call(backend: str, *needs: Any) -> str:
    return choose_backend(backend, [Needs(*needs)])[0]


def _window(module: Any) -> int | None:
    """Return the window of a layer that tells it to the mask alone, which is not built here."""
    if type(module).__name__ == "PhimoeAttention":
        return module.config.sliding_window  # type: ignore[no-any-return]
    return getattr(module, "sliding_window", None)


def _chunk(module: Any) -> int | None:
    """Return the tokens of a chunk where a layer attends inside fixed chunks of a document (Llama 4)."""
    config = getattr(module, "config", None)
    size = getattr(config, "attention_chunk_size", None)
    if not size:
        return None
    return int(size) if config.layer_types[module.layer_idx] == "chunked_attention" else None  # type: ignore[union-attr]


_borders: dict[str, Any] = {}


def chunk_borders(cu_S1: Tensor, chunk: int) -> Tensor:
    """Return borders of documents with those of the chunks inside each; made once for each row."""
    if _borders.get("of") is not cu_S1 or _borders["chunk"] != chunk:
        begins = cu_S1.tolist()
        every = [t for a, b in itertools.pairwise(begins) for t in range(a, b, chunk)]
        cut = torch.tensor([*every, begins[-1]], dtype=cu_S1.dtype, device=cu_S1.device)
        _borders.update(of=cu_S1, chunk=chunk, cut=cut)
    return _borders["cut"]


def choose_backend(backend: str, kinds: Iterable[Needs]) -> tuple[str, str]:
    """Return the backends of the kinds of layers that a model has, joined by a plus sign, and the reason.

    Args:
        backend: A name of `BACKENDS`, or auto: the fastest that is present and right for each kind.
        kinds: What each kind asks for.

    Raises:
        UserError: When the named backend is absent or wrong for the model.
    """
    names: dict[str, str] = {}
    for needs in kinds:
        if backend != "auto":
            if reason := BACKENDS[backend].unfit(needs):
                raise UserError(
                    f"model.attention={backend} cannot run here: {reason}; documents would not be attended rightly, "
                    "so nothing was started. Use model.attention=auto"
                )
            names[backend] = "as configured"
            continue
        skipped = {n: b.unfit(needs) for n, b in BACKENDS.items() if b.auto}
        name = next((n for n, reason in skipped.items() if not reason), None)
        if name is None:
            raise UserError(f"no attention backend is right for this model: {skipped}")
        before = list(skipped)[: list(skipped).index(name)]
        names[name] = "; ".join(f"{n}: {skipped[n]}" for n in before) or "the fastest backend for this device"
    return "+".join(names), "; ".join(dict.fromkeys(names.values()))
