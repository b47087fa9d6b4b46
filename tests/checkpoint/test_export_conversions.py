"""A trained parameter is written as the files of its family hold it, for every family that transformers converts while it loads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matrix
import pytest
import tiny
import torch
from safetensors.torch import load_file

from sft_dist.checkpoint import export_plan
from sft_dist.checkpoint.export_plan import Base, plan_export, tensors_of
from sft_dist.model.weight_files import BaseFiles

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
