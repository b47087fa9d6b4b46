"""Stores, selection and sources -> the dataset card. One pass over the kept examples for their texts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from sft_dist.config import RunConfig
from sft_dist.core.records import Example
from sft_dist.core.sets import SETS
from sft_dist.evals.splits import has_sets, load_eval_sets
from sft_dist.mix import Corpus
from sft_dist.pipelines.data.prepare import Prepared, prepare
from sft_dist.pipelines.train.planning import cost_model, make_planner, open_corpus
from sft_dist.report.card import counts as card_counts
from sft_dist.report.card import write as card
from sft_dist.report.card.facts import CardFacts, SourceFacts, TaskLabels
from sft_dist.report.card.texts import Texts
from sft_dist.selection.files import PROMPT, TRAIN, make_folder
from sft_dist.selection.tokenize import document_id
from sft_dist.shards import Store
from sft_dist.sources import Source, open_source
from sft_dist.sources.natural_instructions import TaskInfo


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
    out = out or Path(config.data.dir) / "card"
    make_folder(out)
    return card.write(gather(config, prepared, progress), out)


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
    cells = card_counts.amounts(corpus, plan.docs, config.pack.seq_len, keep_end=keep_end)
    texts = Texts(config.seed)
    sources: list[SourceFacts] = []
    labels: dict[str, TaskLabels] = {}
    read: set[str] = set()
    licensed: dict[str, Counter[str]] = {}
    for name, source_config in config.data.sources.items():
        progress(f"reading {name}")
        source, selection = open_source(name, source_config), prepared.selected.sources[name]
        by_task, found = _documented(source)
        stated = source_config.license if "{" not in (source_config.license or "{") else None
        if name in stores:
            for example in _stored(source, prepared, stores[name], read):
                texts.add(name, example)
                named = example.license or stated or ", ".join(by_task.get(example.task, ()))
                licensed.setdefault(named, Counter())[name] += 1
        info = stores[name].info if name in stores else {}
        dropped = Counter(selection.dropped)
        dropped.update(info.get("dropped", {}))
        licenses = sorted({text for texts_of in by_task.values() for text in texts_of})
        labels |= found
        sources.append(
            SourceFacts(
                name=name,
                kind=source_config.kind,
                license=stated
                or ", ".join(licenses or sorted(n for n, c in licensed.items() if n and name in c))
                or None,
                files=tuple((f.name, f.stat().st_size) for f in source.files()),
                datasets=dict(texts.datasets.get(name, Counter()).most_common()),
                read=selection.read,
                evaluation=selection.evaluation,
                unreadable=selection.unreadable,
                prompts=selection.prompts,
                skipped={reason: sum(tasks.values()) for reason, tasks in selection.skipped.items()},
                dropped=dict(dropped.most_common()),
                rendered=dict(info.get("rendered", {})),
                amount=card_counts.total(a for (s, _), a in cells.items() if s == name),
            )
        )
    tasks = card_counts.by_task(cells, labels)
    after = card_counts.balance(card_counts.shares(tasks, drawn=True))
    progress("comparing texts")
    folder = Path(config.data.dir)
    evaluation = (
        load_eval_sets(folder, SETS, max_per_task=None, seed=config.seed) if has_sets(folder, SETS) else {}
    )
    return CardFacts(
        name=config.name,
        sources=tuple(sources),
        tasks=tasks,
        lengths=card_counts.length_bins(corpus.lengths),
        answer_lengths=card_counts.length_bins(corpus.target_tokens(np.arange(len(corpus)))),
        turns=dict(sorted(texts.turns.items())),
        total=card_counts.total(cells.values()),
        before=card_counts.balance(card_counts.shares(tasks, drawn=False)),
        after=after,
        warnings=card_counts.warnings(tasks, after, read - prepared.selected.holdout.tasks),
        first_dropped=_first_dropped(folder, sources),
        across_sources=plan.counts.duplicates,
        not_trained={**plan.counts.dropped, "truncated": plan.counts.truncated},
        diversity=texts.diversity(),
        samples=texts.samples(),
        contaminated=tuple(_as_dict(c) for c in prepared.selected.contaminated),
        evaluation={
            name: (len({e.task for e in members}), len(members)) for name, members in evaluation.items()
        },
        licenses={
            name: dict(counts)
            for name, counts in sorted(licensed.items(), key=lambda n: (-n[1].total(), n[0]))
        },
        id_files={key: _as_dict(file) for key, file in prepared.selected.id_files.items()},
        held_out=tuple(sorted(prepared.selected.holdout.tasks)),
        settings=_settings(config, corpus) | (prepared.lineage.rows() if prepared.lineage else {}),
    )


def _first_dropped(folder: Path, sources: Sequence[SourceFacts]) -> dict[str, dict[str, str]]:
    """Return of each reason the first record that it dropped."""
    out: dict[str, dict[str, str]] = {}
    for source in sources:
        left = {*source.dropped, *(("unreadable",) if source.unreadable else ())} - set(out)
        rendered = sorted((folder / "rejects").glob(f"{source.name}-render-*.jsonl"))
        for file in (folder / "rejects" / f"{source.name}.jsonl", *rendered):
            if not left or not file.is_file():
                continue
            with file.open("rb") as lines:
                for line in lines:
                    reason = line.split(b'"', 4)[3].decode()  # texts are long, and most lines are not wanted
                    if reason in left:
                        left.discard(reason)
                        reject = json.loads(line)
                        record, detail = reject["record"], str(reject["detail"])
                        name = record.get("id") or f"{Path(record['file']).name}, line {record['line']}"
                        out[reason] = {"source": source.name, "id": name, "detail": detail}
                    if not left:
                        break
    return out


def _stored(source: Source, prepared: Prepared, store: Store, read: set[str]) -> Iterator[Example]:
    """Yield the training examples that the store holds: it lacks, in the same order, those that could not be rendered.

    Every task that is read on the way is put into `read`.
    """
    place = 0
    for record, code in zip(source, prepared.selected.sources[source.name].codes, strict=True):
        if not isinstance(record, Example):
            continue
        if code != PROMPT:
            read.add(record.task)
        if code == TRAIN and place < len(store) and store.id_hex(place) == record.id:
            place += 1
            for k in count(1):  # render.expand_turns: further documents of the same conversation
                if place == len(store) or store.id_hex(place) != document_id(record.id, k):
                    break
                place += 1
            yield record


def _documented(source: Source) -> tuple[dict[str, tuple[str, ...]], dict[str, TaskLabels]]:
    """Return what the files themselves say of each task: its licences, and what it is labelled with."""
    describe = getattr(source, "task_info", None)
    info = {t: i for t, i in (describe() if describe else {}).items() if isinstance(i, TaskInfo)}
    return {name: i.license for name, i in info.items()}, {name: _labels(i) for name, i in info.items()}


def _labels(info: TaskInfo) -> TaskLabels:
    asked, answered = " and ".join(info.input_languages), " and ".join(info.output_languages)
    both = f"{asked} to {answered}" if asked and answered and asked != answered else asked or answered
    return TaskLabels(
        category=next(iter(info.categories), None),
        domains=tuple(dict.fromkeys(info.domains)),
        language=both or None,
    )


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
        mixing = {
            k: dump["data"]["sources"][name][k]
            for k in ("take_examples", "take_share", "share", "weight", "epochs")
        }
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
