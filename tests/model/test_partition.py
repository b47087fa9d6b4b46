"""A model that was built in partitions is the model that is built whole."""

from __future__ import annotations

import json
from pathlib import Path

import families
from ranks import torchrun


def test_weights_and_buffers_of_every_family_are_those_of_a_plain_load(tmp_path: Path) -> None:
    """In bfloat16, because zero.Init makes tensors in the dtype of the weights: the angles of RoPE were once among them."""
    for name in families.FAMILIES:
        families.save(name, tmp_path / "models" / name)
    torchrun(
        2,
        Path(__file__).with_name("partition_cases.py"),
        str(tmp_path / "models"),
        str(tmp_path / "seen.json"),
    )
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen == {name: [] for name in families.FAMILIES}
