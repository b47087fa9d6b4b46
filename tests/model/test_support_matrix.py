"""Every supported family, tiny and random: packed documents are what transformers computes for each alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest
import tiny_docs
import torch
from loading import load
from torch import Tensor
from torch.nn import functional as F

from sft_dist.config.model import LoraConfig
from sft_dist.core.errors import UserError
from sft_dist.model import isolation_check, support
from sft_dist.model.packed import PackedLM, to_inputs

DOCS = tiny_docs.documents(0)


@pytest.fixture(params=sorted(families.FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(family: str, tmp_path: Path) -> Path:
    return families.save(family, tmp_path / family)


def packed(folder: Path, backend: str = "sdpa_per_doc", **options: Any) -> PackedLM:
    return load(folder, attention=backend, **options).module.train()


def alone(folder: Path, auto: str = "AutoModelForCausalLM") -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of every target and gradient of every parameter, by transformers' own eager attention, document by document."""
    import transformers

    plain = (
        getattr(transformers, auto)
        .from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
        .train()
    )
    losses = []
    for doc in DOCS:
        logits = plain(torch.tensor([doc]), use_cache=False).logits[0]
        nll = F.cross_entropy(logits[:-1], torch.tensor(doc[1:]), reduction="none")
        weights = torch.tensor(tiny_docs.weights_of(doc)[1:])
        (nll * weights).sum().backward()
        losses.append(nll.detach()[weights > 0])
    return torch.cat(losses), {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backend", ["sdpa_per_doc", "sdpa_dense"])
def test_losses_and_gradients_are_those_of_each_document_alone(model: Path, backend: str) -> None:
    nll, gradients = alone(model)
    module = packed(model, backend)
    total, ours = module(*to_inputs(tiny_docs.pack(DOCS, list(range(len(DOCS)))), "cpu"))
    total.backward()
    assert float((ours - nll).abs().max()) < 2e-5
    own = {n: p.grad for n, p in module.hf.named_parameters()}
    assert own.keys() == gradients.keys()
    for name, g in gradients.items():
        assert float((own[name] - g).norm()) <= 1e-4 * float(g.norm()) + 1e-6, name


def start_up_check(module: PackedLM) -> tuple[float, float]:
    def loss_of(batch: Any, *, by_model: bool = False) -> Tensor:
        return module(*to_inputs(batch, "cpu"), by_model=by_model)[1]

    moved = isolation_check.measure_isolation(loss_of, families.VOCAB)
    return moved, isolation_check.head_error(
        loss_of, lambda batch: loss_of(batch, by_model=True), families.VOCAB
    )


def test_the_start_up_check_passes(model: Path) -> None:
    moved, off = start_up_check(packed(model).eval())
    assert moved <= isolation_check.TOLERANCE[torch.float32]
    assert off <= isolation_check.HEAD_TOLERANCE[torch.float32]


def test_logits_that_are_scaled_unknown_to_us_are_caught(tmp_path: Path) -> None:
    module = packed(families.save("granite", tmp_path / "m")).eval()
    module.logit_scale = 1.0
    assert start_up_check(module)[1] > isolation_check.HEAD_TOLERANCE[torch.bfloat16]


def test_adapters_learn_in_every_family(model: Path) -> None:
    """Of LoRA's two halves one starts at zero: at the first step only that one has a gradient, and no base weight has."""
    module = packed(model, lora=LoraConfig(rank=2, alpha=4.0))
    module(*to_inputs(tiny_docs.pack(DOCS, list(range(len(DOCS)))), "cpu"))[0].backward()
    moved = {
        n for n, p in module.hf.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0
    }
    assert moved == {n for n, _ in module.hf.named_parameters() if ".lora_B." in n}
    assert moved


def test_unknown_layers_and_looking_ahead_are_refused() -> None:
    from transformers import Gemma3TextConfig

    strange = Gemma3TextConfig(num_hidden_layers=2)
    strange.layer_types = ["full_attention", "quantum_attention"]
    with pytest.raises(
        UserError, match="gemma3_text has quantum_attention layers, which nobody has proved exact"
    ):
        support.check_supported(strange, "m")
    with pytest.raises(UserError, match="attends to later tokens"):
        support.check_supported(Gemma3TextConfig(use_bidirectional_attention=True), "m")


@pytest.mark.parametrize(
    ("method", "remedy"),
    [
        ({"quant_method": "mxfp4"}, r"Mxfp4Config\(dequantize=True\)"),
        ({"quant_method": "fp8"}, r"FineGrainedFP8Config\(dequantize=True\)"),
        ({"quant_method": "gptq", "bits": 4}, "set model.path to the original"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "set model.path to the original"),
    ],
)
def test_quantised_bases_are_refused_with_the_way_out(
    method: dict[str, Any], remedy: str, tmp_path: Path
) -> None:
    folder = families.save("llama", tmp_path / "m")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "quantization_config": method}))
    with pytest.raises(UserError, match=f"quantised by {method['quant_method']}.*{remedy}"):
        packed(folder)


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"])
def test_the_text_of_image_text_models(name: str, tmp_path: Path) -> None:
    folder = families.save_image_text(name, tmp_path / "m")
    nll, gradients = alone(folder, "AutoModelForImageTextToText")
    module = packed(folder)
    total, ours = module(*to_inputs(tiny_docs.pack(DOCS, list(range(len(DOCS)))), "cpu"))
    total.backward()
    assert max(start_up_check(module.eval())) <= isolation_check.TOLERANCE[torch.float32]
    assert float((ours - nll).abs().max()) < 2e-5
    own = {n: p.grad for n, p in module.hf.named_parameters() if p.grad is not None}
    assert own.keys() == gradients.keys()
    for key, g in gradients.items():
        assert float((own[key] - g).norm()) <= 1e-4 * float(g.norm()) + 1e-6, key
