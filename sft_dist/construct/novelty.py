"""Is an instruction new? Exact ROUGE-L against a growing pool, without comparing it with most of the pool.

The score is F = 2 L / (m + n): L tokens of the longest common subsequence, m and n tokens of the two texts. L is at most
the number of (token, occurrence) pairs that the two share, so F > t needs many shared pairs; and two sets that share many
must share one among their rarest (a prefix filter). Only texts that do are compared, by a bit-parallel LCS.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from math import ceil
from typing import NamedTuple

from rapidfuzz.distance import LCSseq

FIRST_INDEX = 256  # texts at which rarity is counted for the first time; then at every doubling
SLACK = 1e-9  # bounds are rounded outwards by it, so that only the exact score decides
IDEOGRAPH = "[\u3040-\u30ff\u3400-\u9fff]"  # Han and kana: written without spaces, each is taken for a word
_TOKEN = re.compile(f"[a-z0-9]+|{IDEOGRAPH}")


class Match(NamedTuple):
    """The most similar text of the pool: its number in the order of arrival, and the ROUGE-L F-measure."""

    number: int
    score: float


class _Entry(NamedTuple):
    """A text of the pool: one character a token, and its distinct (token, occurrence) pairs."""

    letters: str
    pairs: tuple[int, ...]


class NoveltyPool:
    """Texts that later texts must differ from.

    Args:
        threshold: A text whose ROUGE-L F-measure with one of the pool is more than this is not new; above 0, at most 1.
    """

    def __init__(self, threshold: float = 0.7) -> None:
        assert 0 < threshold <= 1
        self.threshold = threshold
        self._share = threshold / (2 - threshold)  # the shorter of two similar texts over the longer
        self._tokens: dict[str, int] = {}
        self._pairs: dict[tuple[int, int], int] = {}
        self._entries: list[_Entry] = []
        self._rarity: list[int] = []  # texts with the pair, at the last count; 0 for later pairs
        self._postings: dict[int, list[tuple[int, int, int]]] = {}  # pair -> (text, its length, place in it)
        self._wordless: dict[str, int] = {}
        self._next_index = FIRST_INDEX

    def __len__(self) -> int:
        return len(self._entries)

    def extend(self, texts: Iterable[str]) -> None:
        """Add texts without asking whether they are new."""
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Add a text without asking whether it is new."""
        entry = self._encode(text)
        if not entry.pairs:
            self._wordless.setdefault(text.strip(), len(self._entries))
        self._entries.append(entry)
        self._post(len(self._entries) - 1, self._ordered(entry.pairs))
        if len(self._entries) >= self._next_index:
            self._count_again()

    def similar(self, text: str) -> Match | None:
        """Return the most similar text whose score is more than the threshold (the earliest of equals), or None.

        A text without a Latin letter or digit has no ROUGE tokens; it is similar to an equal text only.
        """
        letters, pairs = self._encode(text)
        m = len(letters)
        if not m:
            number = self._wordless.get(text.strip())
            return None if number is None else Match(number, 1.0)
        shortest, longest = m * self._share - SLACK, m / self._share + SLACK
        best: Match | None = None
        seen: set[int] = set()
        for place, pair in enumerate(self._ordered(pairs)[: self._prefix(m)]):
            after = m - place
            for number, n, place_there in self._postings.get(pair, ()):
                if number in seen or not shortest <= n <= longest:
                    continue
                seen.add(number)
                needed = ceil(self.threshold * (m + n) / 2 - SLACK)
                # This is the rarest pair that the two share: nothing before it is common to both.
                if after < needed or n - place_there < needed:
                    continue
                common = LCSseq.similarity(letters, self._entries[number].letters, score_cutoff=needed)
                if common and (score := f_measure(int(common), m, n)) > self.threshold:
                    match = Match(number, score)
                    best = match if best is None else min(best, match, key=lambda x: (-x.score, x.number))
        return best

    def _encode(self, text: str) -> _Entry:
        """Return the text as codes. Characters are codes of tokens, and not their spelling."""
        occurrences: Counter[int] = Counter()
        letters, pairs = [], []
        for token in rouge_tokens(text):
            code = self._tokens.setdefault(token, len(self._tokens))
            pairs.append(self._pairs.setdefault((code, occurrences[code]), len(self._pairs)))
            occurrences[code] += 1
            letters.append(chr(code))
        return _Entry("".join(letters), tuple(pairs))

    def _ordered(self, pairs: tuple[int, ...]) -> list[int]:
        """Return the pairs, the rarest first."""
        rarity, counted = self._rarity, len(self._rarity)
        return sorted(pairs, key=lambda p: (rarity[p] if p < counted else 0, p))

    def _prefix(self, length: int) -> int:
        """Return among how many of its rarest pairs a text shares one with every similar text."""
        return length - ceil(length * self._share - SLACK) + 1

    def _post(self, number: int, ordered: list[int]) -> None:
        length = len(ordered)
        for place, pair in enumerate(ordered[: self._prefix(length)]):
            self._postings.setdefault(pair, []).append((number, length, place))

    def _count_again(self) -> None:
        """Order pairs by how many texts hold them now, and post every text anew."""
        counts = Counter(pair for entry in self._entries for pair in entry.pairs)
        self._rarity = [counts[pair] for pair in range(len(self._pairs))]
        self._postings = {}
        for number, entry in enumerate(self._entries):
            self._post(number, self._ordered(entry.pairs))
        self._next_index = 2 * len(self._entries)


def rouge_tokens(text: str) -> list[str]:
    """Return the tokens that are counted: runs of a-z and 0-9 of the lower-cased text, unstemmed, and ideographs.

    The ROUGE package knows the first alone: without the second, Chinese instructions would differ in their Latin names only.
    """
    return _TOKEN.findall(text.lower())


def f_measure(common: int, m: int, n: int) -> float:
    """Return ROUGE-L F, in the order of operations of the usual package, so that a score at the threshold falls alike."""
    precision, recall = common / n, common / m
    return 2 * precision * recall / (precision + recall) if common else 0.0
