"""Texts of the training examples -> what the card says of them, in one pass."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import xxhash
from numpy.typing import NDArray

from sft_dist.core.records import Example
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.core.verbs import verb_and_noun
from sft_dist.filters import Seen
from sft_dist.filters.decontamination import question
from sft_dist.filters.language import language_of
from sft_dist.report.card.facts import BINS, Diversity
from sft_dist.report.card.language import distinct, nearest_rouge_l

SAMPLED_TEXTS = 2000  # for distinct n-grams
SAMPLED_NEIGHBOURS = 1000  # for the nearest neighbour: the work grows with the square
SAMPLES = 4  # examples of each source that are shown


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
        self.turns: Counter[int] = Counter()

    def add(self, source: str, example: Example) -> None:
        """Take one training example into account."""
        self.turns[sum(m.role == "assistant" for m in example.messages)] += 1
        datasets = self.datasets.setdefault(source, Counter())
        datasets.update(o.removeprefix("dataset:") for o in example.origin if o.startswith("dataset:"))
        if source not in self._shown:
            self._shown[source] = Sample(SAMPLES, derive(self._seed, "card", "samples", source))
        self._shown[source].add(example.id, example)
        self._sample.add(example.id, (question(example), example.output))
        instruction = example.instruction
        key = xxhash.xxh3_128_intdigest(instruction.encode("utf-8", "surrogatepass"))
        if self._instructions.first(key, example.id) is None:
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
            languages={
                name: dict(Counter(language_of(t) or "" for t in texts[:SAMPLED_NEIGHBOURS]).most_common())
                for name, texts in (("prompts", prompts), ("answers", answers))
            },
        )


def histogram(values: NDArray[np.float64]) -> tuple[int, ...]:
    """Return how many values lie in each of `BINS` equal parts of 0 to 1, 1 in the last."""
    places = np.minimum((values * BINS + 1e-9).astype(np.int64), BINS - 1)
    return tuple(np.bincount(places, minlength=BINS).tolist())
