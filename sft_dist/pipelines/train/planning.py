"""Stores and config -> the plan of every epoch, and what it says in one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.batch.epoch_plan import EpochPlan, PlanCounts
from sft_dist.batch.planner import Planner
from sft_dist.batch.shared_plan import NodePlans
from sft_dist.config import RunConfig
from sft_dist.config.auto import asked, supposed
from sft_dist.core.errors import UserError
from sft_dist.mix import Corpus, Mixture
from sft_dist.mix.counts import UNITS
from sft_dist.model.config_json import text_config
from sft_dist.pack import CostModel
from sft_dist.pack.architecture import (
    EXPERTS,
    NAMES,
    dense_layers,
    dense_width,
    key_value_heads,
    latent_attention,
    mixers_of,
    mlp_matrices,
    shared_width,
    size_of,
)
from sft_dist.pipelines.config_warnings import config_warnings
from sft_dist.selection.files import Selected
from sft_dist.shards import Store

# Stands in for a model that is not at hand (a hub id on a login node): only the balance of rows depends on it.
DEFAULT_SHAPE = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


NAMED = 20  # held-out tasks that `check` lists


def open_corpus(stores: Mapping[str, Path], keys: Mapping[str, Mapping[str, Any]] | None = None) -> Corpus:
    """Open the stores, their keys checked."""
    return Corpus({name: Store.open(path, keys[name] if keys else None) for name, path in stores.items()})


def mixture_of(config: RunConfig, corpus: Corpus) -> Mixture:
    """Return how the config mixes the sources that have a store."""
    sources = {name: s for name, s in config.data.sources.items() if name in corpus.source_names}
    return Mixture(sources=sources, **config.mix.model_dump())


def cost_model(config: RunConfig, vocab_size: int) -> CostModel:
    """Return the FLOP model of the config's model, read from its config.json without transformers."""
    if shape := config.model.shape:
        return CostModel.of_shape(
            hidden_size=shape.hidden_size,
            layers=shape.layers,
            attention_size=shape.hidden_size,
            kv_size=shape.hidden_size // shape.heads * (shape.kv_heads or shape.heads),
            intermediate_size=shape.intermediate_size,
            vocab_size=vocab_size,
        )
    return cost_of(text_config(config.model) or DEFAULT_SHAPE)


def cost_of(shape: Mapping[str, Any]) -> CostModel:
    """Return the FLOP model for the fields of a Hugging Face config."""
    needed = ("hidden_size", "num_hidden_layers", "vocab_size")
    sizes = {name: size_of(shape, name) for name in NAMES}
    mixers = mixers_of(shape)
    if absent := [
        n for n in (*needed, *(("num_attention_heads",) if mixers.attending else ())) if not sizes[n]
    ]:
        raise UserError(
            f"the config of this {shape.get('model_type', 'unknown')} model has no {absent[0]}, so it is not a decoder that this "
            "trainer can pack; use a model of the Llama, Qwen, Mistral, Gemma or a similar family"
        )
    hidden, layers, vocabulary = (int(sizes[n] or 0) for n in needed)
    heads = sizes["num_attention_heads"] or 1
    head_dim = sizes["head_dim"] or hidden // heads
    experts = next((n for k in EXPERTS if (n := size_of(shape, k))), 0)
    inner = size_of(shape, "moe_intermediate_size") if experts else None
    return CostModel.of_shape(
        hidden_size=hidden,
        layers=layers,
        attention_size=heads * head_dim,
        kv_size=(key_value_heads(shape) or heads) * head_dim,
        intermediate_size=inner or dense_width(shape),
        vocab_size=vocabulary,
        active_experts=size_of(shape, "num_experts_per_tok") or 1 if experts else 1,
        experts=experts,
        shared_size=shared_width(shape) if experts else 0,
        mixers=mixers,
        mlp_matrices=mlp_matrices(shape),
        dense_layers=dense_layers(shape) if experts else 0,
        dense_size=dense_width(shape),
        latent=latent_attention(shape),
    )


