"""Documents end to end, and targets as positions: literal batches, and a slow twin with labels."""

import numpy as np
import pytest

from sft_dist.batch import collate, sequence_shard
from sft_dist.core.records import Row


def row(*docs):
    """A row of (document, first token, tokens)."""
    columns = np.array(docs, np.int64).reshape(-1, 3)
    return Row(
        docs=columns[:, 0], starts=columns[:, 1].astype(np.int32), lengths=columns[:, 2].astype(np.int32)
    )


@pytest.fixture
def corpus(make_corpus):
    return make_corpus(
        {
            "a": [([11, 12, 13, 14], [(2, 2, 1.0)]), ([21, 22, 23, 24, 25], [(1, 1, 0.5), (3, 2, 2.0)])],
            "b": [([31, 32], [(1, 1, 1.0)])],
        }
    )


def test_two_rows(corpus):
    batch = collate(corpus, [row((1, 0, 5), (0, 0, 4)), row((2, 0, 2))])
    assert batch.input_ids.tolist() == [21, 22, 23, 24, 25, 11, 12, 13, 14, 31, 32]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 5, 9, 11]
    assert batch.max_seqlen == 5
    # Each target is predicted by the position before it, in its own document.
    assert batch.target_ids.tolist() == [22, 24, 25, 13, 14, 32]
    assert batch.target_positions.tolist() == [0, 2, 3, 6, 7, 9]
    assert batch.target_weights.tolist() == [0.5, 2.0, 2.0, 1.0, 1.0, 1.0]
    assert batch.target_tasks.tolist() == [1, 1, 1, 0, 0, 0]
    assert batch.doc_ids == ("0" * 31 + "1", "0" * 32, "0" * 15 + "1" + "0" * 16)
    assert batch.doc_cost_tokens == 25 + 16 + 4


def test_a_slice_never_trains_its_first_token(corpus):
    batch = collate(corpus, [row((1, 3, 2))])  # tokens 24, 25; both carry loss in the whole document
    assert batch.input_ids.tolist() == [24, 25]
    assert batch.position_ids.tolist() == [0, 1]
    assert (batch.target_ids.tolist(), batch.target_positions.tolist()) == ([25], [0])
    batch = collate(corpus, [row((1, 0, 4))])
    assert (batch.target_ids.tolist(), batch.target_weights.tolist()) == ([22, 24], [0.5, 2.0])


def test_no_rows_and_empty_rows(corpus):
    for rows in ((), (row(),)):
        batch = collate(corpus, rows)
        assert batch.input_ids.tolist() == [0, 0]  # something to run the model on
        assert batch.cu_seqlens.tolist() == [0, 2]
        assert (batch.doc_ids, batch.doc_cost_tokens) == ((), 0)
        assert batch.target_ids.shape == batch.target_positions.shape == batch.target_weights.shape == (0,)


def test_dtypes(corpus):
    batch = collate(corpus, [row((0, 0, 4))])
    assert [getattr(batch, name).dtype.name for name in ("input_ids", "position_ids", "cu_seqlens")] == [
        "int64",
        "int64",
        "int32",
    ]
    assert [
        getattr(batch, "target_" + name).dtype.name for name in ("positions", "ids", "weights", "tasks")
    ] == [
        "int64",
        "int64",
        "float32",
        "int64",
    ]


def test_equals_the_twin_with_labels(random_corpus):
    corpus = random_corpus(60, seed=1)
    rng = np.random.default_rng(2)
    docs = []
    for i in rng.permutation(60)[:25].tolist():
        stored = int(corpus.lengths[i])
        start = int(rng.integers(0, stored))
        docs.append((i, start, int(rng.integers(1, stored - start + 1))))
    batch = collate(corpus, [row(*docs[:10]), row(*docs[10:])])
    ids, weights = [], []
    for i, start, length in docs:
        weight = np.zeros(int(corpus.lengths[i]))
        for span in corpus.spans(i):
            weight[span.start : span.start + span.length] = span.weight
        weight[start] = 0
        ids += corpus.token_ids(i)[start : start + length].tolist()
        weights += weight[start : start + length].tolist()
    positions = [p - 1 for p, w in enumerate(weights) if w]
    assert batch.input_ids.tolist() == ids
    assert batch.target_positions.tolist() == positions
    assert batch.target_ids.tolist() == [ids[p + 1] for p in positions]
    assert batch.target_weights.tolist() == [w for w in weights if w]


