"""Near duplicates: MinHash LSH proposes, the exact Jaccard similarity of the word shingles decides.

Examples are compared part by part: instruction, INPUT and answers where both records have an INPUT, else whole prompt and
answers; every part must reach the threshold. The definition that thousands of examples of one task share, or a passage under many
questions, makes no duplicates; the same conversation as an alpaca record and as messages is one.

Signatures are rensa's: 2.4 us a document of 100 shingles, against 308 us with datasketch and 19 us with numpy
(one core, 128 permutations). Its own index took 1.35 KB a document and cannot ask row by row, in order, while it
grows; the table below takes 0.25 KB. The shingles that verification needs lie in a temporary file.

Legend: B bands, R rows (signature values) of a band, S shingles.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.records import Drop, Example
from sft_dist.filters.ngrams import shingles
from sft_dist.filters.rules import answers_of, prompt_of
from sft_dist.pack.jit import jit

Codes: TypeAlias = NDArray[np.uint64]

REACH = 0.99  # of the pairs exactly at the threshold, the share that LSH proposes; above it, more
MAX_CANDIDATES = (
    1000  # of one example that are verified: bounds the time where a million records share one answer
)
LARGEST_INT32 = 2**31 - 1  # entries of a table that 32 bits can number: 100 million examples in 21 bands
SEED = 42  # of the permutations; any will do, but always the same


WITH_INPUT = 4  # stored sets of a record with an INPUT: its three parts and the whole prompt


class Sketch(NamedTuple):
    """What candidates for near duplicates of an example are found by.

    Attributes:
        has_input: Whether the record has an INPUT.
        bands: [B] of INPUT and answers, or of prompt and answers.
        whole_bands: [B] of the whole prompt and answers.
    """

    has_input: bool
    bands: Codes
    whole_bands: Codes


class _Compared(NamedTuple):
    """What two examples are compared by.

    Attributes:
        parts: Shingles of instruction, INPUT, answers, or of prompt, answers; sorted.
        whole: Shingles of the whole prompt.
    """

    parts: tuple[Codes, ...]
    whole: Codes

    @property
    def has_input(self) -> bool:
        """Whether the record has an INPUT."""
        return len(self.parts) == WITH_INPUT - 1


def _compared(sets: tuple[Codes, ...]) -> _Compared:
    return _Compared(sets[:-1], sets[-1]) if len(sets) == WITH_INPUT else _Compared(sets, sets[0])


def bands_of(threshold: float, permutations: int) -> tuple[int, int]:
    """Return (B, R): the fewest bands, so the fewest false candidates, that still reach `REACH` at the threshold."""
    for rows in range(permutations, 1, -1):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= REACH:
            return bands, rows
    return permutations, 1


class Sketcher:
    """Examples -> sketches. Holds no state, so any process may do any part.

    Args:
        threshold: Jaccard similarity that each part must reach.
        shingle_words: Words of a shingle.
        permutations: Values of a MinHash signature.
    """

    def __init__(self, *, threshold: float, shingle_words: int, permutations: int) -> None:
        self.words = shingle_words
        self.permutations = permutations
        self.bands, self.rows = bands_of(threshold, permutations)

    def __call__(self, examples: Sequence[Example]) -> list[Sketch]:
        """Return the sketch of each example."""
        from rensa import RMinHash  # a compiled library that only this rule needs

        if not examples:
            return []
        compared = [_compared(self._sets(e)) for e in examples]
        # INPUT and answers without the instruction: if each part reaches the threshold, so does their union.
        own = self._bands_of([np.concatenate([c.parts[-2], ~c.parts[-1]]) for c in compared], RMinHash)
        with_input = [i for i, c in enumerate(compared) if c.has_input]
        whole_bands = list(own)
        if with_input:
            sets = [np.concatenate([compared[i].whole, ~compared[i].parts[-1]]) for i in with_input]
            for i, bands in zip(with_input, self._bands_of(sets, RMinHash), strict=True):
                whole_bands[i] = bands
        return [Sketch(c.has_input, *bands) for c, *bands in zip(compared, own, whole_bands, strict=True)]

    def shingles(self, example: Example) -> bytes:
        """Return what two examples are compared by, for `NearDuplicates.add`."""
        sets = self._sets(example)
        return np.concatenate([np.array([len(sets), *map(len, sets)], np.uint64), *sets]).tobytes()

    def _sets(self, example: Example) -> tuple[Codes, ...]:
        """Return the shingles of the parts, of a record with an INPUT those of the whole prompt behind them."""
        parts = tuple(shingles(text, self.words) for text in parts_of(example))
        return (
            parts if len(parts) == WITH_INPUT - 2 else (*parts, shingles(whole_prompt(example), self.words))
        )

    def _bands_of(self, sets: list[Codes], minhash: Any) -> list[Codes]:
        """Return the band codes of each set."""
        offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
        matrix = minhash.digest_matrix_from_flat_token_hashes(
            np.concatenate(sets), offsets, self.permutations, SEED
        )
        return list(_band_codes(np.array(matrix.to_rows(), np.uint64), self.bands, self.rows))


class _BandTable:
    """Examples by the codes of their bands: chains of entries, the newest first. 12 bytes (up to 16) a band.

    An entry is example x bands + band. Its number takes 32 bits up to `LARGEST_INT32`, 64 from then on.
    """

    def __init__(self, bands: int) -> None:
        self._bands = bands
        self._heads = np.full(1 << 12, -1, np.int32)  # by slot: the newest entry of a chain
        self._next = np.empty(1 << 12, np.int32)  # by entry
        self._keys = np.empty(1 << 12, np.uint32)
        self._examples = np.empty(1 << 10, np.int64)  # by place in this table: the number of the example
        self._size = 0

    def find(self, codes: Codes) -> NDArray[np.int64]:
        """Return the numbers of the examples that share a band, each once, the earliest first."""
        places = _candidates(codes, self._heads, self._next, self._keys, MAX_CANDIDATES)
        return self._examples[places]

    def insert(self, codes: Codes, example: int) -> None:
        """Put an example in; numbers only rise."""
        first, entries = self._size * self._bands, (self._size + 1) * self._bands
        if entries > len(self._next):
            self._next = _grown(self._next, entries)
            self._keys = _grown(self._keys, entries)
        if entries > LARGEST_INT32 and self._heads.dtype == np.int32:
            self._heads, self._next = self._heads.astype(np.int64), self._next.astype(np.int64)
        if entries > len(self._heads):
            self._heads = np.full(2 * len(self._heads), -1, self._heads.dtype)
            _rehash(self._heads, self._next, self._keys, first)
        _insert(codes, first, self._heads, self._next, self._keys)
        if self._size >= len(self._examples):
            self._examples = _grown(self._examples, self._size + 1)
        self._examples[self._size] = example
        self._size += 1


class NearDuplicates:
    """The examples that were kept so far, in order.

    Memory: 12 bytes (up to 16) a band, twice for records with an INPUT, and 28 bytes an example; shingles lie in a temporary file.
    """

    def __init__(self, *, threshold: float, bands: int) -> None:
        self.threshold = threshold
        self._size = 0
        self._with_input = _BandTable(bands)  # records with an INPUT, by it and their answers
        self._whole_with_input = _BandTable(bands)  # the same records by whole prompt and answers
        self._without_input = _BandTable(bands)  # records without one, by whole prompt and answers
        self._offsets = np.zeros(1 << 10, np.int64)  # of each example in the file, in bytes
        self._ids = np.zeros((1 << 10, 2), np.uint64)
        self._source_of = np.zeros(1 << 10, np.int32)
        self._sources: dict[str, int] = {}
        self._file = tempfile.TemporaryFile(prefix="sft-shingles-")  # noqa: SIM115  lives as long as the index
        self._written = 0

    def add(
        self, compared: bytes, bands: Codes, whole_bands: Codes, example_id: str, source: str
    ) -> Drop | None:
        """Keep an example unless one that was kept is its near duplicate; return why it is not kept.

        Args:
            compared: Its shingles (`Sketcher.shingles`).
            bands: [B] of INPUT and answers, or of prompt and answers.
            whole_bands: [B] of the whole prompt and answers.
            example_id: Its id, for the reports of later ones.
            source: Its source, likewise.
        """
        sketch = _read(compared)
        own = self._with_input if sketch.has_input else self._without_input
        others = self._without_input if sketch.has_input else self._whole_with_input
        found = np.union1d(own.find(bands), others.find(whole_bands))
        for other in found.tolist():
            if alike := self._alike(sketch, self._read(other)):
                measured = ", ".join(f"{name} {value:.2f}" for name, value in alike.items())
                return Drop("near_duplicate", f"like {self._name(other)}: {measured} >= {self.threshold}")
        own.insert(bands, self._size)
        if sketch.has_input:
            self._whole_with_input.insert(whole_bands, self._size)
        self._note(compared, example_id, source)
        return None

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _alike(self, sketch: _Compared, other: _Compared) -> dict[str, float] | None:
        """Return how like two examples are, part by part; None where a part is below the threshold.

        Where one has an INPUT and the other none, whole prompts are compared; as much as the threshold of what the INPUT adds to its
        prompt must stand in the other, so that a long definition that two records share makes them no duplicates.
        """
        if sketch.has_input == other.has_input:
            names = ("instruction", "input", "answer") if sketch.has_input else ("prompt", "answer")
            pairs = zip(sketch.parts, other.parts, strict=True)
        else:
            names = ("prompt", "answer")
            pairs = zip((sketch.whole, sketch.parts[-1]), (other.whole, other.parts[-1]), strict=True)
            with_input, without = (sketch, other) if sketch.has_input else (other, sketch)
            added = np.setdiff1d(with_input.whole, with_input.parts[0], assume_unique=True)
            both = len(np.intersect1d(added, without.whole, assume_unique=True))
            if both < self.threshold * len(added):
                return None
        alike: dict[str, float] = {}
        for name, (ours, theirs) in zip(names, pairs, strict=True):
            alike[name] = jaccard(ours, theirs)
            if alike[name] < self.threshold:
                return None
        return alike

    def _name(self, number: int) -> str:
        source = list(self._sources)[self._source_of[number]]
        high, low = self._ids[number].tolist()
        return f"example {high:016x}{low:016x} of {source}"

    def _note(self, compared: bytes, example_id: str, source: str) -> None:
        """Remember what verification and reports need."""
        if self._size + 1 >= len(self._offsets):
            self._offsets = _grown(self._offsets, self._size + 2)
            self._source_of = _grown(self._source_of, self._size + 2)
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
        self._ids[self._size] = int(example_id[:16], 16), int(example_id[16:], 16)
        self._source_of[self._size] = self._sources.setdefault(source, len(self._sources))
        self._written += self._file.write(compared)
        self._size += 1
        self._offsets[self._size] = self._written

    def _read(self, i: int) -> _Compared:
        self._file.flush()
        start, end = int(self._offsets[i]), int(self._offsets[i + 1])
        return _read(os.pread(self._file.fileno(), end - start, start))


def _read(compared: bytes) -> _Compared:
    """Return the sets that `Sketcher.shingles` put together."""
    data = np.frombuffer(compared, np.uint64)
    count = int(data[0])
    cuts = 1 + count + np.cumsum([0, *data[1 : 1 + count].tolist()])
    return _compared(tuple(data[cuts[k] : cuts[k + 1]] for k in range(count)))


def whole_prompt(example: Example) -> str:
    """Return the system turn and all user turns."""
    system = "\n".join(m.content for m in example.messages if m.role == "system")
    return f"{system}\n{prompt_of(example)}"


def parts_of(example: Example) -> tuple[str, ...]:
    """Return (instruction, input, answers) of a record with an INPUT, else (prompt, answers)."""
    answers = "\n".join(answers_of(example))
    system = "\n".join(m.content for m in example.messages if m.role == "system")
    if example.input and sum(m.role == "user" for m in example.messages) == 1:
        return f"{system}\n{example.instruction}", example.input, answers
    return whole_prompt(example), answers


def jaccard(a: Codes, b: Codes) -> float:
    """Return the Jaccard similarity of two sorted sets; two empty ones are equal."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    either = len(a) + len(b) - both
    return both / either if either else 1.0


