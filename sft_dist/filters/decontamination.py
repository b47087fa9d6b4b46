"""Evaluation examples -> an index of their n-grams; training example -> the evaluation examples that it gives away.

Compared are inputs and answers, not the instruction: a definition, a template or few-shot exemplars stand in every
prompt of a task that is also evaluated. Where a record has no INPUT of its own, n-grams that many inputs of an evaluated
task, or of a sample of the training examples, share are taken for the template. An answer alone gives nothing away when several inputs have it: it is a label.

Legend: G distinct n-grams, K places where they stand in the evaluation examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.records import Example
from sft_dist.filters.ngrams import codes, ngrams, words
from sft_dist.holdout.holdout import beside_question

# An n-gram of more than this many distinct inputs of a task, or of more than this share of them (but at least three),
# belongs to the template. Passages have seldom more than ten questions among the evaluated ones.
TEMPLATE_INPUTS = 10
TEMPLATE_SHARE = 0.1
MAX_ANSWERS = 5  # of one evaluation example that are indexed
SHOWN_WORDS = 24  # of a matching span
SPARE_BITS = 4  # a table of prefixes is this many doublings larger than the n-grams that are in it


class Overlap(NamedTuple):
    """One training example that gives one evaluation example away.

    Attributes:
        item: Index of the evaluation example.
        coverage: Share of the words of one that stand in the other.
        how: `eval_in_training`, `training_in_eval`, or `same_question` (too short for n-grams, but equal).
        span: The longest run of words that both hold.
    """

    item: int
    coverage: float
    how: str
    span: str


@dataclass(frozen=True, slots=True)
class _Part:
    """Input (`number` 0) or an answer of an evaluation example: which of its words are no template."""

    item: int
    number: int
    content: NDArray[np.bool_]
    size: int


class ContaminationIndex:
    """What the evaluation examples say, ready for look-up.

    Args:
        examples: The evaluation examples.
        training: Samples of training examples, one a source; what many of their inputs share is template.
        ngram: Words of an n-gram.
        coverage: Share of words from which on a training example gives an evaluation example away.
    """

    def __init__(
        self,
        examples: Iterable[Example],
        *,
        ngram: int,
        coverage: float,
        training: Iterable[Iterable[Example]] = (),
    ) -> None:
        self.ngram, self.coverage = ngram, coverage
        texts: list[list[list[str]]] = []
        tasks: list[str] = []
        for e in examples:
            tasks.append(e.task)
            texts.append([words(t) for t in (question(e), *e.answers[:MAX_ANSWERS])])
        self.items = len(texts)
        self._short = _questions(texts, ngram)
        _forget_labels(texts, tasks)
        coded = [[codes(part) for part in parts] for parts in texts]
        template = _template(coded, tasks, ngram)
        for sample in training:
            template |= _common(sample, ngram)
        self._template = np.array(sorted(template), np.uint64)
        self._parts: list[_Part] = []
        self._of_item: list[list[int]] = [[] for _ in range(self.items)]
        grams, places = [], []
        for item, parts in enumerate(coded):
            for number, part in enumerate(parts):
                found = ngrams(part, ngram)
                shared = _member(found, self._template)
                content = ~_spread(np.flatnonzero(shared), len(part), ngram)
                own = np.flatnonzero(~shared)
                self._of_item[item].append(len(self._parts))
                grams.append(found[own])
                places.append(np.stack([np.full(len(own), len(self._parts)), own], axis=1))
                self._parts.append(_Part(item, number, content, int(content.sum())))
        joined = np.concatenate(grams) if grams else np.empty(0, np.uint64)
        order = np.argsort(joined, kind="stable")
        self._places_K2 = np.concatenate(places)[order] if places else np.empty((0, 2), np.int64)
        self._grams_G, self._first_G = np.unique(joined[order], return_index=True)
        # Most n-grams of a training example are in none: their first bits tell it, at a tenth of the cost of a search.
        self._shift = np.uint64(64 - min(24, len(self._grams_G).bit_length() + SPARE_BITS))
        self._prefixes = np.zeros(1 << (64 - int(self._shift)), np.bool_)
        self._prefixes[self._grams_G >> self._shift] = True

    def __call__(self, example: Example) -> list[Overlap]:
        """Return the evaluation examples that a training example gives away, the most covered first."""
        asked = words(question(example))
        answers = [words(a) for a in example.answers]
        leaks = {
            item: Overlap(item, 1.0, "same_question", " ".join(asked[:SHOWN_WORDS]))
            for answer in answers
            for item in self._short.get((*asked, "\x1f", *answer), ())
        }
        covered: dict[
            int, NDArray[np.bool_]
        ] = {}  # of each touched part, the words that stand in the example
        spans: dict[int, str] = {}
        own: dict[
            int, NDArray[np.bool_]
        ] = {}  # of each touched item, the words of the question that stand in it
        shown = [words(beside_question(example))]  # demonstrations stand there
        for number, text in enumerate([asked, *answers, *shown]):
            for item, part, there, here in self._matches(text):
                spans.setdefault(item, _longest(text, here, self.ngram))
                mask = covered.setdefault(part, np.zeros(len(self._parts[part].content), np.bool_))
                mask |= _spread(there, len(mask), self.ngram)
                if number == 0:
                    mine = own.setdefault(item, np.zeros(len(text), np.bool_))
                    mine |= _spread(here, len(text), self.ngram)
        content = self._content(asked) if own else np.empty(0, np.bool_)
        for item, span in spans.items():
            share = self._covered(item, covered)
            if share >= self.coverage:
                leaks.setdefault(item, Overlap(item, share, "eval_in_training", span))
            elif item in own and (size := int(content.sum())) >= self.ngram:
                share = int((own[item] & content).sum()) / size
                if share >= self.coverage:
                    leaks.setdefault(item, Overlap(item, share, "training_in_eval", span))
        return sorted(leaks.values(), key=lambda leak: (-leak.coverage, leak.item))

    def _matches(self, text: list[str]) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (item, part, places in the part, places in the text) for each part that shares an n-gram."""
        found = ngrams(codes(text), self.ngram)
        if not len(found) or not len(self._grams_G):
            return
        hits = np.flatnonzero(self._prefixes[found >> self._shift])
        at = np.searchsorted(self._grams_G, found[hits])
        at[at == len(self._grams_G)] = 0
        same = self._grams_G[at] == found[hits]
        hits, at = hits[same], at[same]
        if not len(hits):
            return
        here: dict[int, list[int]] = defaultdict(list)
        there: dict[int, list[int]] = defaultdict(list)
        ends = np.append(self._first_G, len(self._places_K2))
        for hit, g in zip(hits.tolist(), at.tolist(), strict=True):
            for part, place in self._places_K2[ends[g] : ends[g + 1]].tolist():
                here[part].append(hit)
                there[part].append(place)
        for part, places in there.items():
            yield self._parts[part].item, part, np.array(places), np.array(here[part])

    def _covered(self, item: int, covered: dict[int, NDArray[np.bool_]]) -> float:
        """Return the largest share of the item that is covered: of its input, or of input and one answer together."""
        counts = [
            (int((covered[p] & self._parts[p].content).sum()) if p in covered else 0, self._parts[p].size)
            for p in self._of_item[item]
        ]
        (asked, size), answers = counts[0], counts[1:]
        shares = [asked / size] if size >= self.ngram else []
        shares += [(asked + a) / (size + s) for a, s in answers if s and size + s >= self.ngram]
        return max(shares, default=0.0)

    def _content(self, text: list[str]) -> NDArray[np.bool_]:
        shared = _member(ngrams(codes(text), self.ngram), self._template)
        return ~_spread(np.flatnonzero(shared), len(text), self.ngram)


