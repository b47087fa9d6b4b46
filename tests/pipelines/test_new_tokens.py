"""Tokens that join the vocabulary of a model whose embedding and output projection are one matrix, trained beside adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree

import pytest
import torch

CASE = Path(__file__).resolve().parents[3] / "shared" / "cases" / "13-lora-tied"
pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason="the inputs of ../shared/cases are not at hand")
Sft = Callable[..., tuple[int, str, str]]


def test_new_tokens_are_trained_exported_and_generated(sft: Sft, project: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    case = copytree(CASE, project / "case")
    (case / "d.jsonl").write_text(
        "\n".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"listen {i}"},
                        {"role": "assistant", "content": "<heard> it"},
                    ]
                }
            )
            for i in range(20)
        )
    )
    new = ['render.add_tokens=["<heard>"]', 'render.add_special_tokens=["<quiet>"]']
    words = (
        "case/c.yaml",
        "model.path=case/tied",
        "data.sources.t.path=case/d.jsonl",
        "launch.nproc=2",
        "train.max_steps=3",
    )
    adapters = ["lora.rank=4", "lora.modules_to_save=[embed_tokens]"]
    code, _, err = sft("train", *words, *new, *adapters)
    assert code == 0, err
    export = project / "runs" / "loratied" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    heard, quiet = tokenizer.convert_tokens_to_ids(["<heard>", "<quiet>"])
    base = AutoModelForCausalLM.from_pretrained(case / "tied")
    trained = AutoModelForCausalLM.from_pretrained(export)
    matrix, before = trained.get_input_embeddings().weight, base.get_input_embeddings().weight
    assert trained.get_output_embeddings().weight is matrix
    rows = max(len(before), quiet + 1)
    assert len(matrix) == rows
    start = before.mean(0) if heard >= len(before) else before[heard]
    assert not torch.allclose(matrix[heard], start, atol=1e-4)  # moved by its targets
    assert tokenizer.encode("<heard> it")[0] == heard
    # in bfloat16, where the merged export is compared with the engine with and without its adapters
    code, _, err = sft(
        "train", *words, *new, *adapters, "model.dtype=bfloat16", "name=half", "deepspeed.stage=3"
    )
    assert code == 0, err
    assert (project / "runs" / "half" / "export" / "export_check.json").is_file()
    # the same with a base whose embedding stays frozen is refused before ranks start
    code, out, err = sft("train", *words, *new, "lora.rank=4", "name=other")
    assert code == 2
    assert "bring 2 new tokens (first: '<heard>'), and lora trains no row of the embedding" in out + err
    assert not (project / "runs" / "other").exists()
