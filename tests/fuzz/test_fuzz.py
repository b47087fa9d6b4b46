"""Random records, templates, checkpoint indexes and run files: a value, a counted drop or one sentence; never another error.

Each fuzzer takes a few seconds here. For longer: FUZZ_EXAMPLES=20000 python -m pytest tests/fuzz.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sft_dist.checkpoint.index import DamagedError, Index, OldFormatError, read_index, write_index
from sft_dist.config.load import load_config, load_run_config
from sft_dist.config.sources import AlpacaSource, ChatSource
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint, write_checked
from sft_dist.core.records import BadRecord, Drop, Example, Tokens
from sft_dist.core.runfolder import RunFolder
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer
from sft_dist.report.run import summary_table
from sft_dist.report.run_files import read_run_files
from sft_dist.sources import open_source

SETTINGS = settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "60")),
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    phases=(Phase.generate,)
    if "FUZZ_EXAMPLES" not in os.environ
    else tuple(Phase),  # shrinking takes minutes
    suppress_health_check=list(HealthCheck),
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([1 << 63, 10**30, 0.5, -1.0, 1e300]),
    st.text(max_size=12),
    st.sampled_from(
        [
            "user",
            "assistant",
            "system",
            "tool",
            "human",
            "gpt",
            "",
            "\x00",
            "\ud800",
            "{}",
            "[1]",
            "<|im_end|>",
        ]
    ),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(["one two three"] * 3, 300)


# --- records

KEYS = st.sampled_from(
    ["messages", "conversations", "tools", "functions", "instruction", "input", "output", "history", "weight", "system", "text", "id", "task",
     "prompt", "completion", "segments", "input_ids", "labels", "loss", "train"]
)  # fmt: skip
TURN_KEYS = st.sampled_from(
    [
        "role",
        "from",
        "content",
        "value",
        "tool_calls",
        "function_call",
        "weight",
        "train",
        "reasoning_content",
        "name",
        "tool_call_id",
        "loss",
    ]
)
TURN = st.dictionaries(TURN_KEYS, JSON, max_size=4) | st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.text(max_size=8) | JSON},
    optional={"weight": JSON, "tool_calls": JSON, "train": JSON, "reasoning_content": JSON},
)
RECORD = st.dictionaries(KEYS, JSON | st.lists(TURN, max_size=4), max_size=4) | st.fixed_dictionaries(
    {"messages": st.lists(TURN, max_size=4)}, optional={"tools": JSON, "weight": JSON}
)


@SETTINGS
@given(records=st.lists(RECORD, min_size=1, max_size=8), kind=st.sampled_from(["chat", "alpaca"]))
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


# --- templates

PIECES = st.sampled_from(
    ["{% for m in messages %}", "{% endfor %}", "{{ m.role }}", "{{ m.content }}", "{{ m['content'] | trim }}", "<|im_start|>", "<|im_end|>", "\n",
     "{% if add_generation_prompt %}", "{% endif %}", "{% if m.role == 'user' %}", "{% else %}", "{{ raise_exception('no') }}", "{{ bos_token }}",
     "{{ 'x' * 100000000 }}", "{{ 2 ** 2 ** 40 }}", "{{ messages[0].__class__ }}", "{{ range(10 ** 9) | list }}", "{% set ns = namespace(a=1) %}",
     "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{{ tools | tojson }}", "{% generation %}", "{% endgeneration %}", "{{ m }}", "{{", "%}",
     "{{ messages | map(attribute='content') | join }}", "{{ strftime_now('%Y') }}", "{{ m.content.split('a')[9] }}"]
)  # fmt: skip
WHOLE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@SETTINGS
@given(pieces=st.lists(PIECES, max_size=8), at=st.integers(0, len(WHOLE)))
def test_templates(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer, pieces: list[str], at: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "t.jinja"
    for text in ("".join(pieces), WHOLE[:at] + "".join(pieces[:2]) + WHOLE[at:]):
        file.write_text(text)
        with suppress(UserError):
            Renderer(tokenizer, template=str(file))


# --- what is read back

INDEX: dict[str, Any] = {
    "format": 3, "position": {"step": 2, "epoch": 0, "epoch_step": 2}, "parameters": {"w": [2, 2]}, "states": {"w": ["exp_avg"]},
    "files": {"rank-00000.weights.safetensors": {"kind": "weights", "slices": {"w": [0, 4]}, "checksum": "0" * 32}},
    "facts": {"base": None}, "world_size": 1,
}  # fmt: skip


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in inner:
        yield from _places(below, (*path, key))


def _changed(whole: Any, data: st.DataObject) -> Any:
    """Return a copy with one or two values replaced or taken away."""
    value = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(list(_places(value))))
        if not path:
            return data.draw(JSON)
        inner = value
        for key in path[:-1]:
            inner = inner[key]
        if data.draw(st.booleans()) and isinstance(inner, dict):
            del inner[path[-1]]
        else:
            inner[path[-1]] = data.draw(JSON)
    return value


@SETTINGS
@given(data=st.data())
def test_checkpoint_indexes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "step-00000002"
    folder.mkdir(exist_ok=True)
    changed = _changed(INDEX, data)
    try:
        if isinstance(changed, dict):
            write_index(folder, changed)
        else:
            (folder / "index.json").write_text(json.dumps(changed))
    except (ValueError, UnicodeEncodeError):
        return
    with suppress(DamagedError, OldFormatError):
        assert isinstance(read_index(folder), Index)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The files of a run, as values; JSON lines are lists."""
    config = load_config(["experiment=chat_small", "name=x"]).model_dump(mode="json")
    step = {"kind": "train", "step": 1, "loss": 2.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "tokens_per_s": 5.0, "step_s": 1.0, "task_loss": {"t": 2.0},
            "time": 1.0, "skipped": False}  # fmt: skip
    return {
        "config.json": config,
        "stores.json": {"sources": {"s": {"path": "p", "key": {}, "url": None}}, "eval_stores": {}, "tokenizer": "t", "template_text": "x",
                        "stop_ids": [1], "read": {}},
        "plan.json": {"steps": 2, "world_size": 1, "examples": 3, "tokens": 30, "target_tokens": 9, "fill": 0.9, "rows": 2, "epochs": 1.0,
                      "tasks": {"t": {"examples": 3, "tokens": 30, "source": "s"}}, "sources": {"s": {"examples": 3, "kind": "chat"}}, "drops": {"a": 1}},
        "status.json": {"state": "finished", "time": 1.0, "step": 2, "steps": 2},
        "env.json": {"python": "3", "packages": {"torch": "2"}, "devices": ["cpu"], "world_size": 1},
        "metrics.jsonl": [step, {**step, "step": 2}, {"kind": "eval", "step": 2, "loss": 1.5, "set_loss": {"seen": 1.0}, "task_loss": {"t": 1.0}, "time": 2.0}],
        "events.jsonl": [{"time": 1.0, "kind": "saved", "step": 2, "seconds": 0.1}, {"time": 1.5, "kind": "resumed", "step": 2}],
    }  # fmt: skip


@SETTINGS
@given(data=st.data())
def test_run_files(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, Any], data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "run"
    (path / "eval").mkdir(parents=True, exist_ok=True)
    odd = data.draw(st.sampled_from(sorted(run)))
    for name, value in run.items():
        written = _changed(value, data) if name == odd else value
        lines = written if name.endswith(".jsonl") and isinstance(written, list) else [written]
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = RunFolder(path)
    for read in (
        lambda: load_run_config(path),
        folder.read_stores,
        lambda: folder.plan("steps", "tasks", "world_size"),
        folder.status,
        lambda: summary_table(path),
    ):
        with suppress(UserError):
            read()
    assert read_run_files(path).status is not None


def test_a_checksum_holds_what_a_writer_of_json_can_write(tmp_path: Path) -> None:
    value = {"a": "\u2028", "b": 1e300, "c": [None, True, {"ü": -0.0}]}
    write_checked(tmp_path / "x", value)
    assert json.loads((tmp_path / "x").read_text())["checksum"] == fingerprint(value)
