"""Files that name no task: the root verb of the instruction names it, in any format."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from sft_dist.config.load import validate
from sft_dist.config.sources import AlpacaSource, ChatSource
from sft_dist.core.records import BadRecord, make_example
from sft_dist.mix import Mixture, draw
from sft_dist.mix.corpus import Corpus
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.shards import Store
from sft_dist.sources import open_source

INSTRUCTIONS = {
    "Write a poem about the sea.": "write",
    "Given the text, please summarize it in a line.": "summarize",
    "You will see a sum. Compute it.": "compute",
    "Is the sky blue?": "other",
}


def lines(path: Path, records: list[dict]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_the_root_verb_names_the_task_and_is_part_of_the_id(tmp_path: Path):
    records = [{"instruction": i, "input": "in", "output": "out", "set": "s"} for i in INSTRUCTIONS]
    path = lines(tmp_path / "a.jsonl", records)
    found = list(open_source("a", AlpacaSource(kind="alpaca", path=path, task="{set}/{__verb__}")))
    assert [e.task for e in found] == [f"s/{verb}" for verb in INSTRUCTIONS.values()]
    for e in found:
        again = make_example(task=e.task, source="a", messages=e.messages, input_start=e.input_start)
        assert (e, e.id) == (again, again.id)
    plain = list(open_source("a", AlpacaSource(kind="alpaca", path=path, task="{set}")))
    assert [e.id[:16] for e in found] == [e.id[:16] for e in plain]  # the same content


def test_conversations_and_records_that_cannot_be_read(tmp_path: Path):
    turns = [[{"role": "user", "content": i}, {"role": "assistant", "content": "out"}] for i in INSTRUCTIONS]
    path = lines(tmp_path / "c.jsonl", [*({"messages": t} for t in turns), {"messages": 3}])
    found = list(open_source("c", ChatSource(kind="chat", path=path, task="{__verb__}")))
    assert [e.task for e in found[:4]] == list(INSTRUCTIONS.values())
    assert isinstance(found[4], BadRecord)


def test_what_is_rare_in_a_file_without_tasks_can_be_mixed_evenly(tmp_path: Path):
    rare = [{"instruction": f"Translate {k} into French.", "output": f"le {k}"} for k in range(10)]
    many = [{"instruction": f"Write {k} lines.", "output": f"line {k}"} for k in range(90)]
    path = lines(tmp_path / "a.jsonl", many + rare)
    config = validate(
        {
            "data": {
                "dir": str(tmp_path / "data"),
                "processes": 1,
                "sources": {"a": {"kind": "alpaca", "path": path, "task": "{__verb__}"}},
            },
            "render": {"train_vocab_size": 300, "template": "chatml"},
            "model": {"shape": {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1}},
        }
    )
    corpus = Corpus({n: Store.open(p) for n, p in prepare(config).stores.items()})

    def counts(mixture: Mixture) -> Counter[str]:
        drawn = np.asarray(corpus.task_of)[draw(corpus, mixture, seed=0, epoch=0)]
        return Counter(corpus.task_names[t] for t in drawn.tolist())

    assert counts(Mixture()) == {"write": 90, "translate": 10}
    assert counts(Mixture(rate="temperature", temperature=2.0)) == {"write": 75, "translate": 25}
