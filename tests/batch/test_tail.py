"""The last batch: rows are split, never dropped or repeated."""

import numpy as np
import pytest

from sft_dist.batch.last_batch import spread_tail


def spread(rows, rows_per_step):
    """Rows of document lengths in, rows of document lengths out."""
    lengths = np.array([n for row in rows for n in row], np.int32)
    first = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    tail = spread_tail(lengths, first, rows_per_step)
    assert sorted(tail.order.tolist()) == list(range(len(lengths)))
    lengths = lengths[tail.order].tolist()
    return [
        lengths[a:b] for a, b in zip(tail.row_first[:-1].tolist(), tail.row_first[1:].tolist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("rows", "rows_per_step", "out"),
    [
        ([[5, 3], [4, 2]], 2, [[5, 3], [4, 2]]),  # divides
        ([[5, 3], [4, 2], [6, 1, 1]], 2, [[5, 3], [4, 2], [6], [1, 1]]),
        ([[4, 3, 2, 1]], 2, [[4, 1], [3, 2]]),
        ([[8], [4, 3]], 3, [[8], [4], [3]]),  # the fullest row that can be split
        ([[8], [7]], 4, [[8], [7], [], []]),  # nothing to split: empty rows
        ([[1, 1]], 4, [[1], [1], [], []]),
        ([[4, 4, 4, 4]], 4, [[4], [4], [4], [4]]),
    ],
)
def test_literal(rows, rows_per_step, out):
    assert spread(rows, rows_per_step) == out


@pytest.mark.parametrize("seed", range(30))
def test_no_row_grows_and_whole_batches_stay(seed):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(1, 50, rng.integers(1, 8)).tolist() for _ in range(int(rng.integers(1, 40)))]
    rows_per_step = int(rng.integers(1, 20))
    out = spread(rows, rows_per_step)
    whole = len(rows) // rows_per_step * rows_per_step
    assert len(out) == -(-len(rows) // rows_per_step) * rows_per_step
    assert out[:whole] == rows[:whole]
    if len(rows) > whole:
        assert max(map(sum, out[whole:])) <= max(map(sum, rows[whole:]))
