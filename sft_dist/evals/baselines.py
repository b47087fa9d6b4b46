"""Training pairs and evaluated examples -> answers that need no model.

`majority`: the task's most common training answer. `nearest`: the answer to the most similar training text. `input_only`: the same
by the INPUT alone, over all tasks: what ignoring the instruction gives. `format_guess`: a random label that the task names, or a
random span of the INPUT as long as the answer: what a model reaches that has learnt the form of answers only (Kung & Peng, 2023,
arXiv 2305.11383). On a held-out task, the first two know nothing of it, the last knows its form.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.records import Example
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.evals.splits import user_text

MAX_PAIRS = 1_000_000  # 2.4 GiB at the peak with texts of 100 words, their indexes included

MAX_LABELS = 10  # distinct answers up to which a guess among them counts as one in the right format
MAX_SPANS = 64
SPAN_SHARE = 0.9
"""Share of a task's answers that must be spans of their INPUT for a random span to be a guess in the right format."""

_WORD = re.compile(r"\w+|[^\w\s]")


class TrainingPair(NamedTuple):
    """A training pair: what was asked and what was answered."""

    task: str
    text: str
    answer: str
    input: str = ""


def training_pairs(example: Example) -> TrainingPair:
    """Return the pair that a training example teaches."""
    return TrainingPair(example.task, user_text(example), example.output, example.input)