def _grown(array: NDArray[Any], least: int) -> NDArray[Any]:
    """Return a copy with room for `least` entries, at least twice as long: memory that is not written to is not used.

    `np.resize` would fill it with repeats of the old entries, and keep one more copy of them alive.
    """
    out = np.empty(max(2 * len(array), least), array.dtype)
    out[: len(array)] = array
    return out


@jit
def _band_codes(signatures: NDArray[np.uint64], bands: int, rows: int) -> NDArray[np.uint64]:
    """Return one code for each band of each signature, [documents, B]."""
    out = np.empty((len(signatures), bands), np.uint64)
    for i in range(len(signatures)):
        for b in range(bands):
            code = np.uint64(b + 1) * np.uint64(0x9E3779B97F4A7C15)
            for r in range(b * rows, (b + 1) * rows):
                code = (code ^ signatures[i, r]) * np.uint64(0xFF51AFD7ED558CCD)
                code ^= code >> np.uint64(32)
            out[i, b] = code
    return out


@jit
def _insert(
    bands: NDArray[np.uint64],
    first: int,
    heads: NDArray[Any],
    following: NDArray[Any],
    keys: NDArray[np.uint32],
) -> None:
    """Put one entry a band at the head of its chain."""
    mask = np.uint64(len(heads) - 1)
    for b in range(len(bands)):
        key = bands[b] >> np.uint64(32)
        slot = key & mask
        keys[first + b] = key
        following[first + b] = heads[slot]
        heads[slot] = first + b


@jit
def _rehash(heads: NDArray[Any], following: NDArray[Any], keys: NDArray[np.uint32], entries: int) -> None:
    """Chain all entries anew after the slots doubled."""
    mask = np.uint64(len(heads) - 1)
    for e in range(entries):
        slot = np.uint64(keys[e]) & mask
        following[e] = heads[slot]
        heads[slot] = e


@jit
def _candidates(
    bands: NDArray[np.uint64],
    heads: NDArray[Any],
    following: NDArray[Any],
    keys: NDArray[np.uint32],
    most: int,
) -> NDArray[np.int64]:
    """Return the examples that share a band, each once, the earliest first; the newest `most` of each band."""
    mask = np.uint64(len(heads) - 1)
    found = [np.int64(-1)]
    for b in range(len(bands)):
        key = bands[b] >> np.uint64(32)
        entry = heads[key & mask]
        taken = 0
        while entry >= 0 and taken < most:
            if np.uint64(keys[entry]) == key:
                found.append(np.int64(entry // len(bands)))
                taken += 1
            entry = following[entry]
    return np.unique(np.array(found))[1:]
