"""What is refused at the door of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_dist.core.errors import UserError
from sft_dist.model.load import attention_needs, create_initial, load_packed, read_config

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "layers": 2, "heads": 2, "kv_heads": None, "max_position_embeddings": 64, "rope_theta": 1e4,
    "tie_word_embeddings": False, "initializer_range": 0.02,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    create_initial(folder, shape=SHAPE, vocab_size=50, bos_id=None, eos_id=2, pad_id=0, seed=1)
    return folder


def load(folder: Path, **options: Any) -> Any:
    defaults = {
        "dtype": "float32",
        "backend": "auto",
        "device": "cpu",
        "zero_config": None,
        "gradient_checkpointing": False,
    }
    return load_packed(str(folder), **defaults | options)


def test_initial_weights_depend_on_shape_and_seed_alone(tmp_path: Path, model: Path) -> None:
    torch.rand(5)
    create_initial(tmp_path / "again", shape=SHAPE, vocab_size=50, bos_id=None, eos_id=2, pad_id=0, seed=1)
    a, b = (load_file(f / "model.safetensors") for f in (model, tmp_path / "again"))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_missing_weights_are_refused_not_left_random(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 weights \(first: model.layers.1.mlp.up_proj.weight\)"):
        load(model)


def test_a_tokenizer_that_does_not_fit_is_refused(model: Path) -> None:
    with pytest.raises(UserError, match="ids up to 50, the model .* embeds 50 tokens"):
        load(model, min_vocab_size=51)
    assert load(model, min_vocab_size=50).backend == "sdpa_per_doc"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json"):
        read_config(str(tmp_path))


def test_a_hub_id_that_cannot_be_read_names_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="model.path=no/such-model cannot be read"):
        read_config("no/such-model")


def test_models_with_state_along_the_row_are_refused() -> None:
    from transformers import Qwen3NextConfig

    with pytest.raises(UserError, match="qwen3_next has linear_attention layers"):
        attention_needs(Qwen3NextConfig(num_hidden_layers=4), torch.float32, "cpu")


def test_a_cache_is_off_and_projection_is_ours(model: Path) -> None:
    module = load(model).module
    assert module.hf.config.use_cache is False
    assert type(module.hf.lm_head).__name__ == "LossHead"
