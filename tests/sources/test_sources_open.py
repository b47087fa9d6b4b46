"""From a source's config to its reader: `open_source`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import get_args

import pytest

from sft_dist.config.sources import (
    AlpacaSource,
    ChatSource,
    DemoSource,
    HubSource,
    NaturalInstructionsSource,
    SourceConfig,
)
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.sources import SOURCES, open_source


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_every_kind_of_the_config_has_a_reader():
    kinds = [get_args(m.model_fields["kind"].annotation)[0] for m in get_args(get_args(SourceConfig)[0])]
    assert sorted(kinds) == sorted(SOURCES)


def test_every_field_of_the_config_reaches_its_reader(tmp_path):
    row = {"q": "a", "o": "b", "s": "sys", "h": [["x", "y"]], "t": "task", "d": "set", "license": "MIT"}
    path = write(tmp_path / "x.jsonl", row)
    config = AlpacaSource(
        kind="alpaca",
        path=path,
        instruction_field="q",
        input_field=None,
        output_field="o",
        system_field="s",
        history_field="h",
        task="{t}",
        dataset="{d}",
        take_examples=5,
        share=0.5,
        epochs=2,
        license="MIT",
    )
    [e] = open_source("mine", config)
    assert [m.content for m in e.messages] == ["sys", "x", "y", "a", "b"]
    assert (e.task, e.source, e.origin) == ("task", "mine", ("dataset:set",))


def test_how_the_mixture_draws_does_not_change_the_fingerprint(tmp_path):
    path = write(tmp_path / "x.jsonl", {"instruction": "a", "output": "b"})
    first = open_source("mine", AlpacaSource(kind="alpaca", path=path)).fingerprint()
    assert (
        open_source(
            "mine", AlpacaSource(kind="alpaca", path=path, take_examples=3, weight=2.0, license="x")
        ).fingerprint()
        == first
    )
    assert open_source("mine", AlpacaSource(kind="alpaca", path=path, task="t")).fingerprint() != first


def test_the_demo(tmp_path):
    source = open_source("demo", DemoSource(kind="demo", examples_per_task=2))
    assert all(isinstance(e, Example) for e in source)
    assert source.files() == []
    with pytest.raises(UserError, match="names its own tasks"):
        open_source("demo", DemoSource(kind="demo", task="x"))


def test_other_kinds(tmp_path):
    chat = write(
        tmp_path / "c.jsonl",
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    )
    [e] = open_source("c", ChatSource(kind="chat", path=chat))
    assert e.output == "b"
    task = {"Definition": "d", "Instances": [{"input": "x", "output": "y"}]}
    ni = write(tmp_path / "task1.json", task)
    [e] = open_source("n", NaturalInstructionsSource(kind="natural_instructions", path=ni))
    assert e.task == "task1"


def test_a_hub_source_passes_its_subset_on(monkeypatch):
    class AskedFor(Exception):
        pass

    def load(*where):
        raise AskedFor(where)

    monkeypatch.setattr("sft_dist.sources.hub._load", load)
    with pytest.raises(AskedFor) as asked:
        open_source("h", HubSource(kind="hub", path="p", name="sub", split="dev", revision="abc"))
    assert asked.value.args == (("p", "sub", "dev", "abc", None),)


def test_a_wrong_field_name_is_an_error_at_once(tmp_path):
    path = write(tmp_path / "x.jsonl", *[{"prompt": "a", "completion": "b"}] * 3)
    with pytest.raises(
        UserError,
        match=r"data\.sources\.mine: none of the first 3 records.*'instruction' is missing .*prompt, completion.*line 1",
    ):
        open_source("mine", AlpacaSource(kind="alpaca", path=path))


def test_one_good_record_is_enough_to_open(tmp_path):
    path = write(tmp_path / "x.jsonl", {}, {}, {"instruction": "a", "output": "b"})
    assert len(list(open_source("mine", AlpacaSource(kind="alpaca", path=path)))) == 3


def test_a_source_without_records(tmp_path):
    with pytest.raises(UserError, match=r"data\.sources\.mine holds no records"):
        open_source("mine", AlpacaSource(kind="alpaca", path=write(tmp_path / "x.jsonl")))
    with pytest.raises(UserError, match="does not exist"):
        open_source("mine", AlpacaSource(kind="alpaca", path=str(tmp_path / "y.jsonl")))


def test_no_torch_and_no_datasets_with_the_plain_readers(tmp_path):
    path = write(tmp_path / "x.jsonl", {"instruction": "a", "output": "b"})
    code = f"""
import sys
from sft_dist.config.sources import AlpacaSource
from sft_dist.filters import build_filters
from sft_dist.holdout import decide
from sft_dist.sources import open_source
assert len(list(open_source("x", AlpacaSource(kind="alpaca", path={path!r})))) == 1
print([m for m in ("torch", "transformers", "datasets", "deepspeed", "pandas") if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
