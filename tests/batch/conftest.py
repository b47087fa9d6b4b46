"""Small corpora from literal documents."""

import os

import numpy as np
import pytest

from sft_dist.core.records import Span, Tokens
from sft_dist.mix import Corpus
from sft_dist.shards import ShardWriter, Store, finish_store


@pytest.fixture
def make_corpus(tmp_path, monkeypatch):
    """Build a corpus from {source: [(token ids, spans)]}; the tasks alternate between "even" and "odd"."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    def make(sources):
        stores = {}
        for s, (source, docs) in enumerate(sources.items()):
            folder = tmp_path / source
            with ShardWriter(folder, 0, "int32", key={}) as writer:
                for i, (ids, spans) in enumerate(docs):
                    document = Tokens(
                        ids=np.asarray(ids, np.int32), spans=tuple(Span(*span) for span in spans)
                    )
                    writer.add(f"{s:016x}{i:016x}", i % 2, 0, document)
            finish_store(folder, key={}, tasks=["even", "odd"], sources=[source])
            stores[source] = Store.open(folder)
        return Corpus(stores)

    return make


@pytest.fixture
def random_corpus(make_corpus):
    """Two sources of heavy-tailed documents; the second half of each carries loss; ids tell documents apart."""

    def make(n=300, seed=0, longest=200):
        rng = np.random.default_rng(seed)
        lengths = np.clip(rng.lognormal(3, 1, n), 2, longest).astype(int)
        docs = []
        for i, length in enumerate(lengths.tolist()):
            half = max(length // 2, 1)
            docs.append((np.arange(length) + 1000 * i, [(half, length - half, 1.0 if i % 3 else 0.5)]))
        return make_corpus({"a": docs[: n // 3], "b": docs[n // 3 :]})

    return make
