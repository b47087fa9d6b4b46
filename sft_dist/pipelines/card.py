"""Stores, selection and sources -> the dataset card. One pass over the kept examples for their texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sft_dist.config import RunConfig
from sft_dist.core.records import Example
from sft_dist.evals.tasks import load_eval_sets
from sft_dist.mix import Corpus
from sft_dist.pipelines.plan import cost_model, make_planner, open_corpus
from sft_dist.pipelines.prepare import Prepared, has_eval, prepare
from sft_dist.pipelines.select import training_examples
from sft_dist.report import card, card_facts
from sft_dist.report.card_facts import CardFacts, SourceFacts, Texts
from sft_dist.shards import Store
from sft_dist.sources import Source, open_source


def write_card(
    config: RunConfig,
    out: Path | None = None,
    *,
    command: str = "sft-dist prepare",
    progress: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write card.html, README.md and card.json; return their paths.

    Args:
        config: The run's config; its stores must be built.
        out: The folder; None: card/ in data.dir.
        command: What builds the stores, for errors.
        progress: Told what is being done.

    Raises:
        UserError: A store is missing or out of date.
    """
    prepared = prepare(config, build=False, command=command, progress=progress)
    return card.write(gather(config, prepared, progress), out or Path(config.data.dir) / "card")


def gather(
    config: RunConfig, prepared: Prepared, progress: Callable[[str], None] = lambda _: None
) -> CardFacts:
    """Return everything on the card."""
    corpus = open_corpus(prepared.stores)
    stores = dict(zip(corpus.source_names, corpus.stores, strict=True))
    plan = make_planner(
        config, corpus, world_size=1, cost=cost_model(config, prepared.renderer.tokenizer.vocab_size)
    ).epoch(0)
    keep_end = config.pack.too_long == "truncate_prompt"
    cells = card_facts.amounts(corpus, plan.docs, config.pack.seq_len, keep_end=keep_end)
    texts = Texts(config.seed)
    sources: list[SourceFacts] = []
    categories: dict[str, str] = {}
    for name, source_config in config.data.sources.items():
        progress(f"reading {name}")
        source, selection = open_source(name, source_config), prepared.selected.sources[name]
        if name in stores:
            for example in _stored(source, prepared, stores[name]):
                texts.add(name, example)
        dropped = Counter(selection.dropped)
        dropped.update(stores[name].info.get("dropped", {}) if name in stores else {})
        licenses, found = _documented(source)
        categories |= found
        sources.append(
            SourceFacts(
                name=name,
                kind=source_config.kind,
                license=source_config.license or ", ".join(licenses) or None,
                files=tuple((f.name, f.stat().st_size) for f in source.files()),
                datasets=dict(texts.datasets.get(name, Counter()).most_common()),
                read=selection.read,
                evaluation=selection.evaluation,
                unreadable=selection.unreadable,
                dropped=dict(dropped.most_common()),
                amount=card_facts.total(a for (s, _), a in cells.items() if s == name),
            )
        )
    tasks = card_facts.by_task(cells, categories)
    progress("comparing texts")
    folder = Path(config.data.dir)
    evaluation = load_eval_sets(folder, max_per_task=None, seed=config.seed) if has_eval(folder) else {}
    return CardFacts(
        name=config.name,
        sources=tuple(sources),
        tasks=tasks,
        lengths=card_facts.length_bins(corpus.lengths),
        total=card_facts.total(cells.values()),
        before=card_facts.balance(card_facts.shares(tasks, drawn=False)),
        after=card_facts.balance(card_facts.shares(tasks, drawn=True)),
        across_sources=plan.counts.duplicates,
        not_trained={**plan.counts.dropped, "truncated": plan.counts.truncated},
        diversity=texts.diversity(),
        samples=texts.samples(),
        contaminated=tuple(_as_dict(c) for c in prepared.selected.contaminated),
        evaluation={
            name: (len({e.task for e in members}), len(members)) for name, members in evaluation.items()
        },
        held_out=tuple(sorted(prepared.selected.holdout.tasks)),
        settings=_settings(config, corpus),
    )


def _stored(source: Source, prepared: Prepared, store: Store) -> Iterator[Example]:
    """Yield the training examples that the store holds: it lacks, in the same order, those that could not be rendered."""
    place = 0
    for example in training_examples(source, prepared.selected.sources[source.name]):
        if place < len(store) and store.id_hex(place) == example.id:
            place += 1
            yield example


def _documented(source: Source) -> tuple[list[str], dict[str, str]]:
    """Return what the files themselves say: licences, and the category of each task."""
    describe = getattr(source, "task_info", None)
    info = describe() if describe is not None else {}
    licenses = sorted({text for i in info.values() for text in getattr(i, "license", ())})
    return licenses, {n: i.categories[0] for n, i in info.items() if getattr(i, "categories", ())}


def _as_dict(finding: Any) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in type(finding).__slots__}


def _settings(config: RunConfig, corpus: Corpus) -> dict[str, Any]:
    """Return what of the config shapes the data, that which is off left out."""
    dump = config.model_dump(mode="json")
    out: dict[str, Any] = {"seed": config.seed}
    for section in ("holdout", "filters"):
        out |= _flat(f"data.{section}", dump["data"][section])
    out |= _flat("mix", dump["mix"])
    for name in corpus.source_names:
        mixing = {k: dump["data"]["sources"][name][k] for k in ("take", "share", "weight", "epochs")}
        out |= _flat(f"data.sources.{name}", {k: v for k, v in mixing.items() if v != 1.0 or k != "weight"})
    out |= {"pack.seq_len": config.pack.seq_len, "pack.too_long": config.pack.too_long}
    return out


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= _flat(f"{prefix}.{name}", value)
        elif value not in (None, False, 0, [], ()):
            out[f"{prefix}.{name}"] = value
    return out
