"""What of a model is trained, counted from its config.json alone: the torch-free twin of model/trainable.py.

Parameters carry the names that transformers gives them in the Llama, Qwen, Mistral and Gemma families, by which
`model.trainable` and `model.freeze` choose.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from sft_dist.cluster.estimate.memory import Shape
from sft_dist.config.model import targets

EMBEDDINGS, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
LAYERS = re.compile(r"layers\[(-?\d*):(-?\d*)\]")  # as in model/trainable.py


def sizes(shape: Shape, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the elements of every parameter by name; a tied output projection has none of its own."""
    layer = _layer(shape, config)
    out = {EMBEDDINGS: shape.V * shape.E}
    out |= {f"model.layers.{i}.{name}": size for i in range(shape.L) for name, size in layer.items()}
    out[NORM] = shape.E
    if not config.get("tie_word_embeddings", True):
        out[HEAD] = shape.V * shape.E
    return out


def partly(
    shape: Shape, config: Mapping[str, Any], trainable: Sequence[str], freeze: Sequence[str]
) -> tuple[Shape, list[str]]:
    """Return the shape with only the chosen parameters trained, and the entries that match no name that is known here.

    An unknown entry of `trainable` counts as everything, one of `freeze` as nothing: the estimate is then too high.
    """
    known = sizes(shape, config)
    found = {entry: set(_matching(known, entry, shape.L)) for entry in (*trainable, *freeze)}
    unknown = [entry for entry, names in found.items() if not names]
    chosen = set(known)
    if trainable and not set(trainable) & set(unknown):
        chosen = set().union(*(found[e] for e in trainable))
    chosen -= set().union(*(found[e] for e in freeze))
    numbers = [int(n.split(".")[2]) for n in chosen if n.startswith("model.layers.")]
    lowest = 0 if EMBEDDINGS in chosen else min(numbers, default=shape.L)
    matrices = {n: size for n, size in known.items() if n.startswith("model.layers.") and size > shape.E}
    trained = replace(
        shape,
        # of what the model has, which the sizes may not tell all of
        trained=shape.parameters * sum(known[n] for n in chosen) // sum(known.values()),
        trains_head=(HEAD if HEAD in known else EMBEDDINGS) in chosen,
        passed=shape.L - lowest,
        trained_share=sum(s for n, s in matrices.items() if n in chosen) / max(1, sum(matrices.values())),
    )
    return trained, unknown


def adapted(
    shape: Shape,
    config: Mapping[str, Any],
    *,
    rank: int,
    target_modules: Sequence[str],
    modules_to_save: Sequence[str],
    dora: bool,
    target_parameters: Sequence[str] = (),
) -> Shape:
    """Return the shape with low-rank adapters on a frozen base, and whole copies of `modules_to_save` beside theirs.

    Embedding and output projection that are one matrix are trained in place, without a copy.
    """
    sides = {  # inputs and outputs of every Linear of a layer
        "q_proj": (shape.E, shape.A),
        "k_proj": (shape.E, shape.G),
        "v_proj": (shape.E, shape.G),
        "o_proj": (shape.A, shape.E),
        "gate_proj": (shape.E, shape.I),
        "up_proj": (shape.E, shape.I),
        "down_proj": (shape.I, shape.E),
    }
    layer = [n.removesuffix(".weight") for n in _layer(shape, config) if n.endswith(".weight")]
    layer = [n for n in layer if n.rpartition(".")[2] in sides]
    names = [f"layers.{i}.{n}" for i in range(shape.L) for n in layer]
    chosen = {found for entry in target_modules for found in targets(entry, names)}
    wanted = [sides[n.split(".")[-1]] for n in names if not target_modules or {n, n.split(".")[-1]} & chosen]
    added = sum(rank * (a + b) + (b if dora else 0) for a, b in wanted)
    stacked = {"gate_up_proj": (shape.E, 2 * shape.inner), "down_proj": (shape.inner, shape.E)}
    for name, (a, b) in stacked.items() if shape.experts else ():
        if any(f".mlp.experts.{name}".endswith(f".{entry}") for entry in target_parameters):
            added += shape.L * shape.experts * rank * (a + b)
    saved = {
        name: size
        for name, size in sizes(shape, config).items()
        if any(f".{module}." in f".{name}" for module in modules_to_save)
    }
    shared = 0
    if config.get("tie_word_embeddings", True) and {"embed_tokens", "lm_head"} & set(modules_to_save):
        shared = shape.V * shape.E
        saved = {name: size for name, size in saved.items() if name not in (EMBEDDINGS, HEAD)}
    added += sum(saved.values())
    return replace(
        shape,
        parameters=shape.parameters + added,
        trained=added + shared,
        trains_head=HEAD in saved or shared > 0,
        trained_share=0.0,
    )


def _layer(shape: Shape, config: Mapping[str, Any]) -> dict[str, int]:
    E, A, G = shape.E, shape.A, shape.G
    family = str(config.get("model_type", ""))
    out = {f"self_attn.{n}_proj.weight": E * side for n, side in (("q", A), ("k", G), ("v", G), ("o", A))}
    if config.get("attention_bias") or family.startswith("qwen2"):
        out |= {f"self_attn.{n}_proj.bias": side for n, side in (("q", A), ("k", G), ("v", G))}
    if family.startswith("qwen3"):
        out |= {f"self_attn.{n}_norm.weight": A // shape.H for n in ("q", "k")}
    if shape.experts:
        out |= {
            "mlp.gate.weight": E * shape.experts,
            "mlp.experts.gate_up_proj": 2 * E * shape.inner * shape.experts,
            "mlp.experts.down_proj": E * shape.inner * shape.experts,
        }
    else:
        out |= {f"mlp.{n}_proj.weight": E * shape.inner for n in ("gate", "up", "down")}
    return out | {"input_layernorm.weight": E, "post_attention_layernorm.weight": E}


def _matching(known: Mapping[str, int], entry: str, layers: int) -> Iterator[str]:
    if entry in ("embeddings", "head"):
        yield HEAD if entry == "head" and HEAD in known else EMBEDDINGS
    elif bounds := LAYERS.fullmatch(entry):
        start, stop = (int(x) if x else None for x in bounds.groups())
        inside = set(range(layers)[start:stop])
        yield from (n for n in known if n.startswith("model.layers.") and int(n.split(".")[2]) in inside)
    else:
        yield from (n for n in known if fnmatchcase(n, entry) or fnmatchcase(n, f"{entry}.*"))
