"""Sizes in a config.json that no model has are refused before anything is computed with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.pipelines.cluster.estimate_inputs import model_config

GOOD = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": 100,
}


@pytest.mark.parametrize(
    "change",
    [{"hidden_size": 0}, {"hidden_size": -64}, {"num_hidden_layers": 10_000_000}, {"vocab_size": 1e3},
     {"num_attention_heads": True}, {"num_key_value_heads": 0}, {"head_dim": "64"}, {"vocab_size": 10**30}],
    ids=str,
)  # fmt: skip
def test_absurd_sizes_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=next(iter(change))):
        model_config(validate({"model": {"path": str(tmp_path)}}))


@pytest.mark.parametrize("text", ["[]", "{", "3", '{"text_config": [1]}', "[" * 100_000])
def test_what_is_no_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        model_config(validate({"model": {"path": str(tmp_path)}}))


def test_a_plain_config_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GOOD))
    assert model_config(validate({"model": {"path": str(tmp_path)}})) == GOOD
