"""An export that is not the model that was trained is named; the upload of one fails in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json, write_json
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.pipelines.evaluate import verify
from sft_dist.pipelines.evaluate.push import push


@pytest.fixture
def checked(project: Path, base_model: Path) -> Callable[..., Any]:
    """Verify an export that was changed, against the losses of the model as it was; `project/export` is the folder."""
    config = load_config([], project / "my.yaml")
    renderer = make_renderer(config, project, lambda: ())
    folder = RunFolder(project / "run")
    folder.path.mkdir()
    stores = {
        "sources": {},
        "eval_stores": {},
        "tokenizer": str(base_model),
        "template_text": renderer.template_text,
    }
    write_json(folder.stores, {**stores, "stop_ids": [], "read": {}, "render": renderer.fingerprint})
    vocab_size = renderer.tokenizer.vocab_size
    expected = verify.EngineLosses(verify._losses(verify._reload(config, base_model), vocab_size))
    shutil.copytree(base_model, project / "export")

    def check() -> Any:
        return verify.verify_export(
            config, folder, project / "export", vocab_size=vocab_size, expected=expected
        )

    return check


def test_the_same_model_passes(checked: Callable[..., Any], project: Path) -> None:
    found = checked()
    assert found.loss_difference < 1e-6
    assert (found.template, found.prompts) == (True, 0)
    assert read_json(project / "export" / "export_check.json")["template"] is True


def test_what_merging_rounds_is_told_from_adapters_that_are_missing() -> None:
    rng = np.random.default_rng(0)
    trained, noise = rng.normal(10, 3, 47), rng.normal(0, 0.15, 47)
    large, small = rng.normal(0, 1.0, 47), rng.normal(0, 0.05, 47)
    bf16 = torch.bfloat16

    def engine(effect: Any) -> verify.EngineLosses:
        return verify.EngineLosses(trained.tolist(), (trained - effect).tolist())

    assert verify.doubt(trained + noise / 10, engine(large), bf16) == ("", False)
    said, other = verify.doubt(trained + noise, engine(large), bf16)
    assert ("of what the adapters do" in said, other) == (True, False)
    assert verify.doubt(trained - large / 2.2 + noise, engine(large), bf16)[1] is False  # nearer to it
    assert verify.doubt(trained - large / 1.8 + noise, engine(large), bf16)[1] is True
    assert (
        verify.doubt(trained - 0.3 * large + 3 * noise, engine(0.3 * large), bf16)[1] is True
    )  # the base, and noise
    said, other = verify.doubt(trained + noise, engine(small), bf16)
    assert ("too little to tell" in said, other) == (True, False)
    for far in (trained + 1.0, trained * np.nan):
        assert verify.doubt(far, engine(large), bf16)[1] is True
    # without adapters that are merged in 16 bits the bound is rounding, as it was
    assert verify.doubt(trained + noise, verify.EngineLosses(trained.tolist()), bf16)[1] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("weights", "gives other losses"),
        ("missing", "does not open .* whole"),
        ("template", "asks with other tokens"),
    ],
)
def test_another_model_is_refused(
    change: str, message: str, checked: Callable[..., Any], project: Path
) -> None:
    export = project / "export"
    weights = load_file(export / "model.safetensors")
    if change == "template":
        for file in ("chat_template.jinja", "tokenizer_config.json"):
            path = export / file
            if path.is_file():
                path.write_text(path.read_text().replace("<|im_start|>assistant", "<|im_start|>helper"))
    elif change == "weights":
        weights["model.layers.1.mlp.down_proj.weight"] *= -3
    else:
        del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, export / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        checked()
    assert [p.name for p in project.glob("export*")] == ["export.refused"]  # nothing that looks whole


def test_an_upload_goes_to_a_private_repository_or_fails_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(
        UserError, match="the hub cannot be reached .*offline mode.*repeat with --push me/model"
    ):
        push(tmp_path, "me/model")
    with pytest.raises(UserError, match="give OWNER/NAME"):
        push(tmp_path, "model")
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> Any:
            calls.append(("create", options["private"]))
            return type("Made", (), {"repo_id": name})()

        def upload_folder(self, **options: Any) -> None:
            calls.append(("upload", options["folder_path"]))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert push(tmp_path, "me/model") == "https://huggingface.co/me/model"
    assert calls == [("create", True), ("upload", tmp_path)]
