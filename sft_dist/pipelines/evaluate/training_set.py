"""Run folder -> exactly the examples that its training drew: what baselines may know, and what could be memorised."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sft_dist.config import RunConfig
from sft_dist.core.files import read_object
from sft_dist.core.records import Example
from sft_dist.core.rng import derive
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.sample import Sample
from sft_dist.evals.baselines import Baselines, TrainingPair, training_pairs
from sft_dist.model.config_json import text_config
from sft_dist.pipelines.train.planning import DEFAULT_SHAPE, cost_of, make_planner, open_corpus
from sft_dist.selection.files import training_examples
from sft_dist.selection.sides import select
from sft_dist.sources import Source, open_source


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSet:
    """What a run was trained on.

    Attributes:
        baselines: Over the drawn pairs.
        counts: Task -> distinct examples that were drawn.
        sample: Task -> a few of them, by hash.
        categories: Task -> category, where the source knows one.
        metrics: Task -> metric, where the source names one.
        phrasings: Task -> wordings of its instruction that no example has, where the source knows some.
        sources: The open sources.
    """

    baselines: Baselines
    counts: Mapping[str, int]
    sample: Mapping[str, list[Example]]
    categories: Mapping[str, str]
    metrics: Mapping[str, str]
    phrasings: Mapping[str, tuple[str, ...]]
    sources: Mapping[str, Source]


def drawn_ids(config: RunConfig, folder: RunFolder) -> set[str]:
    """Return the ids of the examples in the steps that the run took: shares, weights, caps and max_steps applied."""
    known = folder.read_stores()
    corpus = open_corpus({name: Path(s["path"]) for name, s in known["sources"].items()})
    file = folder.export / "config.json"
    shape = read_object(file, "export the run again") if file.is_file() else text_config(config.model)
    cost = cost_of(shape.get("text_config") or shape or DEFAULT_SHAPE)
    world = int(folder.plan("world_size")["world_size"])
    planner = make_planner(config, corpus, world_size=world, cost=cost)
    left = int(folder.status().get("step", 0)) or config.train.max_steps or 1 << 60
    drawn = np.zeros(len(corpus), dtype=np.bool_)
    for epoch in range(math.ceil(config.train.epochs)):
        plan = planner.epoch(epoch)
        for step in range(min(left, plan.n_steps)):
            for row in plan.rows(step):
                drawn[row.docs] = True
        left -= plan.n_steps
        if left <= 0:
            break
    return {corpus.id_hex(int(i)) for i in np.flatnonzero(drawn)}


def read_training_set(
    config: RunConfig, folder: RunFolder, tasks: Collection[str], *, per_task: int
) -> TrainingSet:
    """Read what a run was trained on, once.

    Args:
        config: Of the run.
        folder: Of the run.
        tasks: Tasks that are evaluated.
        per_task: Examples of each task in `sample`.
    """
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    selected = select(
        config.data, sources, Path(config.data.dir), lambda _: None, seed=config.seed, write=False
    )
    drawn = drawn_ids(config, folder)
    count: Counter[str] = Counter()
    samples: dict[str, Sample[Example]] = {}

    def pairs() -> Iterator[TrainingPair]:
        for name, source in sources.items():
            for example in training_examples(source, selected.sources[name]):
                if example.id not in drawn:
                    continue
                count[example.task] += 1
                if example.task not in samples:
                    samples[example.task] = Sample(per_task, derive(config.seed, "trained", example.task))
                samples[example.task].add(example.id, example)
                yield training_pairs(example)

    baselines = Baselines(pairs(), tasks=tasks, seed=config.seed)
    categories: dict[str, str] = {}
    metrics: dict[str, str] = {}
    phrasings: dict[str, tuple[str, ...]] = {}
    for source in sources.values():
        if info := getattr(source, "task_info", None):
            categories |= {t: found[0] for t, i in info().items() if (found := getattr(i, "categories", ()))}
        if named := getattr(source, "task_metrics", None):
            metrics |= named()
        if others := getattr(source, "unseen_phrasings", None):
            phrasings |= others()
    return TrainingSet(
        baselines=baselines,
        counts=count,
        sample={t: s.items() for t, s in samples.items()},
        categories=categories,
        metrics=metrics,
        phrasings=phrasings,
        sources=sources,
    )
