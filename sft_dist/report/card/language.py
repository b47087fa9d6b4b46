"""Texts -> how diverse they are: distinct n-grams, likeness to the nearest other text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from sft_dist.filters.ngrams import words

ROUGE_WORDS = 256  # of a text that are compared; longer ones are cut


def distinct(texts: Sequence[str], n: int) -> tuple[int, int]:
    """Return how many different n-grams of words the texts hold, and how many there are."""
    found = [words(t) for t in texts]
    grams = list(chain.from_iterable(zip(*(w[k:] for k in range(n)), strict=False) for w in found))
    return len(set(grams)), len(grams)


def nearest_rouge_l(texts: Sequence[str]) -> NDArray[np.float64]:
    """Return of each text the largest ROUGE-L F1 with any other, over words (no stemming), [texts]."""
    if len(texts) < 2:
        return np.empty(0)
    codes: dict[str, int] = {}
    # One character a word: the library compares texts faster than lists. Beyond the private planes, not surrogates.
    coded = [
        "".join(chr(0x10000 + codes.setdefault(w, len(codes)) % 0xFFFFF) for w in words(t)[:ROUGE_WORDS])
        for t in texts
    ]
    common = cdist(coded, coded, scorer=LCSseq.similarity, dtype=np.uint16).astype(np.float64)
    lengths = np.array([len(c) for c in coded], np.float64)
    scores = 2 * common / np.maximum(lengths[:, None] + lengths[None, :], 1)
    np.fill_diagonal(scores, -1)
    return np.asarray(scores.max(axis=1))