def slices(batch, size):
    return [sequence_shard(batch, place, size) for place in range(size)]


def test_slices_of_rows_that_two_ranks_share(corpus):
    """11 tokens and a filler; the second document (tokens 5 to 8) crosses the border of the slices."""
    whole = collate(corpus, [row((1, 0, 5), (0, 0, 4)), row((2, 0, 2))])
    first, second = slices(whole, 2)
    assert first.input_ids.tolist() == [21, 22, 23, 24, 25, 11]
    assert second.input_ids.tolist() == [12, 13, 14, 31, 32, 0]
    assert first.position_ids.tolist() == [0, 1, 2, 3, 4, 0]
    assert second.position_ids.tolist() == [1, 2, 3, 0, 1, 0]
    for part in (first, second):  # borders of the whole rows, the filler a document of its own
        assert part.cu_seqlens.tolist() == [0, 5, 9, 11, 12]
        assert part.cu_seqlens.dtype == np.int32
        assert (part.max_seqlen, part.doc_ids) == (5, whole.doc_ids)
    # a target belongs to the slice of its predicting token
    assert (first.target_positions.tolist(), first.target_ids.tolist()) == ([0, 2, 3], [22, 24, 25])
    assert (second.target_positions.tolist(), second.target_ids.tolist()) == ([0, 1, 3], [13, 14, 32])
    assert (first.target_weights.tolist(), second.target_tasks.tolist()) == ([0.5, 2.0, 2.0], [0, 0, 0])
    assert [(p.offset, p.padding, p.doc_cost_tokens) for p in (first, second)] == [(0, 0, 45), (6, 1, 0)]


def test_a_target_is_predicted_across_the_border(corpus):
    first, second = slices(
        collate(corpus, [row((0, 0, 4))]), 2
    )  # 11 12 | 13 14, both of the second half targets
    assert (first.target_positions.tolist(), first.target_ids.tolist()) == ([1], [13])
    assert (second.target_positions.tolist(), second.target_ids.tolist()) == ([0], [14])


def test_a_stand_in_and_rows_shorter_than_the_group_give_every_rank_a_token(corpus):
    for part in slices(collate(corpus, []), 4):
        assert (len(part.input_ids), part.padding, len(part.target_ids)) == (1, 1, 0)
        assert part.cu_seqlens.tolist() == [0, 2, 4]
    parts = slices(collate(corpus, [row((2, 0, 2))]), 4)
    assert [p.padding for p in parts] == [0, 0, 1, 1]
    assert [p.target_ids.tolist() for p in parts] == [[32], [], [], []]
    assert parts[0].max_seqlen == 2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8])
def test_slices_count_every_token_target_and_cost_once(random_corpus, size):
    corpus = random_corpus(20)
    whole = collate(corpus, [row(*((i, 0, int(corpus.lengths[i])) for i in range(20)))])
    parts = slices(whole, size)
    assert sum(len(p.input_ids) - p.padding for p in parts) == len(whole.input_ids)
    assert sum(p.doc_cost_tokens for p in parts) == whole.doc_cost_tokens
    assert len({len(p.input_ids) for p in parts}) == 1
    for name in ("target_ids", "target_weights", "target_tasks"):
        assert np.concatenate([getattr(p, name) for p in parts]).tolist() == getattr(whole, name).tolist()
    positions = np.concatenate([p.offset + p.target_positions for p in parts])
    assert positions.tolist() == whole.target_positions.tolist()
