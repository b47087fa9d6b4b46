"""Adapters, frozen parts, added rows and routed experts under ZeRO-3 on two ranks: what plain torch and peft compute."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import model_cases
import numpy as np
import pytest
import tiny_docs
import torch
from ranks import on_ranks
from torch import nn
from torch.nn import functional as F

HERE = Path(__file__).parent

MODES = sorted(model_cases.MODES)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("partly")
    for family in {f for f, _ in model_cases.MODES.values()}:
        families.save(family, folder / f"model-{family}")
    on_ranks(2, HERE / "model_cases.py", str(folder), *MODES)
    on_ranks(1, HERE / "model_cases.py", str(folder), "lora", "frozen")  # resumes what two ranks wrote
    return folder


def plain(mode: str, out: Path) -> nn.Module:
    """The same model by plain torch and peft, at the weights that training started from."""
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoModelForCausalLM

    family, options = model_cases.MODES[mode]
    model = AutoModelForCausalLM.from_pretrained(
        out / f"model-{family}", attn_implementation="eager", dtype=torch.float32
    )
    if rows := {"saved": 200, "tied": 200, "grown": 144}.get(mode):
        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        tied = head.weight is embedding.weight
        for module in (embedding,) if tied else (embedding, head):
            old = module.weight.data
            module.weight = nn.Parameter(torch.cat([old, old.mean(0, keepdim=True).repeat(rows - 128, 1)]))
        if tied:
            head.weight = embedding.weight
    if "lora" in options:
        linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        settings = {
            "lora": {"target_modules": linear},
            "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
            "tied": {"target_modules": linear},
            "saved": {"target_modules": linear, "use_rslora": True, "modules_to_save": ["lm_head"]},
        }[mode]
        inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, **settings), model)
    if mode == "tied":
        model.get_input_embeddings().weight.requires_grad_(True)
    if mode == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(("model.embed_tokens.", "model.layers.0.")))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    initial = torch.load(out / mode / "initial.pt")
    assert initial.keys() == trained.keys()
    for name, parameter in trained.items():
        if "lora_" not in name:  # adapters start random; all else is given
            torch.testing.assert_close(initial[name].view_as(parameter), parameter.data)
        parameter.data.copy_(initial[name].view_as(parameter))
    return model.train()


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_equal_plain_torch(out: Path, mode: str) -> None:
    model = plain(mode, out)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=model_cases.LR, weight_decay=0.0)
    losses = []
    for step in range(model_cases.STEPS):
        docs = tiny_docs.documents(step)
        total = sum(sum(tiny_docs.weights_of(d)) for d in docs)
        loss: Any = 0.0
        for doc in docs:
            logits = model(torch.tensor([doc]), use_cache=False).logits[0]
            nll = F.cross_entropy(logits[:-1], torch.tensor(doc[1:]), reduction="none")
            loss = loss + (nll * torch.tensor(tiny_docs.weights_of(doc)[1:])).sum() / total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    seen = json.loads((out / mode / "seen-2.json").read_text())
    np.testing.assert_allclose(seen["losses"], losses, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_resume_is_exact(out: Path, mode: str) -> None:
    seen = json.loads((out / mode / "seen-2.json").read_text())
    assert seen["resumed"] == seen["losses"][model_cases.SAVE_AT :]
    assert seen["difference"] == 0.0


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_one_rank_resumes_what_two_wrote(out: Path, mode: str) -> None:
    two, one = (json.loads((out / mode / f"seen-{n}.json").read_text()) for n in (2, 1))
    np.testing.assert_allclose(one["resumed"], two["losses"][model_cases.SAVE_AT :], rtol=1e-5)


@pytest.mark.parametrize("mode", ["lora", "frozen"])
def test_a_checkpoint_holds_what_is_trained_and_nothing_else(out: Path, mode: str) -> None:
    index = json.loads((out / mode / "checkpoint" / "index.json").read_text())
    assert index["parameters"].keys() == torch.load(out / mode / "initial.pt").keys()
    if mode == "lora":
        assert all(".lora_" in n for n in index["parameters"])
    else:
        assert not any("layers.0" in n or "embed" in n for n in index["parameters"])