def check_ranks(config: RunConfig, *, ranks: int | None = None, heads: int | None = None) -> None:
    """Refuse ranks (None: not known here) or query heads that cannot form the groups that the config asks for."""
    size, copies = config.train.sequence_parallel, config.deepspeed.hpz_partition_size
    if ranks is not None and ranks % copies:
        raise UserError(
            f"{_ranks(ranks)} cannot form groups of deepspeed.hpz_partition_size={copies}, so the second copy of the weights would be "
            "missing or wrong; use the ranks of a node, or 1"
        )
    if ranks is not None and ranks % size:
        raise UserError(
            f"{_ranks(ranks)} cannot form groups of train.sequence_parallel={size}, so some would have no rows; "
            f"use a multiple of {size} ranks (launch.nproc x nodes), or train.sequence_parallel=1"
        )
    if heads is None:
        shape = config.model.shape
        heads = shape.heads if shape else text_config(config.model).get("num_attention_heads")
    if heads is not None and heads % size:
        raise UserError(
            f"the model has {heads} attention heads, which {size} ranks (train.sequence_parallel) cannot share evenly; "
            f"use a divisor of {heads}"
        )


def _ranks(number: int) -> str:
    return "1 rank" if number == 1 else f"{number} ranks"


def make_planner(
    config: RunConfig, corpus: Corpus, *, world_size: int, cost: CostModel, shared: NodePlans | None = None
) -> Planner:
    """Return the planner of a config; `shared`: where the ranks of a node find what one of them planned."""
    pack, memory = config.pack, asked(supposed(config))
    return Planner(
        corpus,
        mixture=mixture_of(config, corpus),
        seq_len=pack.seq_len,
        too_long=pack.too_long,
        window=pack.window,
        packing=pack.packing,
        rows_per_step=config.train.tokens_per_step // pack.seq_len,
        micro_rows=memory["micro_rows"],
        world_size=world_size,
        balance_window=pack.balance_window,
        short_first_steps=pack.short_first_steps,
        seed=config.seed,
        cost=cost,
        shared=shared,
        micro_cost=cost.on_device(recomputed=bool(memory["gradient_checkpointing"])),
    )


def total_steps(config: RunConfig, planner: Planner, first: EpochPlan) -> int:
    """Return the optimizer steps of the whole run; draws differ a little from epoch to epoch, so each is planned."""
    epochs, limit = config.train.epochs, config.train.max_steps
    steps = steps_of(epochs, 0, first.n_steps)
    for epoch in range(1, math.ceil(epochs)):
        if limit is not None and steps >= limit:
            break
        steps += steps_of(epochs, epoch, planner.epoch(epoch).n_steps)
    return steps if limit is None else min(steps, limit)


def steps_of(epochs: float, epoch: int, n_steps: int) -> int:
    """Return how many of the `n_steps` of an epoch (zero-based) are taken, when there are so many epochs: at least one."""
    return max(1, round(min(1.0, epochs - epoch) * n_steps))


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """The line that `check` ends in: figures of one epoch, steps of the run. Not `exact`: lengths are those of a sample."""

    examples: int
    tokens: int
    target_tokens: int
    fill: float
    steps: int
    drops: dict[str, int]
    squares_per_token: (
        float  # sum of squared document lengths over tokens, in the first rows: what attention costs
    )
    truncated: int = 0  # documents that are cut to a row
    exact: bool = True
    warnings: tuple[str, ...] = ()
    passes: Mapping[str, float] = field(default_factory=dict)  # over each source, in the first epoch
    unit: str = "examples"  # what `shares` are of
    shares: Mapping[str, float] = field(default_factory=dict)  # of each source in the first epoch
    held_out: Mapping[str, str | None] = field(
        default_factory=dict
    )  # task -> why it is near; None: it is far

    def set_lines(self) -> tuple[str, ...]:
        """Return, in words, the passes over each source, its share, and the tasks that are never trained on."""
        passes = ", ".join(f"{name} {n:.3g}" for name, n in self.passes.items())
        shares = ", ".join(f"{name} {n:.1%}" for name, n in self.shares.items())
        lines = [f"passes an epoch: {passes}"]
        if len(self.shares) > 1:
            lines.append(f"shares of an epoch's {UNITS[self.unit]}: {shares}")
        for kind, tasks in (
            ("near", [t for t, why in self.held_out.items() if why]),
            ("far", [t for t, why in self.held_out.items() if not why]),
        ):
            if tasks:
                more = f" and {len(tasks) - NAMED:,} more" if len(tasks) > NAMED else ""
                lines.append(f"held out, {kind} ({len(tasks):,}): {', '.join(tasks[:NAMED])}{more}")
        return tuple(lines)

    def line(self) -> str:
        """Return the figures in words."""
        about = "" if self.exact else "about "
        drops = (
            ", ".join(f"{reason} {n:,}" for reason, n in sorted(self.drops.items(), key=lambda d: -d[1]))
            or "none"
        )
        return (
            f"{about}{self.examples:,} examples, {self.tokens:,} tokens, {self.target_tokens:,} supervised "
            f"({self.target_tokens / max(1, self.tokens):.0%}), fill {self.fill:.1%}, {self.steps:,} steps; drops: {drops}"
            + (f"; cut to a row: {self.truncated:,}" if self.truncated else "")
        )


