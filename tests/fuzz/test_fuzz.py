"""Random configs, YAML, overrides, records, templates, files and command words: a value, a counted drop or one sentence; never another error.

Each fuzzer takes a few seconds here. For longer: FUZZ_EXAMPLES=20000 python -m pytest tests/fuzz. What the fuzzers can draw is
held to the list in bad_inputs.py.
"""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import strategies as draws
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sft_dist.checkpoint.index import DamagedError, Index, OldFormatError, read_index, write_index
from sft_dist.cli import main
from sft_dist.config.load import (
    compose,
    config_from_json,
    config_to_json,
    load_config,
    load_run_config,
    validate,
)
from sft_dist.config.sources import AlpacaSource, ChatSource
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint, write_checked
from sft_dist.core.heartbeat import Pulse, who_stalls
from sft_dist.core.records import BadRecord, Drop, Example, Tokens
from sft_dist.core.runfolder import RunFolder
from sft_dist.core.terminal import SafeConsole
from sft_dist.model.weight_files import INDEX, BaseFiles
from sft_dist.pipelines.cluster.estimate_inputs import model_config
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer
from sft_dist.report.formatting import esc
from sft_dist.report.run import summary_table
from sft_dist.report.run_files import read_run_files
from sft_dist.sources import open_source

LONG = "FUZZ_EXAMPLES" in os.environ
SETTINGS = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    derandomize=not LONG,
    database=None,
    phases=tuple(Phase) if LONG else (Phase.generate,),  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["one two three"] * 3, 300)


@pytest.fixture(scope="module")
def demo() -> str:
    return json.dumps(compose([], None))


# --- configs


@SETTINGS
@given(changes=draws.configs())
def test_configs(demo: str, changes: dict[str, Any]) -> None:
    values = json.loads(demo)
    for path, value in changes.items():
        inner = values
        *above, last = path.split(".")
        for key in above:
            inner = inner.setdefault(key, {}) if isinstance(inner.get(key, {}), dict) else {}
        inner[last] = value
    try:
        config = validate(values)
    except UserError:
        return
    assert config_from_json(config_to_json(config)) == config


