"""A run folder that is gone ends the run at the next step, and is not made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import StepMetrics
from sft_dist.core.runfolder import RunFolder
from sft_dist.train.run_log import RunLogger


def metrics(step: int) -> StepMetrics:
    return StepMetrics(
        step=step, epoch=0, loss=1.0, grad_norm=1.0, lr=1.0, tokens=1, target_tokens=1, tokens_per_s=1.0, mfu=None, fill=1.0,
        imbalance=1.0, step_s=1.0, data_wait_s=0.0, memory_bytes=1,
    )  # fmt: skip


def replaced(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.mkdir()


@pytest.mark.parametrize("happens", [shutil.rmtree, lambda p: p.rename(p.with_name("elsewhere")), replaced])
def test_a_run_folder_that_vanishes_is_fatal_at_the_next_step(
    tmp_path: Path, happens: Callable[[Path], Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    tracker: Any = SimpleNamespace(log=lambda line: None)
    lines = RunLogger(folder, tracker, is_main=True, steps=9, log_every=1, remote=None)
    other = RunLogger(folder, tracker, is_main=False, steps=9, log_every=1, remote=None)
    lines.step(metrics(1))
    happens(folder.path)
    with pytest.raises(UserError, match=r"removed, renamed or replaced.*the same command continues"):
        lines.step(metrics(2))
    other.step(metrics(2))
    assert not (folder.path / "metrics.jsonl").exists()
    if not folder.path.exists():
        with pytest.raises(FileNotFoundError):
            folder.set_status("fatal", reason="gone")
        assert not folder.path.exists()


def test_a_damaged_status_counts_as_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for text in ("", "{", "[]", "3", "\udcff"):
        (tmp_path / "status.json").write_text(text, errors="surrogateescape")
        assert folder.status() == {}
    folder.set_status("running", step=1)
    assert folder.status()["step"] == 1