def summarise(
    config: RunConfig,
    planner: Planner,
    selected: Selected,
    rendered: Mapping[str, Counter[str]],
    *,
    exact: bool = True,
    ranks: int = 1,
) -> Summary:
    """Return what training would consist of.

    Args:
        config: The run's config.
        planner: Plans its epochs.
        selected: What became of every record.
        rendered: Drops while rendering, by source and reason.
        exact: False when the lengths are those of a sample.
        ranks: Of the whole run, for the warnings.
    """
    first = planner.epoch(0)
    counts = first.counts
    lengths = np.concatenate([r.lengths for step in range(min(16, first.n_steps)) for r in first.rows(step)])
    drops: Counter[str] = Counter(counts.dropped)
    for name, selection in selected.sources.items():
        drops.update(selection.dropped)
        drops["unreadable"] += selection.unreadable
        drops.update(rendered.get(name, {}))
    steps = total_steps(config, planner, first)
    return Summary(
        examples=counts.examples,
        tokens=counts.tokens,
        target_tokens=counts.target_tokens,
        fill=counts.fill,
        steps=steps,
        drops={r: n for r, n in drops.items() if n},
        truncated=counts.truncated,
        squares_per_token=float((lengths.astype(np.float64) ** 2).sum() / max(1, lengths.sum())),
        exact=exact,
        warnings=(
            *selected.holdout.notes,
            *_cut_documents(config, counts),
            *config_warnings(config, ranks=ranks, steps=steps),
        ),
        passes=first.passes(),
        unit=config.mix.unit,
        shares=first.shares(config.mix.unit),
        held_out={task: selected.holdout.near.get(task) for task in sorted(selected.holdout.heldout_inputs)},
    )


def _cut_documents(config: RunConfig, counts: PlanCounts) -> tuple[str, ...]:
    """Say how many documents do not fit into a row, and what becomes of them."""
    kinds = ("too_long", "answer_exceeds_row", "prompt_exceeds_row")
    dropped = sum(counts.dropped.get(kind, 0) for kind in kinds)
    if not counts.truncated + dropped:
        return ()
    lose = {"truncate_prompt": "the beginning of their prompt", "truncate_answer": "their end"}
    said = [
        *([f"{dropped:,} are dropped"] if dropped else []),
        *([f"{counts.truncated:,} lose {lose[config.pack.too_long]}"] if counts.truncated else []),
    ]
    total = counts.truncated + dropped
    return (
        (
            f"{total:,} of {counts.drawn:,} documents are longer than pack.seq_len={config.pack.seq_len}: {' and '.join(said)} "
            f"(pack.too_long={config.pack.too_long}); raise pack.seq_len to train them whole"
        ),
    )


def plan_facts(
    config: RunConfig,
    first: EpochPlan,
    corpus: Corpus,
    steps: int,
    world_size: int,
    parameters: int,
    read: Mapping[str, Any],
) -> dict[str, Any]:
    """Return plan.json: what the run trains on, for the report."""
    counts = first.counts
    tasks = {
        t.task: {
            "examples": t.examples_before,
            "tokens": t.tokens_before,
            "drawn_examples": t.examples_after,
            "drawn_tokens": t.tokens_after,
            "drawn_target_tokens": t.target_tokens_after,
            "source": ", ".join(
                n for k, n in enumerate(corpus.source_names) if t.task in corpus.stores[k].task_names
            ),
        }
        for t in first.task_table()
    }
    sources = {
        name: {
            "kind": config.data.sources[name].kind,
            "examples": len(store),
            "tokens": store.n_tokens,
            "target_tokens": store.n_target_tokens,
            **read.get(name, {}),
        }
        for name, store in zip(corpus.source_names, corpus.stores, strict=True)
    }
    return {
        "examples": counts.examples,
        "tokens": counts.tokens,
        "target_tokens": counts.target_tokens,
        "rows": counts.rows,
        "fill": counts.fill,
        "steps": steps,
        "epochs": config.train.epochs,
        "seq_len": config.pack.seq_len,
        "tokens_per_step": config.train.tokens_per_step,
        "world_size": world_size,
        "parameters": parameters,
        "truncated": counts.truncated,
        "duplicates": counts.duplicates,
        "drops": dict(counts.dropped),
        "sources": sources,
        "tasks": tasks,
    }
