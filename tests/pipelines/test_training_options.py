"""What the config says of loss, memory, average, warm-up and traces reaches the model and the run folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sft_dist.checkpoint.index import read_index
from sft_dist.checkpoint.io import read_parameter
from sft_dist.config.root import RunConfig
from sft_dist.config.train import LossConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.model import activation_memory
from sft_dist.model.packed import PackedLM
from sft_dist.pipelines.train import engine

OPTIONS = [
    "optim.ema_decay=0.5",
    "optim.ema_every_steps=2",
    "optim.warmup_tokens=2048",
    "optim.layer_lr_decay=0.9",
    "optim.schedule=constant",
    "train.max_steps=6",
    "train.export_ema=true",
    "train.profile=[2,3]",
    "loss.neftune_alpha=5",
    "loss.z_loss=1e-4",
    "model.gradient_checkpointing=2",
    "model.mlp_tiles=2",
    "deepspeed.offload_optimizer=cpu",
    "pack.short_first_steps=2",
]
Sft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def module() -> PackedLM:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    hf = LlamaForCausalLM(LlamaConfig(vocab_size=20, **shape))
    activation_memory.checkpoint_layers(hf, True)
    return PackedLM(hf)


def config(**sections: Any) -> RunConfig:
    values: dict[str, Any] = {"model": {"path": "x", "compile": False}, "deepspeed": {"stage": 2}}
    return RunConfig.model_validate(values | {k: values.get(k, {}) | v for k, v in sections.items()})


def test_loss_options_reach_the_head_and_noise_the_embedding(module: PackedLM) -> None:
    engine._set_loss(module, config())
    assert module.hf.lm_head.options == LossConfig()
    assert not module.hf.get_input_embeddings()._forward_hooks
    loss = {"label_smoothing": 0.1, "z_loss": 1e-4, "dft": True, "neftune_alpha": 5}
    engine._set_loss(module, config(loss=loss))
    assert module.hf.lm_head.options == LossConfig(**loss)
    assert len(module.hf.get_input_embeddings()._forward_hooks) == 1


def test_memory_options_reach_the_layers(module: PackedLM) -> None:
    layers = list(activation_memory.layers(module.hf))
    engine._save_memory(module, config(), "cpu")
    assert not any(isinstance(layer.mlp.forward, partial) for layer in layers)
    assert not any(hasattr(layer.forward, "_torchdynamo_orig_callable") for layer in layers)
    engine._save_memory(module, config(model={"path": "x", "mlp_tiles": 2, "compile": True}), "cpu")
    assert all(isinstance(layer.mlp.forward, partial) for layer in layers)
    assert all(hasattr(layer.forward, "_torchdynamo_orig_callable") for layer in layers)
    offload = config(model={"path": "x", "offload_activations": True})
    with pytest.raises(UserError, match="this run has no GPU"):
        engine._save_memory(module, offload, "cpu")
    engine._save_memory(module, offload, "cuda")
    assert all(
        layer._gradient_checkpointing_func.func is activation_memory._with_inputs_on_host for layer in layers
    )


def test_a_run_with_average_warm_up_in_tokens_trace_and_options(sft: Sft, project: Path) -> None:
    code, out, err = sft("train", "my.yaml", *OPTIONS)
    assert code == 0, out + err
    folder = RunFolder(project / "runs" / "mine")
    lines = [line for line in read_jsonl(folder.metrics) if line["kind"] == "train"]
    # 512 tokens a step: four steps of warm-up
    assert [line["lr"] for line in lines] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    assert [p.name for p in (folder.path / "profile").iterdir()] == ["steps-2-3.json.gz"]
    assert set(lines[0]["source_loss"]) <= {"records", "chats"}
    assert lines[0]["source_loss"]
    assert lines[0]["target_tokens_per_s"] == pytest.approx(lines[0]["target_tokens"] / lines[0]["step_s"])
    checkpoint = folder.checkpoints / "step-00000006"
    index = read_index(checkpoint)
    exported = load_file(folder.export / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
        ema, last = (read_parameter(checkpoint, index, name, kind) for kind in ("ema", "master"))
        assert torch.equal(exported[name], ema)
        assert 0 < float((ema - last).norm() / last.norm()) < 0.1
