"""Hand-made documents with heavy-tailed lengths, packed as training packs them: what numeric tests train on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sft_dist.core.records import Batch

VOCAB = 128
SEED = 7


def documents(step: int) -> list[list[int]]:
    """The documents of global batch `step`: lengths from 2 to 60, as heavy-tailed as real ones."""
    rng = np.random.default_rng([SEED, step])
    lengths = np.minimum(60, 2 + rng.pareto(1.0, 16) * 4).astype(int)
    return [rng.integers(1, VOCAB, n).tolist() for n in lengths]


def weights_of(doc: list[int]) -> list[float]:
    """Loss weight of each token: a third of the document is prompt, later tokens weigh 1 or, one in five, 0.5."""
    prompt = max(1, len(doc) // 3)
    return [0.0 if i < prompt else (0.5 if i % 5 == 0 else 1.0) for i in range(len(doc))]


def pack(docs: list[list[int]], ids: list[int]) -> Batch:
    """Lay documents end to end as collate does."""
    tokens = [t for d in docs for t in d]
    position = [i for d in docs for i in range(len(d))]
    cu = np.cumsum([0, *map(len, docs)]).astype(np.int32)
    weight = [w for d in docs for w in weights_of(d)]
    target = [i for i, w in enumerate(weight) if w > 0]
    if not docs:
        tokens, position, cu = [0, 0], [0, 1], np.array([0, 2], np.int32)
    doc_of = [k for k, d in zip(ids, docs, strict=True) for _ in d]
    return Batch(
        input_ids=np.array(tokens, np.int64),
        position_ids=np.array(position, np.int64),
        cu_seqlens=cu,
        max_seqlen=int(np.diff(cu).max()),
        target_positions=np.array(target, np.int64) - 1,
        target_ids=np.array([tokens[i] for i in target], np.int64),
        target_weights=np.array([weight[i] for i in target], np.float32),
        target_tasks=np.array([doc_of[i] % 2 for i in target], np.int64),
        doc_ids=tuple(f"doc{k}" for k in ids) or ("empty",),
        doc_cost_tokens=sum(len(d) ** 2 for d in docs),
        padding=0 if docs else 2,
    )


def prompt() -> Batch:
    """A document that carries no loss."""
    batch, none = pack([documents(99)[0]], [99]), slice(0, 0)
    names = ("target_positions", "target_ids", "target_weights", "target_tasks")
    return replace(batch, **{n: getattr(batch, n)[none] for n in names})


def deal(step: int, world: int, micro_steps: int, variant: str = "") -> list[list[Batch]]:
    """The micro-batches [micro-step][rank] of a global batch: the same documents whatever world and micro_steps are.

    Variants: short, in the last micro-step all ranks but the first are idle; prompts, one micro-step more, in which
    no rank has a target and the last one no document.
    """
    docs = documents(step)
    parts = [list(range(i, len(docs), world * micro_steps)) for i in range(world * micro_steps)]
    if variant == "short":
        for r in range(1, world):
            parts[0] += parts[-r]
            parts[-r] = []
    dealt = [
        [pack([docs[k] for k in parts[m * world + r]], parts[m * world + r]) for r in range(world)]
        for m in range(micro_steps)
    ]
    return dealt + ([[prompt()] * (world - 1) + [pack([], [])]] if variant == "prompts" else [])
