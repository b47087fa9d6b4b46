"""Best-fit decreasing, in literal cases, against a slow twin, and against the bound."""

import time

import numpy as np
import pytest

from sft_dist.pack import assign_rows


def twin(lengths, seq_len, window):
    """The same rule in the obvious way: look at every open row; among equally full ones the last touched wins."""
    rows = [0] * len(lengths)
    free = []
    touched = []
    for start in range(0, len(lengths), window):
        part = range(start, min(start + window, len(lengths)))
        for clock, doc in enumerate(sorted(part, key=lambda d: (-lengths[d], d))):
            fitting = [r for r in range(len(free)) if free[r] >= lengths[doc] and free[r] < seq_len]
            if fitting:
                row = min(fitting, key=lambda r: (free[r], [-t for t in touched[r]]))
            else:
                row = len(free)
                free.append(seq_len)
                touched.append((0, 0))
            free[row] -= lengths[doc]
            touched[row] = (start, clock)
            rows[doc] = row
    return rows


@pytest.mark.parametrize(
    ("lengths", "seq_len", "rows"),
    [
        ([5, 3, 4, 2], 8, [0, 0, 1, 1]),
        ([8, 8], 8, [0, 1]),
        ([1, 1, 1, 1, 1], 2, [0, 0, 1, 1, 2]),
        ([6, 5, 3, 2], 8, [0, 1, 1, 0]),  # each finds the row that it fills
        ([3, 7, 6], 10, [0, 0, 1]),  # 3 fits both rows and takes the fuller one
        ([], 8, []),
        ([1], 1, [0]),
    ],
)
def test_literal(lengths, seq_len, rows):
    assert assign_rows(lengths, seq_len).tolist() == rows


def test_open_rows_are_carried_into_the_next_window():
    # Window of two: 6 and 5 open two rows; 2 and 3 of the next window fill them.
    assert assign_rows([6, 5, 2, 3], seq_len=8, window=2).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("seed", range(40))
def test_equals_the_slow_twin(seed):
    rng = np.random.default_rng(seed)
    seq_len = int(rng.choice([7, 64, 65, 100, 4095, 4096, 5000, 70000]))
    lengths = np.minimum(1 + rng.lognormal(np.log(seq_len / 6), 1.0, 300).astype(np.int32), seq_len)
    window = int(rng.choice([1, 10, 64, 300, 5000]))
    assert assign_rows(lengths, seq_len, window).tolist() == twin(lengths.tolist(), seq_len, window)


@pytest.mark.parametrize("seed", range(20))
def test_no_row_over_capacity_and_no_row_without_documents(seed):
    rng = np.random.default_rng(100 + seed)
    seq_len = int(rng.integers(1, 3000))
    lengths = rng.integers(1, seq_len + 1, 2000)
    rows = assign_rows(lengths, seq_len, window=int(rng.integers(1, 2500)))
    tokens = np.bincount(rows, lengths)
    assert tokens.max() <= seq_len
    assert tokens.min() >= 1


def test_a_document_that_cannot_fit_is_our_mistake():
    with pytest.raises(AssertionError, match="longer than a row"):
        assign_rows([9], seq_len=8)
    with pytest.raises(AssertionError, match="empty"):
        assign_rows([0], seq_len=8)


def test_a_million_documents_in_a_third_of_a_second_at_a_thousandth_over_the_bound():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.9, 1.0, 1_000_000), 2, 4096).astype(np.int32)
    assign_rows(lengths[:10], 4096)  # compile
    start = time.process_time()
    rows = assign_rows(lengths, 4096)
    seconds = time.process_time() - start
    bound = -(-int(lengths.sum()) // 4096)
    assert (rows.max() + 1) / bound - 1 <= 0.001
    assert seconds <= 0.3