class Baselines:
    """The baselines over one training set, of any size: of a large one a sample by seed is kept.

    Args:
        training: The pairs that were trained on, each read once.
        tasks: Trained tasks that will be asked for; None: any.
        max_pairs: Pairs that are kept at most, in equal shares for every one of `tasks` and for all training together.
        seed: Of the sample.
    """

    def __init__(
        self,
        training: Iterable[TrainingPair],
        *,
        tasks: Collection[str] | None = None,
        max_pairs: int = MAX_PAIRS,
        seed: int = 0,
    ) -> None:
        share = max(1, max_pairs // (1 + len(tasks or ())))
        everything: Sample[tuple[int, TrainingPair]] = Sample(share, derive(seed, "baselines"))
        by_task: dict[str, Sample[tuple[int, TrainingPair]]] = {}
        for number, pair in enumerate(training):
            everything.add(str(number), (number, pair))
            if tasks is None or pair.task in tasks:
                if pair.task not in by_task:
                    by_task[pair.task] = Sample(share, derive(seed, "baselines", pair.task))
                by_task[pair.task].add(str(number), (number, pair))
        self._pairs = _in_order(everything)
        self._by_task = {task: _in_order(sample) for task, sample in by_task.items()}
        self._majority = {task: most_common(p.answer for p in pairs) for task, pairs in self._by_task.items()}
        self._majority_of_all = most_common(p.answer for p in self._pairs)
        self._indexes: dict[str | None, TokenSetIndex] = {}
        self._with_input = [p for p in self._pairs if p.input]
        self._input_index: TokenSetIndex | None = None

    def answers(self, example: Example) -> dict[str, tuple[str, ...]]:
        """Return the answer of each baseline to an evaluated example; `input_only` has none where there is no INPUT."""
        text = user_text(example)
        return {
            "nearest": (self.nearest(example.task, text),),
            "majority": (self.majority(example.task),),
            "input_only": self.input_only(example),
        }

    def input_only(self, example: Example) -> tuple[str, ...]:
        """Return the answer to the training example with the most similar INPUT, whatever its task."""
        if not example.input or not self._with_input:
            return ()
        if self._input_index is None:
            self._input_index = TokenSetIndex([p.input for p in self._with_input])
        return (self._with_input[self._input_index.nearest(example.input)[0]].answer,)

    def majority(self, task: str) -> str:
        """Return the task's most common training answer; of a task that was not trained, that of all training."""
        return self._majority.get(task, self._majority_of_all)

    def nearest(self, task: str, text: str) -> str:
        """Return the answer to the most similar training text of the task; of an untrained task, of all training."""
        pairs = self._by_task.get(task, self._pairs)
        if not pairs:
            return ""
        key = task if task in self._by_task else None
        if key not in self._indexes:
            self._indexes[key] = TokenSetIndex([p.text for p in pairs])
        return pairs[self._indexes[key].nearest(text)[0]].answer


def format_guesses(examples: Sequence[Example]) -> dict[str, tuple[str, ...]]:
    """Return the equally likely guesses in the right format for the examples of one task, by id.

    A task with few distinct answers, each named in its prompts: any of them. A task whose answers are spans of the INPUT: any span
    of that many words, words that all inputs share (a label such as "List:") left out. Otherwise none.
    """
    labels = {e.answers[0].strip() for e in examples}
    named = " ".join(_WORD.findall(" ".join(user_text(e) for e in examples).lower()))
    if 1 < len(labels) <= min(MAX_LABELS, max(2, len(examples) // 3)) and all(
        " ".join(_WORD.findall(label.lower())) in named for label in labels
    ):
        return {e.id: tuple(sorted(labels)) for e in examples}
    words = {e.id: e.input.split() for e in examples}
    frame = set.intersection(*(set(w) for w in words.values())) if len(examples) > 1 else set()
    inside = {i: [w.strip(".,:;!?") for w in ws if w not in frame] for i, ws in words.items()}
    out: dict[str, tuple[str, ...]] = {}
    for e in examples:
        length, own = len(e.answers[0].split()), inside[e.id]
        spans = [" ".join(own[k : k + length]) for k in range(len(own) - length + 1)]
        out[e.id] = tuple(spans[:MAX_SPANS])
    right = sum(any(a.strip(".,:;!?") in out[e.id] for a in e.answers) for e in examples)
    return out if right >= SPAN_SHARE * len(examples) else dict.fromkeys(out, ())


def _in_order(sample: Sample[tuple[int, TrainingPair]]) -> list[TrainingPair]:
    return [pair for _, pair in sorted(sample.items(), key=itemgetter(0))]


def most_common(answers: Iterable[str]) -> str:
    """Return the most frequent answer, the first one met where several are equally frequent; "" of none."""
    counts = Counter(answers)
    return max(counts, key=counts.__getitem__, default="")


class TokenSetIndex:
    """Exact nearest neighbours by IDF-weighted Jaccard similarity of token sets, through an inverted index.

    Weighting by inverse document frequency keeps the shared instruction from outvoting the input, which is where
    two examples of one task differ. A query costs one pass over the postings of its tokens: about a millisecond
    in 10,000 texts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Index `texts` (D of them, at least one)."""
        vocabulary: dict[str, int] = {}
        found, sizes = array("q"), array("q")
        for text in texts:
            words = sorted(_token_set(text))
            found.extend(vocabulary.setdefault(w, len(vocabulary)) for w in words)
            sizes.append(len(words))
        token_ids = np.array(found, dtype=np.int64)
        docs = np.repeat(np.arange(len(texts), dtype=np.int32), np.array(sizes, dtype=np.int64))
        order = np.argsort(token_ids, kind="stable")
        document_frequency = np.bincount(token_ids, minlength=len(vocabulary))
        self._vocabulary = vocabulary
        self._postings: NDArray[np.int32] = docs[order]
        self._starts = np.concatenate([[0], np.cumsum(document_frequency)])
        self._unknown_weight = np.log1p(len(texts))
        self._weights = np.log1p(len(texts) / np.maximum(document_frequency, 1))
        self._totals_D = np.bincount(docs, weights=self._weights[token_ids], minlength=len(texts))

    def nearest(self, text: str) -> tuple[int, float]:
        """Return the index of the most similar text (the first of equals) and its similarity, 0 to 1."""
        words = _token_set(text)
        hits = [self._vocabulary[w] for w in sorted(words) if w in self._vocabulary]
        if not hits:
            return 0, 0.0
        lists = [self._postings[self._starts[t] : self._starts[t + 1]] for t in hits]
        weights = np.repeat(self._weights[hits], [len(p) for p in lists])
        shared_D = np.bincount(np.concatenate(lists), weights=weights, minlength=len(self._totals_D))
        own = float(self._weights[hits].sum()) + (len(words) - len(hits)) * self._unknown_weight
        similarity_D = shared_D / (self._totals_D + own - shared_D)
        best = int(np.argmax(similarity_D))
        return best, float(similarity_D[best])


def _token_set(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))
