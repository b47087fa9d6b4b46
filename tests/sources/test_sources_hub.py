"""Datasets that the `datasets` library opens, without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord
from sft_dist.sources.hub import HubReader, import_datasets


@pytest.fixture
def cache(tmp_path, monkeypatch):
    datasets = import_datasets()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    rows = [
        {"q": "1+1", "a": "2", "kind": "sum"},
        {"q": "2*3", "a": None, "kind": "product"},
        {"q": "2-1", "a": "1", "kind": "sum"},
    ]
    (place / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return place


def test_a_folder_with_a_field_mapping(cache, folder):
    source = HubReader(
        "h", path=str(folder), format="alpaca", fields={"instruction": "q", "output": "a"}, task="{kind}"
    )
    first, bad, last = source
    assert (first.instruction, first.output, first.task) == ("1+1", "2", "sum")
    assert isinstance(bad, BadRecord)
    assert (bad.line, bad.reason) == (2, "field 'output' holds null, not text")
    assert last.output == "1"
    assert all(f.is_file() for f in source.files())


def test_data_files_say_which_files_of_a_dataset_are_read(cache, folder):
    (folder / "more").mkdir()
    (folder / "more" / "extra.jsonl").write_text('{"q": "3+3", "a": "6", "kind": "sum"}\n')
    options = {"format": "alpaca", "fields": {"instruction": "q", "output": "a"}}

    def read(path, **given):
        source = HubReader("h", path=str(path), **given, **options)
        return [e.instruction for e in source if not isinstance(e, BadRecord)], source.fingerprint()

    some, key = read(folder, data_files="more/*.jsonl")
    assert some == ["3+3"]
    assert read(folder, data_files=("train.jsonl", "more/extra.jsonl"))[0] == ["1+1", "2-1", "3+3"]
    assert read(folder, split="dev", data_files={"dev": "more/extra.jsonl"})[0] == ["3+3"]
    assert read("json", data_files=str(folder / "more" / "extra.jsonl"))[0] == ["3+3"]
    assert key not in {read(folder, data_files="train.jsonl")[1], read(folder)[1]}
    with pytest.raises(UserError, match=r"files absent\.jsonl\): .*absent\.jsonl"):
        read(folder, data_files="absent.jsonl")


def test_raw_text(cache, folder):
    first, bad, last = HubReader("h", path=str(folder), format="text", fields={"text": "a"})
    assert [(e.form, e.messages[-1].content) for e in (first, last)] == [("text", "2"), ("text", "1")]
    assert isinstance(bad, BadRecord)
    with pytest.raises(UserError, match="which the format 'text' does not have; it has text"):
        HubReader("h", path=str(folder), format="text", fields={"output": "a"})


def test_files_of_a_saved_dataset_are_refused(cache, tmp_path):
    cache.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="written by save_to_disk, of which single files cannot be read"):
        HubReader("h", path=str(tmp_path / "saved"), data_files="x.arrow")


def test_conversations_saved_to_disk(cache, tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    data = cache.Dataset.from_list([{"talk": turns, "set": "a"}])
    data.save_to_disk(tmp_path / "plain")
    cache.DatasetDict({"dev": data}).save_to_disk(tmp_path / "dict")
    for path, split in (("plain", "train"), ("dict", "dev")):
        [e] = HubReader(
            "h", path=str(tmp_path / path), split=split, fields={"messages": "talk"}, dataset="{set}"
        )
        assert (e.output, e.origin) == ("ho", ("dataset:a",))
    with pytest.raises(UserError, match=r"has no split 'dex', so .* it has dev\. Did you mean 'dev'"):
        HubReader("h", path=str(tmp_path / "dict"), split="dex", fields={"messages": "talk"})


def test_mistakes_are_named(cache, folder):
    with pytest.raises(
        UserError,
        match=r"fields names 'instructions', which the format 'alpaca' does not have.*Did you mean 'instruction'",
    ):
        HubReader("h", path=str(folder), format="alpaca", fields={"instructions": "q"})
    with pytest.raises(
        UserError, match=r"fields\.output names column 'answer', which .* does not have.* it has q, a, kind"
    ):
        HubReader("h", path=str(folder), format="alpaca", fields={"instruction": "q", "output": "answer"})
    with pytest.raises(UserError, match=r"cannot open .*split test"):
        HubReader("h", path=str(folder), split="test")
    with pytest.raises(UserError, match=r"cannot open 'no/such-dataset'.*check the names"):
        HubReader("h", path="no/such-dataset")


def test_fingerprint_follows_content_and_options(cache, folder):
    def of(**options):
        return HubReader(
            "h", path=str(folder), format="alpaca", fields={"instruction": "q", "output": "a"}, **options
        ).fingerprint()

    first = of()
    assert of() == first
    assert of(task="x") != first
    with (folder / "train.jsonl").open("a") as f:
        f.write('\n{"q": "x", "a": "y", "kind": "z"}')
    assert of() != first


def test_no_torch_arrives_with_the_library(folder, tmp_path):
    code = f"""
import os, sys
from sft_dist.sources.hub import HubReader, import_datasets
reader = HubReader("h", path={str(folder)!r}, format="alpaca", fields={{"instruction": "q", "output": "a"}})
assert len(list(reader)) == 3
stream = import_datasets().load_dataset({str(folder)!r}, split="train", streaming=True)
assert len(list(stream)) == 3
heavy = sorted(m for m in ("torch", "transformers", "deepspeed", "jax", "tensorflow") if m in sys.modules)
print(heavy, os.environ.get("USE_TORCH"))
"""
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "[] None"
