"""What is refused at the door of the model."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import families
import pytest
import tiny
import torch
from loading import load
from safetensors.torch import load_file, save_file
from torch import nn

from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError
from sft_dist.evals.generate import load_model
from sft_dist.model import load as load_module
from sft_dist.model import partition
from sft_dist.model import weight_files as files
from sft_dist.model.backends import Needs
from sft_dist.model.initial import create_initial
from sft_dist.model.load import attention_needs, read_config
from sft_dist.model.weight_files import BaseFiles, meta_model

SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "layers": 2, "heads": 2, "kv_heads": None, "max_position_embeddings": 64, "rope_theta": 1e4,
    "tie_word_embeddings": False, "initializer_range": 0.02,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    create_initial(folder, shape=SHAPE, vocab_size=50, bos_id=None, eos_id=2, pad_id=0, seed=1)
    return folder


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


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


def test_pickled_weights_are_never_opened(model: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    torch.save({**load_file(model / "model.safetensors"), "x": Runs(ran)}, model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be loaded"):
        load(model)
    with pytest.raises(UserError, match="are no safetensors"):
        load_model(str(model))
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "peft_type": "LORA"}')
    (model / "pytorch_model.bin").rename(model / "adapter_model.bin")
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        load_model(str(model))
    assert not ran.exists()


def test_a_torn_export_is_one_sentence(model: Path) -> None:
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cannot be loaded .*export it again"):
        load_model(str(model))


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" * 100_000,
        '{"weight_map": ["a"]}',
        '{"weight_map": {"w": 3}}',
        '{"weight_map": null}',
        "{}",
        '{"weight_map": {"w": ""}}',
    ],
)
def test_an_index_of_weights_of_other_types_is_refused(model: Path, text: str) -> None:
    (model / files.INDEX).write_text(text)
    with pytest.raises(UserError, match=r"index\.json is torn"):
        load(model)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json"):
        read_config(str(tmp_path))


def test_a_hub_id_that_cannot_be_read_names_what_to_do() -> None:
    with pytest.raises(
        UserError,
        match="model.path=no/such-model cannot be read .*HF_HUB_OFFLINE is set.*hf download no/such-model --revision abc",
    ):
        read_config("no/such-model", revision="abc")


OFFLINE = """
import sys
from sft_dist.model.weight_files import BaseFiles
from sft_dist.config.model import ModelConfig
from sft_dist.model.load import load_packed
loaded = load_packed("org/tiny", ModelConfig(dtype="float32", gradient_checkpointing=False), device="cpu")
print("seen", loaded.commit, len(BaseFiles.find("org/tiny", None).file_of))
"""


def test_the_cache_serves_without_a_network_and_tells_the_commit(model: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "home" / "hub" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(model, repository / "snapshots" / commit)
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights = len(load_file(model / "model.safetensors"))
    assert done.stdout.splitlines()[-1] == f"seen {commit} {weights}"


def test_a_cache_is_off_and_projection_is_ours(model: Path) -> None:
    module = load(model).module
    assert module.hf.config.use_cache is False
    assert type(module.hf.lm_head).__name__ == "LossHead"


def test_experts_that_are_modules_are_gathered_as_a_whole() -> None:
    """Else a rank whose tokens reach other experts gathers other weights, and all ranks wait for ever."""
    from deepspeed.utils import get_z3_leaf_modules

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    model = nn.Sequential(Routed(), nn.Linear(2, 2))
    for parameter in model.parameters():
        parameter.ds_tensor = parameter.data  # as if partitioned already
    load_module._partition_rest(model, {}, set())
    assert get_z3_leaf_modules(model) == [model[0]]


@pytest.mark.parametrize(
    ("zero", "readable"),
    [
        ({}, True),
        ({"zero_hpz_partition_size": 2}, False),
        ({"zero_quantized_weights": True}, False),
        ({"offload_param": {"device": "nvme"}}, False),
        ({"offload_param": {"device": "cpu"}}, True),
    ],
)
def test_partitions_that_deepspeed_keeps_in_another_form_are_left_to_it(
    model: Path, zero: dict[str, Any], readable: bool
) -> None:
    config = read_config(str(model))
    empty = files.meta_model(config, trust_remote_code=False)
    source = partition.find_weights(str(model), empty, {"zero_optimization": zero}, None)
    assert (source is not None) == readable


def test_experts_that_lie_apart_in_the_files_are_left_to_transformers(tmp_path: Path) -> None:
    folder = str(families.save("qwen3_moe", tmp_path / "moe"))
    empty = files.meta_model(read_config(folder), trust_remote_code=False)
    assert partition.find_weights(folder, empty, {"zero_optimization": {}}, None) is None


def test_every_weight_of_an_image_text_model_is_found_under_its_older_names(tmp_path: Path) -> None:
    folder = families.save_image_text("Gemma3ForConditionalGeneration", tmp_path / "m")
    skeleton = files.meta_model(read_config(str(folder)), trust_remote_code=False)
    found = files.BaseFiles.find(str(folder), None)
    names = files.match(skeleton, found)
    tied = files.aliases(skeleton)
    assert {n for n, _ in skeleton.named_parameters()} == {
        tied.get(n, n) for n in names.key_of if "position_ids" not in n
    }
    assert not names.fused
    assert not names.unused


@pytest.mark.parametrize("stage_3", [False, True])
def test_torn_and_absent_files_are_refused(model: Path, stage_3: bool) -> None:
    def read() -> None:
        if stage_3:  # as model.partition does; without the files it is transformers that looks for them
            BaseFiles.find(str(model), None)
        if not stage_3 or not any(model.glob("*.safetensors*")):
            load(model)

    file, index = model / "model.safetensors", model / "model.safetensors.index.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="torn"):
        read()
    file.unlink()
    with pytest.raises(UserError, match="cannot be loaded .*no file named model.safetensors"):
        read()
    if stage_3:
        index.write_text('{"weight')
        with pytest.raises(UserError, match="index.json is torn"):
            read()


def test_a_config_of_other_shapes_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    with pytest.raises(UserError, match="do not belong to its config.json"):
        load(model)


# transformers 5.24 hands `s_aux` to attention in these
SINKS = ("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash")


def test_what_attention_must_do_is_read_from_the_skeleton() -> None:
    from transformers import DeepseekV3Config, LlamaConfig

    def needs_of(config: object) -> list[Needs]:
        return attention_needs(meta_model(config, trust_remote_code=False), torch.bfloat16, "cuda")

    sizes = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_hidden_layers": 2}
    (needs,) = needs_of(DeepseekV3Config(**sizes))
    assert (needs.head_dim, needs.value_dim) == (192, 128)
    (needs,) = needs_of(LlamaConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2))
    assert (needs.head_dim, needs.value_dim) == (16, None)
    gemma = needs_of(tiny.config_of("gemma4_text"))
    assert {(n.head_dim, n.sliding_window) for n in gemma} == {(8, True), (16, False)}
    sinks = {t: [n.sinks for n in needs_of(tiny.config_of(t))] for t in SINKS}
    assert all(any(found) for found in sinks.values()), sinks


def test_a_base_is_known_by_its_config_and_weights_wherever_it_lies(model: Path, tmp_path: Path) -> None:
    known = files.base_fingerprint(str(model), None)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(
        json.dumps({**config, "transformers_version": "0", "_name_or_path": "x"})
    )
    assert files.base_fingerprint(str(copy), None) == known
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    assert files.base_fingerprint(str(copy), None) != known
    shutil.copy(model / "config.json", copy / "config.json")
    weights = load_file(model / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        save_file({**weights, name: weights[name] * 1.01}, copy / "model.safetensors", {"format": "pt"})
        assert files.base_fingerprint(str(copy), None) != known


def test_new_tokens_that_nothing_trains_are_warned_of(
    model: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = {"min_vocab_size": 53, "vocab_multiple": 8}
    monkeypatch.setattr(logging.getLogger("sft_dist"), "propagate", True)
    load(model, lora=LoraConfig(rank=2, alpha=4.0), **grown)
    assert "3 tokens of the tokenizer are new to the model, and nothing trains" in caplog.text
    caplog.clear()
    load(model, lora=LoraConfig(rank=2, alpha=4.0, modules_to_save=("embed_tokens", "lm_head")), **grown)
    load(model, **grown)
    load(
        model, lora=LoraConfig(rank=2, alpha=4.0), vocab_multiple=8
    )  # rows, and no token that has one of them
    assert "are new to the model" not in caplog.text
