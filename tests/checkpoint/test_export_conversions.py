"""A trained parameter is written as the files of its family hold it; what layers read of config.json stays; rows that opening loses."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matrix
import pytest
import tiny
import torch
from safetensors.torch import load_file

from sft_dist.checkpoint import export_plan
from sft_dist.checkpoint.export import _write_configs
from sft_dist.checkpoint.export_plan import Base, plan_export, tensors_of
from sft_dist.model.weight_files import BaseFiles
from sft_dist.pipelines.evaluate.verify import _take_padding

# experts apart, rows in another order, several matrices in one tensor, names of an older checkpoint
OFTEN = ["mixtral", "inkling2_text", "hrm_text", "gpt_neox", "gpt_oss", "qwen3_next"]
EXACT = [t for t, r in matrix.KNOWN.items() if r["state"] == "exact"]


def written_and_saved(
    model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors of an export in which all is trained, and those that transformers saves of the same model."""
    torch.manual_seed(0)
    model = tiny.build(model_type)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    model.save_pretrained(folder)
    values = dict(model.named_parameters())
    index = SimpleNamespace(parameters={n: list(p.shape) for n, p in values.items()})
    monkeypatch.setattr(
        export_plan, "read_parameter", lambda _checkpoint, _index, n, _kind: values[n].detach()
    )
    found = BaseFiles.find(str(folder), None)
    base = Base(path=str(folder))
    written: dict[str, Any] = {}
    for item in plan_export(index, base, model, found):  # type: ignore[arg-type]
        written |= tensors_of(folder, index, base, model, found, item)  # type: ignore[arg-type]
    return written, load_file(folder / "model.safetensors")


def check(model_type: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, saved = written_and_saved(model_type, folder, monkeypatch)
    assert written.keys() == saved.keys()
    assert not [n for n, tensor in saved.items() if not torch.equal(written[n].float(), tensor.float())]


@pytest.mark.parametrize("model_type", OFTEN)
def test_written_as_transformers_saves_it(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(model_type, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(set(EXACT) - set(OFTEN)))
def test_every_other_family(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(model_type, tmp_path, monkeypatch)


@pytest.mark.parametrize(("model_type", "first_of_config"), [("qwen4_exp_text", 2), ("llama", 3)])
def test_the_end_that_layers_read_stays_the_first_of_config_json(
    model_type: str, first_of_config: int, tmp_path: Path
) -> None:
    config = tiny.config_of(model_type)
    config.eos_token_id = 2
    model = tiny.build(model_type)
    config.save_pretrained(tmp_path / "base")
    tokenizer = SimpleNamespace(pad_id=None, bos_id=None)
    out = tmp_path / "out"
    out.mkdir()
    _write_configs(out, Base(path=str(tmp_path / "base")), config, model, "float32", tokenizer, [3])  # type: ignore[arg-type]
    written = {
        name: json.loads((out / f"{name}.json").read_text()) for name in ("config", "generation_config")
    }
    assert written["generation_config"]["eos_token_id"] == [3, 2]
    assert written["config"]["eos_token_id"] == [first_of_config, 5 - first_of_config]


def test_a_padding_row_that_opening_loses_is_taken_from_the_files(tmp_path: Path) -> None:
    import transformers

    config = tiny.config_of("youtu")
    config.pad_token_id = 3
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    row = torch.linspace(0.1, 1.0, model.get_input_embeddings().embedding_dim)
    with torch.no_grad():
        model.get_input_embeddings().weight[3] = row
    model.save_pretrained(tmp_path)
    opened: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert not opened.get_input_embeddings().weight[3].any(), (
        "transformers keeps the row now: _take_padding can go"
    )
    assert _take_padding(opened, tmp_path)
    assert torch.equal(opened.get_input_embeddings().weight[3], row)
    assert not _take_padding(opened, tmp_path)
