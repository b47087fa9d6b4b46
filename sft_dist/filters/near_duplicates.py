"""Near duplicates: MinHash LSH proposes, the exact Jaccard similarity of the word shingles decides.

Examples are compared part by part: instruction (where the record has an INPUT), prompt, answers; every part must reach
the threshold. The definition that thousands of examples of one task share, or a passage under many questions, makes
no duplicates.

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
SEED = 42  # of the permutations; any will do, but always the same


class Sketch(NamedTuple):
    """What near duplicates of an example are found by."""

    parts: tuple[Codes, ...]  # shingles of instruction, prompt, answers; sorted
    bands: Codes  # [B]


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
        parts = [tuple(shingles(text, self.words) for text in parts_of(e)) for e in examples]
        # Prompt and answers without the instruction: if each part reaches the threshold, so does their union.
        sets = [np.concatenate([p[-2], ~p[-1]]) for p in parts]
        offsets = np.cumsum([0, *map(len, sets)], dtype=np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(
            np.concatenate(sets), offsets, self.permutations, SEED
        )
        signatures = np.array(matrix.to_rows(), np.uint64)
        bands = _band_codes(signatures, self.bands, self.rows)
        return [Sketch(p, b) for p, b in zip(parts, bands, strict=True)]


class NearDuplicates:
    """The examples that were kept so far, in order. Memory: 12 bytes (up to 16) a band, and 8 bytes an example."""

    def __init__(self, *, threshold: float, bands: int) -> None:
        self.threshold = threshold
        self._bands = bands
        self._size = 0
        self._heads = np.full(1 << 12, -1, np.int32)  # by slot: the newest entry of a chain
        self._next = np.empty(1 << 12, np.int32)  # by entry (example x bands + band)
        self._keys = np.empty(1 << 12, np.uint32)
        self._offsets = np.zeros(1 << 10, np.int64)  # of each example in the file, in bytes
        self._file = tempfile.TemporaryFile(prefix="sft-shingles-")  # noqa: SIM115  lives as long as the index
        self._written = 0

    def add(self, sketch: Sketch) -> Drop | None:
        """Keep an example unless one that was kept is its near duplicate; return why it is not kept."""
        found = _candidates(sketch.bands, self._heads, self._next, self._keys, MAX_CANDIDATES)
        for other in found.tolist():
            parts = self._parts(other)
            if len(parts) != len(sketch.parts):
                continue  # one has an INPUT, the other none: nothing says which of its words are which
            alike = [jaccard(a, b) for a, b in zip(sketch.parts, parts, strict=True)]
            if min(alike) >= self.threshold:
                names = ("instruction", "prompt", "answer")[-len(alike) :]
                measured = ", ".join(f"{n} {v:.2f}" for n, v in zip(names, alike, strict=True))
                return Drop(
                    "near_duplicate", f"like kept example {other + 1}: {measured} >= {self.threshold}"
                )
        self._insert(sketch)
        return None

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def _insert(self, sketch: Sketch) -> None:
        first, entries = self._size * self._bands, (self._size + 1) * self._bands
        if entries > len(self._next):
            self._next = _grown(self._next, entries)
            self._keys = _grown(self._keys, entries)
        if entries > len(self._heads):
            self._heads = np.full(2 * len(self._heads), -1, np.int32)
            _rehash(self._heads, self._next, self._keys, first)
        _insert(sketch.bands, first, self._heads, self._next, self._keys)
        if self._size + 1 >= len(self._offsets):
            self._offsets = _grown(self._offsets, self._size + 2)
        lengths = np.array([len(sketch.parts), *map(len, sketch.parts)], np.uint64)
        self._written += self._file.write(np.concatenate([lengths, *sketch.parts]).tobytes())
        self._size += 1
        self._offsets[self._size] = self._written

    def _parts(self, i: int) -> list[Codes]:
        self._file.flush()
        start, end = int(self._offsets[i]), int(self._offsets[i + 1])
        data = np.frombuffer(os.pread(self._file.fileno(), end - start, start), np.uint64)
        count = int(data[0])
        cuts = 1 + count + np.cumsum([0, *data[1 : 1 + count].tolist()])
        return [data[cuts[k] : cuts[k + 1]] for k in range(count)]


def parts_of(example: Example) -> tuple[str, ...]:
    """Return (instruction, input, answers) of a record with an INPUT, else (prompt, answers)."""
    answers = "\n".join(answers_of(example))
    system = "\n".join(m.content for m in example.messages if m.role == "system")
    if example.input and sum(m.role == "user" for m in example.messages) == 1:
        return f"{system}\n{example.instruction}", example.input, answers
    return f"{system}\n{prompt_of(example)}", answers


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
    heads: NDArray[np.int32],
    following: NDArray[np.int32],
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
def _rehash(
    heads: NDArray[np.int32], following: NDArray[np.int32], keys: NDArray[np.uint32], entries: int
) -> None:
    """Chain all entries anew after the slots doubled."""
    mask = np.uint64(len(heads) - 1)
    for e in range(entries):
        slot = np.uint64(keys[e]) & mask
        following[e] = heads[slot]
        heads[slot] = e


@jit
def _candidates(
    bands: NDArray[np.uint64],
    heads: NDArray[np.int32],
    following: NDArray[np.int32],
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
