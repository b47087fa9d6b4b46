"""Several stores behind one index."""

import numpy as np
import pytest

from sft_dist.core.errors import UserError
from sft_dist.mix import Corpus


def test_one_index_over_all_stores(make_corpus):
    corpus = make_corpus({"a": {"x": 2, "y": 1}, "b": {"z": 1, "x": 2}})
    assert len(corpus) == 6
    assert corpus.source_of.tolist() == [0, 0, 0, 1, 1, 1]
    assert [corpus.task_names[t] for t in corpus.task_of] == ["x", "x", "y", "z", "x", "x"]
    assert corpus.lengths.tolist() == [3] * 6
    store, local = corpus.locate(4)
    assert (store.source_names, local) == (["b"], 1)
    assert corpus.id_hex(4) == f"{2:08x}{1:08x}" * 2
    assert corpus.token_ids(5, 1, 2).tolist() == [2, 3]


def test_fingerprint_changes_with_content_and_order(make_corpus):
    one = make_corpus({"a": {"x": 2}, "b": {"y": 1}})
    assert Corpus(dict(zip(["b", "a"], reversed(one.stores), strict=True))).fingerprint != one.fingerprint
    assert Corpus(dict(zip(["a", "b"], one.stores, strict=True))).fingerprint == one.fingerprint


def test_no_sources(make_corpus):
    with pytest.raises(UserError, match="no sources"):
        Corpus({})


def test_stores_of_different_tokenizers_never_mix(make_corpus):
    with pytest.raises(UserError, match=r"different tokenizers \(a: one; b: two\)"):
        make_corpus({"a": {"x": 1}, "b": {"x": 1}}, tokenizer={"b": "two"})


def test_slices(make_corpus):
    corpus = make_corpus({"a": {"x": 1}, "b": {"x": 1}})  # documents of 3 tokens, token 2 carries loss
    both = np.array([1, 0])
    whole = corpus.slices(both, 3, keep_end=True)
    assert (whole.starts.tolist(), whole.lengths.tolist()) == ([0, 0], [3, 3])
    assert whole.target_weights.tolist() == [1.0, 1.0]
    end = corpus.slices(both, 2, keep_end=True)
    assert (end.starts.tolist(), end.target_tokens.tolist()) == ([1, 1], [1, 1])
    assert corpus.slices(both, 2, keep_end=False).target_tokens.tolist() == [0, 0]
    assert corpus.slices(both, 1, keep_end=True).target_tokens.tolist() == [
        0,
        0,
    ]  # it would be the first token
