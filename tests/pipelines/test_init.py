"""`sft-dist init` writes a config that is valid and reads the records, for each usual layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sft_dist.cli import main
from sft_dist.config.load import load_config
from sft_dist.sources import open_source

CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
LAYOUTS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "messages": ("chat", [{"messages": CHAT}] * 3),
    "sharegpt": (
        "chat",
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}],
    ),
    "alpaca": ("alpaca", [{"instruction": "a", "input": "", "output": "b", "category": c} for c in "xxyy"]),
    "question": ("alpaca", [{"question": "a", "context": "c", "answer": "b"}]),
    "completion": ("alpaca", [{"prompt": "a", "completion": "b"}]),
}


@pytest.mark.parametrize(("kind", "records"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout(kind: str, records: list[dict[str, Any]], tmp_path: Path) -> None:
    data, out = tmp_path / "my data.jsonl", tmp_path / "my.yaml"
    data.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert main(["init", str(data), "--model", "org/m", "--out", str(out)]) == 0
    config = load_config([], out)
    (name, source), *_ = config.data.sources.items()
    assert (source.kind, config.model.path) == (kind, "org/m")
    examples = [x for x in open_source(name, source) if hasattr(x, "messages")]
    assert len(examples) == len(records)
    if "category" in records[0]:
        assert {e.task for e in examples} == {"x", "y"}


def test_what_is_not_known_is_refused_and_nothing_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "a.jsonl", tmp_path / "my.yaml"
    data.write_text('{"left": 1, "right": 2}\n')
    assert main(["init", str(data), "--out", str(out)]) == 2
    assert "left, right" in capsys.readouterr().err
    out.write_text("mine")
    assert main(["init", str(data), "--out", str(out)]) == 2
    assert out.read_text() == "mine"


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    said = capsys.readouterr().out
    assert "experiment=chat_lora: " in said
    assert "(calculated)" in said
    assert "qwen3_8b" in said
