"""The last global batch of an epoch, when its rows do not divide: split full rows instead of dropping or repeating."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """An epoch's documents with the last batch spread.

    Attributes:
        order: int64 [D] the documents in their new order, as places in the old one.
        row_first: int64 [R+1] where each row begins, then D. R is a multiple of the rows of a batch.
    """

    order: NDArray[np.int64]
    row_first: NDArray[np.int64]


def spread_tail(lengths: NDArray[np.int32], row_first: NDArray[np.int64], rows_per_step: int) -> Tail:
    """Spread the last batch over `rows_per_step` rows.

    The fullest row that holds several documents is split in two of nearly equal length, again and again, until the
    batch has its rows; then every rank has work in every micro-step and the longest of them is shortest. A batch
    with fewer documents than rows is filled up with empty rows.

    Args:
        lengths: [D] tokens of each document, row by row.
        row_first: [R+1] where each row begins in `lengths`, then D.
        rows_per_step: Rows of a global batch.
    """
    n_rows = len(row_first) - 1
    order = np.arange(len(lengths))
    begin = n_rows // rows_per_step * rows_per_step
    if begin == n_rows:
        return Tail(order=order, row_first=row_first)
    rows = [
        list(range(a, b))
        for a, b in zip(row_first[begin:-1].tolist(), row_first[begin + 1 :].tolist(), strict=True)
    ]
    heap = [(-int(lengths[row].sum()), k) for k, row in enumerate(rows) if len(row) > 1]
    heapq.heapify(heap)
    while len(rows) < rows_per_step and heap:
        k = heapq.heappop(heap)[1]
        halves = _halves(rows[k], lengths)
        rows[k], new = halves
        for place, half in ((k, rows[k]), (len(rows), new)):
            if len(half) > 1:
                heapq.heappush(heap, (-int(lengths[half].sum()), place))
        rows.append(new)
    rows += [[]] * (rows_per_step - len(rows))
    order[row_first[begin] :] = [doc for row in rows for doc in row]
    ends = row_first[begin] + np.cumsum([len(row) for row in rows])
    return Tail(order=order, row_first=np.concatenate((row_first[: begin + 1], ends)))


def _halves(row: list[int], lengths: NDArray[np.int32]) -> tuple[list[int], list[int]]:
    """Deal the documents of a row, longest first, each to the shorter half."""
    halves: tuple[list[int], list[int]] = ([], [])
    tokens = [0, 0]
    for doc in sorted(row, key=lambda d: (-int(lengths[d]), d)):
        side = int(tokens[1] < tokens[0])
        halves[side].append(doc)
        tokens[side] += int(lengths[doc])
    return halves
