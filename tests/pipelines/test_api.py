"""The documented Python use: own records in, a store out, and the store as a data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from sft_dist import api


def _config(tmp_path: Path) -> api.RunConfig:
    chats = [
        {
            "messages": [
                {"role": "user", "content": f"{n} + 1?"},
                {"role": "assistant", "content": f"It is {n + 1}."},
            ]
        }
        for n in range(20)
    ]
    return api.load(
        {
            "data": {
                "dir": str(tmp_path / "data"),
                "sources": {"mine": api.save_records(chats, tmp_path / "mine.jsonl")},
                "processes": 1,
            },
            "render": {"template": "chatml", "train_vocab_size": 300},
            "model": {"shape": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2}},
            "pack": {"seq_len": 128},
            "train": {"tokens_per_step": 256},
        }
    )


def test_records_become_a_store_and_a_data_set(tmp_path: Path) -> None:
    config = _config(tmp_path)
    summary = api.check(config)
    assert summary.examples == 20
    store = api.prepare(config)["mine"]
    assert [e.id for e in api.examples(config)] == [store.id_hex(i) for i in range(len(store))]
    rows = api.to_dataset(store)
    assert len(rows) == len(store) == 20
    for row in rows:
        trained = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert trained
        assert [row["labels"][i] for i in trained] == [row["input_ids"][i] for i in trained]
        assert len(trained) < len(row["input_ids"])
    assert api.check(config).exact


def test_mistakes_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(api.UserError, match=r"train\.epoch"):
        api.load({"train": {"epoch": 2}})
    with pytest.raises(api.UserError, match="no records"):
        api.save_records([], tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_a_file_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("name: mine\nmodel: {path: org/m}\n")
    assert api.load(tmp_path / "my.yaml", ["train.epochs=2"]).train.epochs == 2
