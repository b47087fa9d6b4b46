"""What a dataset card says, as numbers. The pages print these and nothing else; card.json holds them for machines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from sft_dist.core.records import Example
from sft_dist.core.sample import Sample
from sft_dist.core.seeds import derive
from sft_dist.filters import Seen
from sft_dist.filters.leakage import question
from sft_dist.mix import Corpus
from sft_dist.report.card_language import distinct, nearest_rouge_l, verb_and_noun

RARE = 0.5  # a task is under-represented when it has less than this part of an equal share
SAMPLED_TEXTS = 2000  # for distinct n-grams
SAMPLED_NEIGHBOURS = 1000  # for the nearest neighbour: the work grows with the square
SAMPLES = 4  # examples of each source that are shown
BINS = 20  # of the histogram of ROUGE-L
WHOLE = 2**31 - 1  # longer than any example


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """How much of something there is in the stores, and in one epoch of training."""

    examples: int = 0
    tokens: int = 0
    target_tokens: int = 0
    drawn_examples: int = 0
    drawn_tokens: int = 0
    drawn_target_tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(**{k: getattr(self, k) + getattr(other, k) for k in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """One source: where it comes from, what became of its records."""

    name: str
    kind: str
    license: str | None
    files: tuple[tuple[str, int], ...]  # (name, bytes)
    datasets: Mapping[str, int]  # underlying dataset -> training examples
    read: int
    evaluation: int
    unreadable: int
    dropped: Mapping[str, int]
    amount: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """One task, over all sources that hold it."""

    name: str
    sources: tuple[str, ...]
    category: str | None
    amount: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How even the tasks are.

    Attributes:
        effective_tasks: exp of the entropy of the shares: as many equal tasks would be as diverse.
        largest: Share of the largest task.
        rare: Tasks with less than `RARE` of an equal share, the rarest first.
    """

    effective_tasks: float
    largest: float
    rare: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity:
    """How different instructions, prompts and answers are.

    Attributes:
        instructions: Distinct instructions.
        with_verb: Of them, those with a known root verb.
        verbs: (verb, noun, distinct instructions), the most frequent first; noun "": none was found.
        sampled: Examples whose texts were compared.
        distinct: "prompts" and "answers" -> (different, all) n-grams for n = 1, 2, 3.
        nearest: "instructions" and "prompts" -> how many have their nearest neighbour's ROUGE-L in each of `BINS` bins.
        nearest_mean: The mean of the same.
    """

    instructions: int
    with_verb: int
    verbs: tuple[tuple[str, str, int], ...]
    sampled: int
    distinct: Mapping[str, tuple[tuple[int, int], ...]]
    nearest: Mapping[str, tuple[int, ...]]
    nearest_mean: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Everything on the card.

    Attributes:
        name: Of the run's config.
        sources: In the order of the config.
        tasks: The largest first.
        lengths: Training examples whose tokens lie in [2^k, 2^(k+1)), by k.
        total: All sources together.
        before: Balance of the tasks in the stores.
        after: Balance in one epoch.
        across_sources: Examples that are not drawn because an earlier source holds them.
        not_trained: Drawn, but not trained on, by reason; and how many were cut to fit a row.
        diversity: See there.
        samples: Source -> examples.
        contaminated: Evaluation examples that were found in training data.
        evaluation: Evaluation set -> (tasks, examples).
        held_out: Tasks that are never trained on.
        settings: What of the config shapes the data.
    """

    name: str
    sources: tuple[SourceFacts, ...]
    tasks: tuple[TaskFacts, ...]
    lengths: Mapping[int, int]
    total: Amount
    before: Balance
    after: Balance
    across_sources: int
    not_trained: Mapping[str, int]
    diversity: Diversity
    samples: Mapping[str, tuple[Example, ...]]
    contaminated: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, tuple[int, int]]
    held_out: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def dropped(self) -> dict[str, int]:
        """Records that were dropped, by reason, the most frequent first."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            counts.update(source.dropped)
        return dict(sorted(counts.items(), key=lambda d: (-d[1], d[0])))

    def categories(self) -> dict[str, tuple[int, Amount]]:
        """Return category -> (tasks, amount), the largest first; tasks without one are left out."""
        out: dict[str, tuple[int, Amount]] = {}
        for task in self.tasks:
            if task.category is not None:
                tasks, amount = out.get(task.category, (0, Amount()))
                out[task.category] = tasks + 1, amount + task.amount
        return dict(sorted(out.items(), key=lambda c: (-c[1][1].examples, c[0])))


