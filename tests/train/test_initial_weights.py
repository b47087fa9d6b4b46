"""A disk without room for the weights that a run starts from: one sentence, and nothing half-made is taken for them."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.train import engine


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "dist", SimpleNamespace(get_rank=lambda: 0, barrier=lambda: None))
    shape = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "layers": 1,
        "heads": 2,
        "max_position_embeddings": 4096,
    }
    config = validate({"model": {"shape": shape}, "render": {"train_vocab_size": 300, "template": "chatml"}})
    ids = SimpleNamespace(vocab_size=300, bos_id=None, eos_id=1, pad_id=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the files of settings fit
    try:
        with pytest.raises(
            UserError, match=r"init cannot be written .*, so there are no weights to start from; make room"
        ):
            engine._initial_model(config, RunFolder(tmp_path), ids)  # type: ignore[arg-type]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "init").exists()
    assert engine._initial_model(config, RunFolder(tmp_path), ids) == str(tmp_path / "init")  # type: ignore[arg-type]
    assert (tmp_path / "init" / "model.safetensors").stat().st_size > 20_000
