"""A model that was built in partitions is the model that is built whole, and has its gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
from ranks import on_ranks

HERE = Path(__file__).parent
GRADIENT = 1e-4  # as in matrix.py
# modules that see one document at a time: called by keyword, nothing trained below them, computed again; an attention of its own
# and layers with state that see the whole row
OFTEN = (
    "qwen3_5_text:lora-recomputed", "nemotron_h:frozen", "deepseek_v32:full", "nemotron_h:lora-recomputed-kernels",
)  # fmt: skip
KINDS = (
    "bailing_hybrid", "falcon", "falcon_h1", "granitemoehybrid", "jamba", "kimi_linear", "lfm2_moe", "minimax", "qwen3_5_moe_text", "qwen4_exp",
    "recurrent_gemma", "rwkv", "xlstm", "zamba2",
)  # fmt: skip
MODES = ("full", "lora", "recomputed", "frozen", "lora-recomputed")
# every kind of layer and every mode, each kind with one mode
SELDOM = (
    *(f"{kind}:{MODES[i % len(MODES)]}" for i, kind in enumerate(KINDS)),
    "qwen3_5_text:full-kernels",
    "lfm2_moe:frozen-kernels",
    "granitemoehybrid:recomputed-kernels",
    "falcon_h1:lora-kernels",
    "qwen3_moe:experts",
    "gpt_oss:experts",
)


def launched(folder: Path, loads: tuple[str, ...], gradients: tuple[str, ...]) -> dict[str, Any]:
    for name in loads:
        families.save(name, folder / "loads" / name)
    for name in {case.partition(":")[0] for case in gradients}:
        tiny.save(name, folder / "gradients" / name)
    on_ranks(2, HERE / "partition_cases.py", str(folder), ",".join(loads), ",".join(gradients))
    return json.loads((folder / "seen.json").read_text())


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return launched(tmp_path_factory.mktemp("partition"), tuple(families.FAMILIES), OFTEN)


def test_weights_and_buffers_of_every_family_are_those_of_a_plain_load(seen: dict[str, Any]) -> None:
    """In bfloat16, because zero.Init makes tensors in the dtype of the weights: the angles of RoPE were once among them."""
    assert seen["loads"] == {name: [] for name in families.FAMILIES}


@pytest.mark.parametrize("case", OFTEN)
def test_layers_that_see_one_document_have_the_gradients_of_a_whole_model(
    seen: dict[str, Any], case: str
) -> None:
    difference, where = seen["gradients"][case]
    assert difference < GRADIENT, where


@pytest.mark.slow
def test_every_kind_of_layer_has_the_gradients_of_a_whole_model(tmp_path: Path) -> None:
    gradients = launched(tmp_path, (), SELDOM)["gradients"]
    assert gradients.keys() == set(SELDOM)
    assert {case: found for case, found in gradients.items() if found[0] >= GRADIENT} == {}