@SETTINGS
@given(text=draws.YAML)
def test_yaml(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "random.yaml"
    file.write_text(text, encoding="utf-8", errors="surrogateescape")
    with suppress(UserError):
        load_config([], file)


@SETTINGS
@given(words=draws.OVERRIDES)
def test_overrides(words: list[str]) -> None:
    with suppress(UserError):
        load_config(words)


# --- records


@SETTINGS
@given(records=draws.RECORDS, kind=st.sampled_from(["chat", "alpaca"]))
def test_records(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer, records: list[Any], kind: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "records.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    config = {"chat": ChatSource, "alpaca": AlpacaSource}[kind](kind=kind, path=str(file))  # type: ignore[arg-type]
    renderer = Renderer(tokenizer, template="chatml")
    try:
        found = list(open_source("s", config))
    except UserError:
        return
    assert all(isinstance(r, Example | BadRecord) for r in found)
    assert len(found) <= len(records)
    examples = [r for r in found if isinstance(r, Example)]
    rendered = renderer.render(examples)
    assert len(rendered) == len(examples)
    for tokens in rendered:
        assert isinstance(tokens, Tokens | Drop)
        if isinstance(tokens, Tokens):
            assert all(
                s.start >= 0 and s.length > 0 and s.start + s.length <= len(tokens.ids) for s in tokens.spans
            )
    said = [m.content for e in examples for m in e.messages] + [
        r.reason for r in found if isinstance(r, BadRecord)
    ]
    shown = io.StringIO()
    SafeConsole(file=shown, force_terminal=False).print("\n".join(said), markup=False)
    assert not any(ch in shown.getvalue() for ch in "\x1b\x9b\x07\u202e")
    assert "<" not in esc("".join(said))


# --- templates


@SETTINGS
@given(text=draws.TEMPLATES)
def test_templates(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "t.jinja"
    file.write_text(text)
    with suppress(UserError):
        Renderer(tokenizer, template=str(file))


# --- files of models


@SETTINGS
@given(value=draws.MODEL_CONFIGS, data=st.data())
def test_configs_of_models(tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "model"
    folder.mkdir(exist_ok=True)
    content = json.dumps(value).encode("utf-8", "surrogatepass")
    (folder / "config.json").write_bytes(
        data.draw(draws.damaged(content)) if data.draw(st.booleans()) else content
    )
    with suppress(UserError):
        assert isinstance(model_config(validate({"model": {"path": str(folder)}})), dict)


@SETTINGS
@given(value=draws.changed(draws.WEIGHT_INDEX), data=st.data())
def test_indexes_of_weights(
    tmp_path_factory: pytest.TempPathFactory, value: Any, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "weights"
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").touch()
    content = json.dumps(value).encode("utf-8", "surrogatepass")
    (folder / INDEX).write_bytes(data.draw(draws.damaged(content)) if data.draw(st.booleans()) else content)
    with suppress(UserError):
        assert isinstance(BaseFiles.find(str(folder), None), BaseFiles)


# --- what is read back

CHECKPOINT: dict[str, Any] = {
    "format": 3, "position": {"step": 2, "epoch": 0, "epoch_step": 2}, "parameters": {"w": [2, 2]}, "states": {"w": ["exp_avg"]},
    "files": {"rank-00000.weights.safetensors": {"kind": "weights", "slices": {"w": [0, 4]}, "checksum": "0" * 32}},
    "facts": {"base": None}, "world_size": 1,
}  # fmt: skip


@SETTINGS
@given(value=draws.changed(CHECKPOINT))
def test_indexes_of_checkpoints(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "step-00000002"
    folder.mkdir(exist_ok=True)
    try:
        if isinstance(value, dict):
            write_index(folder, value)
        else:
            (folder / "index.json").write_text(json.dumps(value))
    except (ValueError, UnicodeEncodeError):
        return
    with suppress(DamagedError, OldFormatError):
        assert isinstance(read_index(folder), Index)


@SETTINGS
@given(data=st.data())
def test_damaged_indexes_of_checkpoints(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "step-00000003"
    folder.mkdir(exist_ok=True)
    whole = {**CHECKPOINT, "files": CHECKPOINT["files"] | {"rank-00000.optimizer.safetensors": {"kind": "optimizer", "slices": {"w": [0, 4]}, "checksum": "1" * 32}}}  # fmt: skip
    write_index(folder, whole)
    before = (folder / "index.json").read_bytes()
    after = data.draw(draws.damaged(before))
    (folder / "index.json").write_bytes(after)
    try:
        read_index(folder)
    except (DamagedError, OldFormatError):
        return
    assert _value(after) == _value(before)  # as by a line end more: nothing of it was believed


def _value(content: bytes) -> Any:
    return json.loads(content)


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """The files of a run, as values; JSON lines are lists."""
    config = load_config(["experiment=chat_small", "name=x"]).model_dump(mode="json")
    step = {"kind": "train", "step": 1, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "tokens_per_s": 5.0, "step_s": 1.0, "task_loss": {"t": 2.0},
            "time": 1.0, "skipped": False}  # fmt: skip
    silent = {"rank": 0, "host": "n", "phase": "p", "at": "a", "waits": True, "silent_s": 130.0}
    return {
        "config.json": config,
        "stores.json": {"sources": {"s": {"path": "p", "key": {}, "url": None}}, "eval_stores": {}, "tokenizer": "t", "template_text": "x",
                        "stop_ids": [1], "read": {}},
        "plan.json": {"steps": 2, "world_size": 1, "examples": 3, "tokens": 30, "target_tokens": 9, "fill": 0.9, "rows": 2, "epochs": 1.0,
                      "tasks": {"t": {"examples": 3, "tokens": 30, "source": "s"}}, "sources": {"s": {"examples": 3, "kind": "chat"}}, "drops": {"a": 1}},
        "status.json": {"state": "running", "time": 1.0, "step": 2, "steps": 2},
        "env.json": {"python": "3", "packages": {"torch": "2"}, "hosts": ["n"], "world_size": 2},
        "metrics.jsonl": [step, {**step, "step": 2}, {"kind": "eval", "step": 2, "loss": 1.5, "set_loss": {"seen": 1.0}, "task_loss": {"t": 1.0}, "time": 2.0}],
        "events.jsonl": [{"time": 1.0, "kind": "saved", "step": 2, "seconds": 0.1}, {"time": 1.5, "kind": "resumed", "step": 2}],
        "heartbeat": {"moved": 3, "silent_s": 1.0, "boot": "b", "up_s": 9.0},
        "logs/silent-rank-0.json": silent,
        "eval/scores.json": {"metric": "rouge_l", "sets": {"seen": {"macro": {"tasks": 1, "units": 1}, "tasks": {"t": {}}, "contrasts": {}}}},
        "eval/generations.jsonl": [{"set": "seen", "task": "t", "id": "1", "prompt": "p", "references": ["r"], "answers": {"model": "a"}, "metric": "rouge_l",
                                    "scores": {"model": {"rouge_l": 1.0}}, "stopped": True}],
    }  # fmt: skip


@SETTINGS
@given(data=st.data())
def test_run_files(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "run"
    for name, content in data.draw(draws.files_with_one_odd(run)).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    folder = RunFolder(path)
    for read in (
        lambda: load_run_config(path),
        folder.read_stores,
        lambda: folder.plan("steps", "tasks", "world_size"),
        folder.status,
        lambda: summary_table(path),
        lambda: who_stalls(path),
        lambda: Pulse(path).look(),
    ):
        with suppress(UserError):
            read()
    assert read_run_files(path).status is not None


# --- command words


@SETTINGS
@given(words=draws.COMMANDS)
def test_commands(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch, words: list[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "words"
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").write_text("mine")
    monkeypatch_module.chdir(folder)
    try:
        code = main(words)
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2, words
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) == ["notes.txt", "sub"]


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def test_a_checksum_holds_what_a_writer_of_json_can_write(tmp_path: Path) -> None:
    value = {"a": "\u2028", "b": 1e300, "c": [None, True, {"ü": -0.0}]}
    write_checked(tmp_path / "x", value)
    assert json.loads((tmp_path / "x").read_text())["checksum"] == fingerprint(value)
