"""What `check` says of this machine before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.pipelines import before_ranks
from sft_dist.pipelines.before_ranks import machine_warnings
from sft_dist.pipelines.config_warnings import refuse_misspelt_model

MODEL = {"path": "org/m"}


def test_ranks_and_precision_that_do_not_fit_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(before_ranks, "gpus", lambda: 0)
    monkeypatch.setattr(before_ranks.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    said = machine_warnings(validate({"model": MODEL, "launch": {"nproc": 8}}))
    assert [w.split(" ")[0] for w in said] == ["launch.nproc=8", "model.dtype=bfloat16"]
    monkeypatch.setattr(before_ranks, "gpus", lambda: 4)
    assert "the 4 GPUs" in machine_warnings(validate({"model": MODEL, "launch": {"nproc": 8}}))[0]
    assert machine_warnings(validate({"model": MODEL, "launch": {"nproc": 4}})) == ()
    assert machine_warnings(validate({"model": MODEL, "launch": {"nproc": 8}, "cluster": "x"})) == ()


def test_a_model_that_nobody_can_fetch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = machine_warnings(
        validate({"model": {"path": "org/m", "dtype": "float32"}, "launch": {"nproc": 1}})
    )
    assert [w for w in said if "hf download org/m" in w and "HF_HUB_OFFLINE is set" in w]


@pytest.mark.parametrize("key", ["run_root", "data.dir"])
@pytest.mark.parametrize("place", ["/proc/runs", "{file}/runs"])
def test_a_folder_that_cannot_be_written_is_refused(key: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = place.format(file=tmp_path / "file")
    values = (
        {"run_root": folder} if key == "run_root" else {"data": {"dir": folder}, "run_root": str(tmp_path)}
    )
    assert any(
        line.startswith(f"{key}={folder}")
        for line in before_ranks._folders(validate({"model": MODEL, **values}))
    )


def test_a_folder_that_can_be_made_is_not_made(tmp_path: Path) -> None:
    values = {"model": MODEL, "run_root": str(tmp_path / "a/b"), "data": {"dir": str(tmp_path / "c")}}
    assert list(before_ranks._folders(validate(values))) == []
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_folder_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.path=.*tinny is no folder.* Did you mean 'tiny'"):
        refuse_misspelt_model(validate({"model": {"path": str(tmp_path / "tinny")}}))
    refuse_misspelt_model(validate({"model": {"path": str(tmp_path / "tiny")}}))
    refuse_misspelt_model(validate({"model": {"path": "org/model"}}))
