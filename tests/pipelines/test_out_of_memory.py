"""What a run that found no memory is told: three overrides, each of which the estimate holds to fit."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sft_dist.cluster.estimate.estimate import needed
from sft_dist.cluster.estimate.memory import estimate_memory
from sft_dist.config import RunConfig
from sft_dist.config.load import validate
from sft_dist.pipelines.cluster.estimate_inputs import GIB, model_config, setup_of, shape_of
from sft_dist.pipelines.train.oom_message import oom_message

SHAPE = {
    "model_type": "llama", "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True,
    "max_position_embeddings": 131_072,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    (tmp_path / "config.json").write_text(json.dumps(SHAPE))
    return validate(
        {
            "data": {"sources": {"none": {"kind": "demo"}}},
            "model": {"path": str(tmp_path), "gradient_checkpointing": False, "compile": False},
            "deepspeed": {"stage": 3},
            "pack": {"seq_len": 16_384},
            "train": {"micro_rows": 4, "tokens_per_step": 524_288},
        }
    )


@pytest.mark.parametrize("gib", [79, 24])
def test_three_ways_out_each_of_which_fits(config: RunConfig, gib: int) -> None:
    said = oom_message(config, ranks=8, device_bytes=gib * GIB, target_share=0.4)
    assert f"a device of {gib}.0 GiB ran out of memory" in said
    ways = re.findall(r"((?:[\w.]+=\w+ ?)+)\(about ([\d.]+) GiB\)", said)
    assert len(ways) == 3
    shape = shape_of(config, model_config(config))
    as_it_was = needed(estimate_memory(shape, setup_of(config, 0.4, 8, "cuda")).peak, "cuda")
    for _, size in ways:
        assert float(size) <= min(gib, 0.9 * as_it_was / GIB) + 0.05


def test_a_model_that_is_not_here_gets_the_usual_advice(config: RunConfig) -> None:
    elsewhere = config.model_copy(
        update={"model": config.model.model_copy(update={"path": "nobody/has-this"})}
    )
    said = oom_message(elsewhere, ranks=1, device_bytes=GIB, target_share=1.0)
    assert "train.micro_rows" in said