def question(example: Example) -> str:
    """Return what the example asks, as one text."""
    return "\n".join(example.asked)


def _questions(texts: list[list[list[str]]], n: int) -> dict[tuple[str, ...], list[int]]:
    """Return the items whose question is too short for n-grams, by question and answer."""
    out: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for item, (asked, *answers) in enumerate(texts):
        if len(asked) < n:
            for answer in answers:
                out[(*asked, "\x1f", *answer)].append(item)
    return dict(out)


def _forget_labels(texts: list[list[list[str]]], tasks: list[str]) -> None:
    """Empty the answers that several inputs of a task have: they are labels."""
    inputs: dict[tuple[str, tuple[str, ...]], set[tuple[str, ...]]] = defaultdict(set)
    for task, (asked, *answers) in zip(tasks, texts, strict=True):
        for answer in answers:
            inputs[task, tuple(answer)].add(tuple(asked))
    for task, parts in zip(tasks, texts, strict=True):
        parts[1:] = [[] if len(inputs[task, tuple(a)]) > 1 else a for a in parts[1:]]


def _template(coded: list[list[NDArray[np.uint64]]], tasks: list[str], n: int) -> set[int]:
    """Return the n-grams that many distinct inputs (or answers) of one task share."""
    texts: dict[tuple[str, bool], dict[bytes, NDArray[np.uint64]]] = defaultdict(dict)
    for task, parts in zip(tasks, coded, strict=True):
        for number, part in enumerate(parts):
            texts[task, number > 0][part.tobytes()] = part
    out: set[int] = set()
    for distinct in texts.values():
        limit = min(TEMPLATE_INPUTS, max(2, TEMPLATE_SHARE * len(distinct)))
        counts = Counter(chain.from_iterable(set(ngrams(p, n).tolist()) for p in distinct.values()))
        out.update(gram for gram, count in counts.items() if count > limit)
    return out


def _common(sample: Iterable[Example], n: int) -> set[int]:
    """Return the n-grams that more than `TEMPLATE_INPUTS` distinct inputs of a sample hold."""
    inputs = {found.tobytes(): found for e in sample if len(found := codes(words(question(e)))) >= n}
    grams = [np.unique(ngrams(found, n)) for found in inputs.values()]
    known, counts = np.unique(np.concatenate(grams or [np.empty(0, np.uint64)]), return_counts=True)
    return set(known[counts > TEMPLATE_INPUTS].tolist())


def _member(found: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which codes are in the sorted `known`."""
    if not len(known) or not len(found):
        return np.zeros(len(found), np.bool_)
    at = np.searchsorted(known, found)
    at[at == len(known)] = 0
    return np.asarray(known[at] == found)


def _spread(places: NDArray[np.int64], size: int, n: int) -> NDArray[np.bool_]:
    """Return which of `size` words lie in an n-gram that starts at one of `places`."""
    out = np.zeros(size, np.bool_)
    for k in range(n if len(places) else 0):
        out[places + k] = True
    return out


def _longest(text: list[str], places: NDArray[np.int64], n: int) -> str:
    """Return the longest run of words that n-grams at `places` make up."""
    starts = np.unique(places)
    runs = np.split(starts, np.flatnonzero(np.diff(starts) > 1) + 1)
    run = max(runs, key=len)
    return " ".join(text[run[0] : run[-1] + n][:SHOWN_WORDS])
