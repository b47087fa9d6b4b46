"""The three plugins of docs/plugins.md, as they stand there; and what a plugin may not do."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sft_dist import api
from sft_dist.config import plugins
from sft_dist.evals import metrics
from sft_dist.filters import filters_fingerprint
from sft_dist.pipelines.train.run_folder import absolute
from sft_dist.train.callbacks import Callbacks

PAGE = Path(__file__).parents[2] / "docs" / "plugins.md"
MODEL = {"model": {"path": "x"}}


@pytest.fixture(autouse=True)
def own_tables() -> Iterator[None]:
    """Leave no plugin behind."""
    tables: tuple[dict[str, Any], ...] = (
        plugins.METRICS,
        plugins.FILTERS,
        plugins.CALLBACKS,
        metrics.METRICS,
    )
    before = [dict(table) for table in tables]
    yield
    for table, kept in zip(tables, before, strict=True):
        table.clear()
        table.update(kept)


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Write the page's modules into the current folder; return the config that stands below each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = re.findall(r"```python\n# (\w+)\.py\n(.*?)```\s+```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 3
    for name, text, _ in found:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    return {name: yaml.safe_load(config) for name, _, config in found}


def test_the_metric_judges(examples: dict[str, dict[str, Any]]) -> None:
    config = api.load(MODEL | examples["length_metric"])
    metric = metrics.METRICS[config.eval.metric]
    assert metric.function("abcd", ["ab", "abc"]) == 0.75
    assert metrics.title_of("near_length") == "length"
    with pytest.raises(api.UserError, match="'near' is no metric; use one of auto, .*near_length"):
        api.load(MODEL | {"eval": {"metric": "near"}})


def test_the_filter_drops_and_counts(examples: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    records = [
        {"instruction": f"Say it {n}.", "output": "QUIET PLEASE" if n % 4 == 0 else f"Quiet, please {n}."}
        for n in range(20)
    ]
    values = examples["shouting_filter"]
    values["data"] |= {
        "dir": str(tmp_path / "data"),
        "sources": {"mine": api.save_records(records, tmp_path / "m.jsonl")},
    }
    values["data"]["processes"] = 1
    values |= {
        "render": {"template": "chatml", "train_vocab_size": 300},
        "model": {"shape": {"hidden_size": 32, "intermediate_size": 64, "layers": 1, "heads": 2}},
        "pack": {"seq_len": 128},
        "train": {"tokens_per_step": 256},
    }
    config = api.load(values)
    assert len(api.prepare(config)["mine"]) == 15
    rejects = (tmp_path / "data" / "rejects" / "mine.jsonl").read_text()
    assert rejects.count('"shouting"') == 5
    assert "100% capitals" in rejects
    before = filters_fingerprint(config.data.filters)
    own = plugins.FILTERS["shouting"]
    assert filters_fingerprint(config.data.filters) == before
    plugins.FILTERS["shouting"] = metrics.Metric  # another text behind the same name
    assert filters_fingerprint(config.data.filters) != before
    plugins.FILTERS["shouting"] = own
    values["data"]["filters"]["own"] = {"shouting": {"share": 0.5}}
    with pytest.raises(api.UserError, match=r"data.filters.own.shouting: the rule does not take"):
        api.prepare(api.load(values | {"data": values["data"] | {"dir": str(tmp_path / "other")}}))
    values["data"]["filters"]["own"] = {"quiet": {}}
    with pytest.raises(api.UserError, match="'quiet' is a rule that no plugin adds; plugins add: shouting"):
        api.load(values)


def test_the_callback_looks(
    examples: dict[str, dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = api.load(MODEL | examples["best_file"])
    assert absolute(config).plugins == (str(tmp_path / "best_file.py"),)
    api.add_callback(
        "faulty", lambda run: SimpleNamespace(on_step=lambda metrics: 1 / 0, on_end=lambda state: run)
    )
    callbacks = Callbacks(plugins.CALLBACKS, tmp_path, is_main=True)
    for loss in (2.0, 1.5, 1.75):
        callbacks.tell("on_step", SimpleNamespace(loss=loss))
    callbacks.tell("on_save", 3, tmp_path)
    callbacks.tell("on_end", "finished")
    assert (tmp_path / "lowest.txt").read_text() == "finished 1.5000"
    (tmp_path / "lowest.txt").unlink()
    Callbacks(plugins.CALLBACKS, tmp_path, is_main=False).tell("on_end", "finished")
    assert not (tmp_path / "lowest.txt").exists()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "none.py is no file"),
        ("no_such_module_here", None, "cannot be imported .ModuleNotFoundError"),
        ("broken.py", "1 / 0", "broken.py cannot be imported .ZeroDivisionError: division by zero"),
        ("json.py", "", "json.py has the name of another module"),
        ("taken.py", "from sft_dist import api\napi.add_metric('rouge_l', len, title='t', note='n')", "'rouge_l' is built in"),
        ("bare.py", "from sft_dist import api\nclass R: name = 'r'\napi.add_filter(R)", "the rule R has no reasons"),
    ],
)  # fmt: skip
def test_a_plugin_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(api.UserError, match=message):
        api.load(MODEL | {"plugins": [name]})