def amounts(
    corpus: Corpus, docs: NDArray[np.int64], seq_len: int, *, keep_end: bool
) -> dict[tuple[str, str], Amount]:
    """Return how much each task of each source holds, and how much of it an epoch of the documents `docs` trains on."""
    n_tasks = len(corpus.task_names)
    size = len(corpus.source_names) * n_tasks
    cell = corpus.source_of.astype(np.int64) * n_tasks + corpus.task_of
    everything = corpus.slices(np.arange(len(corpus)), WHOLE, keep_end=True)
    drawn = corpus.slices(docs, seq_len, keep_end=keep_end)
    columns = [
        np.bincount(cell, minlength=size),
        np.bincount(cell, everything.lengths, size),
        np.bincount(cell, everything.target_tokens, size),
        np.bincount(cell[docs], minlength=size),
        np.bincount(cell[docs], drawn.lengths, size),
        np.bincount(cell[docs], drawn.target_tokens, size),
    ]
    names = list(Amount.__slots__)
    return {
        (corpus.source_names[c // n_tasks], corpus.task_names[c % n_tasks]): Amount(
            **{k: int(column[c]) for k, column in zip(names, columns, strict=True)}
        )
        for c in np.flatnonzero(columns[0]).tolist()
    }


def total(parts: Iterable[Amount]) -> Amount:
    """Return the sum."""
    return sum(parts, Amount())


def balance(counts: Mapping[str, int]) -> Balance:
    """Return how even tasks with these counts are."""
    everything = max(1, sum(counts.values()))
    shares = {t: n / everything for t, n in counts.items()}
    entropy = -sum(s * math.log(s) for s in shares.values() if s)
    limit = RARE / max(1, len(shares))
    rare = sorted((s, t) for t, s in shares.items() if s < limit)
    return Balance(
        effective_tasks=math.exp(entropy),
        largest=max(shares.values(), default=0.0),
        rare=tuple(t for _, t in rare),
    )


def length_bins(lengths: NDArray[np.int32]) -> dict[int, int]:
    """Return how many lie in [2^k, 2^(k+1)), by k, without gaps."""
    exponents = np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    if not len(exponents):
        return {}
    low = int(exponents.min())
    counts = np.bincount(exponents - low)
    return {low + k: int(n) for k, n in enumerate(counts)}


class Texts:
    """One pass over all training examples -> what the card says of their texts. Memory does not grow with them.

    (A set of the distinct instructions aside: 32 bytes each.)
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._instructions = Seen()
        self._count = 0
        self._verbs: Counter[tuple[str, str]] = Counter()
        self._sample: Sample[tuple[str, str]] = Sample(SAMPLED_TEXTS, derive(seed, "card", "texts"))
        self._asked: Sample[str] = Sample(SAMPLED_NEIGHBOURS, derive(seed, "card", "instructions"))
        self._shown: dict[str, Sample[Example]] = {}
        self.datasets: dict[str, Counter[str]] = {}

    def add(self, source: str, example: Example) -> None:
        """Take one training example into account."""
        datasets = self.datasets.setdefault(source, Counter())
        datasets.update(o.removeprefix("dataset:") for o in example.origin if o.startswith("dataset:"))
        if source not in self._shown:
            self._shown[source] = Sample(SAMPLES, derive(self._seed, "card", "samples", source))
        self._shown[source].add(example.id, example)
        self._sample.add(example.id, (question(example), example.output))
        instruction = example.instruction
        if self._instructions.add(xxhash.xxh3_128_intdigest(instruction.encode("utf-8", "surrogatepass"))):
            self._count += 1
            self._asked.add(instruction, instruction)
            if found := verb_and_noun(instruction):
                self._verbs[found] += 1

    def samples(self) -> dict[str, tuple[Example, ...]]:
        """Return some examples of each source."""
        return {name: tuple(kept.items()) for name, kept in self._shown.items()}

    def diversity(self) -> Diversity:
        """Return how different the texts are."""
        pairs = self._sample.items()
        prompts, answers = [p for p, _ in pairs], [a for _, a in pairs]
        compared = {"instructions": self._asked.items(), "prompts": prompts[:SAMPLED_NEIGHBOURS]}
        nearest = {name: nearest_rouge_l(texts) for name, texts in compared.items()}
        verbs = sorted(self._verbs.items(), key=lambda v: (-v[1], v[0]))
        return Diversity(
            instructions=self._count,
            with_verb=self._verbs.total(),
            verbs=tuple((verb, noun, n) for (verb, noun), n in verbs),
            sampled=len(pairs),
            distinct={
                name: tuple(distinct(texts, n) for n in (1, 2, 3))
                for name, texts in (("prompts", prompts), ("answers", answers))
            },
            nearest={name: histogram(values) for name, values in nearest.items()},
            nearest_mean={n: float(v.mean()) if len(v) else math.nan for n, v in nearest.items()},
        )


def histogram(values: NDArray[np.float64]) -> tuple[int, ...]:
    """Return how many values lie in each of `BINS` equal parts of 0 to 1, 1 in the last."""
    places = np.minimum((values * BINS + 1e-9).astype(np.int64), BINS - 1)
    return tuple(np.bincount(places, minlength=BINS).tolist())


def by_task(cells: Mapping[tuple[str, str], Amount], categories: Mapping[str, str]) -> tuple[TaskFacts, ...]:
    """Return the tasks, the largest first."""
    names: dict[str, list[str]] = {}
    for source, task in cells:
        names.setdefault(task, []).append(source)
    tasks = [
        TaskFacts(
            name=task,
            sources=tuple(sources),
            category=categories.get(task),
            amount=total(cells[s, task] for s in sources),
        )
        for task, sources in names.items()
    ]
    return tuple(sorted(tasks, key=lambda t: (-t.amount.examples, t.name)))


def shares(tasks: Sequence[TaskFacts], *, drawn: bool) -> dict[str, int]:
    """Return examples by task: in the stores, or in one epoch."""
    return {t.name: t.amount.drawn_examples if drawn else t.amount.examples for t in tasks}
