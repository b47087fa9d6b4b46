"""A store of many shards and what reading it costs: `python store_of_many.py FOLDER`. Prints JSON."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from sft_dist.core.records import Span, Tokens
from sft_dist.shards import ShardWriter, Store, finish_store

SHARDS, EXAMPLES, LENGTH = 1000, 40, 200
KEY = {"input": "many"}


def build(folder: Path) -> None:
    """Write 1,000 shards of 40 examples of 200 tokens: 32 MB of tokens."""
    rng = np.random.default_rng(0)
    for shard in range(SHARDS):
        with ShardWriter(folder, shard, "int32", key=KEY) as writer:
            for i in range(EXAMPLES):
                ids = rng.integers(0, 50_000, LENGTH).astype(np.int32)
                name = f"{shard * EXAMPLES + i:032x}"
                writer.add(name, 0, 0, Tokens(ids=ids, spans=(Span(100, 100, 1.0),)))
    finish_store(folder, key=KEY, tasks=["many"], sources=["many"])


def memory(kind: str) -> int:
    """Bytes of this process of one kind, from the kernel's own account."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(kind)


def measure(folder: Path) -> dict[str, float]:
    """Open it, plan an epoch, collate the first batch; then touch every token."""
    from sft_dist.batch import Planner, collate
    from sft_dist.mix import Corpus
    from sft_dist.pack import CostModel

    cost = CostModel.of_shape(
        hidden_size=64, layers=1, attention_size=64, kv_size=64, intermediate_size=128, vocab_size=50_000
    )

    def first_batch() -> tuple[Corpus, int]:
        corpus = Corpus({"many": Store.open(folder, KEY)})
        planner = Planner(
            corpus, seq_len=4096, rows_per_step=8, micro_rows=1, world_size=8, cost=cost, seed=0
        )
        return corpus, len(collate(corpus, planner.epoch(0).step(0).micro_rows[0][0]).input_ids)

    first_batch()  # numba loads what it compiled on this machine: 0.4 s, whatever the store
    began = time.monotonic()
    corpus, tokens = first_batch()
    first_s = time.monotonic() - began
    before = memory("Anonymous")
    total = 0
    for i in range(len(corpus)):
        total += int(corpus.token_ids(i).sum())
    return {
        "first_batch_s": first_s,
        "tokens_in_batch": tokens,
        "anonymous_bytes": memory("Anonymous") - before,
        "token_bytes": SHARDS * EXAMPLES * LENGTH * 4,
        "mapped_bytes": memory("Rss") - memory("Anonymous"),
        "sum": total,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(Path(sys.argv[1]))))
