"""Small corpora: {source: {task: number of examples}}."""

import os

import numpy as np
import pytest

from sft_dist.core.records import Span, Tokens
from sft_dist.mix import Corpus
from sft_dist.shards import ShardWriter, Store, finish_store


@pytest.fixture
def make_corpus(tmp_path, monkeypatch):
    """Build stores from {source: {task: n}}; `ids` may name the content address of an example of a source."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)

    def make(sources, ids=None, tokenizer=None):
        stores = {}
        for s, (source, tasks) in enumerate(sources.items()):
            folder = tmp_path / source
            key = {"tokenizer": (tokenizer or {}).get(source, "one")}
            with ShardWriter(folder, 0, "uint16", key=key) as writer:
                i = 0
                for t, n in enumerate(tasks.values()):
                    for _ in range(n):
                        address = (ids or {}).get((source, i), f"{s + 1:08x}{i:08x}" * 2)
                        document = Tokens(ids=np.array([1, 2, 3], np.int32), spans=(Span(2, 1, 1.0),))
                        writer.add(address, t, 0, document)
                        i += 1
            finish_store(folder, key=key, tasks=list(tasks), sources=[source])
            stores[source] = Store.open(folder)
        return Corpus(stores)

    return make
