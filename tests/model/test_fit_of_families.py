"""What `auto` stands for is chosen for every family that trains, whatever is trained of it, by the parameters that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from test_matrix import KNOWN, OFTEN

from sft_dist.config.load import validate
from sft_dist.model import weight_files
from sft_dist.pack.devices import DEVICES
from sft_dist.pipelines.cluster.estimate_inputs import model_config, shape_of
from sft_dist.pipelines.cluster.fit import Place, choose

GIB = 1 << 30
CPU = Place(ranks=2, per_node=2, device=None, name="cpu", memory_bytes=8 * GIB, can_compile=False)
GPU = Place(ranks=8, per_node=8, device=DEVICES["H100"], name="H100", memory_bytes=80 * GIB, can_compile=True)
TRAINED: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4}},
    "part": {"model": {"trainable": ["layers[1:]"]}},
}


def fits(model_type: str, folder: Path) -> None:
    made = tiny.config_of(model_type)
    made.save_pretrained(folder)
    whole = sum(p.numel() for p in weight_files.meta_model(made, trust_remote_code=False).parameters())
    for trained in TRAINED.values():
        values: dict[str, Any] = {
            "name": "x",
            "data": {"sources": {"a": {"kind": "demo"}}},
            "pack": {"seq_len": 64},
        }
        values |= {"train": {"tokens_per_step": 1024}, **trained}
        config = validate(values | {"model": {"path": str(folder), **trained.get("model", {})}})
        text = model_config(config)
        for place in (CPU, GPU):
            choose(config, text, place)
        if not trained:
            assert shape_of(config, text).parameters == shape_of(config, text).trained == whole


@pytest.mark.parametrize("model_type", OFTEN)
def test_auto_is_chosen_for_families_of_weight(model_type: str, tmp_path: Path) -> None:
    fits(model_type, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model_type", sorted(t for t, r in KNOWN.items() if r["state"] == "exact" and t not in OFTEN)
)
def test_auto_is_chosen_for_every_other_family(model_type: str, tmp_path: Path) -> None:
    fits(model_type, tmp_path)
