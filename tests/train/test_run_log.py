"""A run folder that is gone ends the run at the next step, and is not made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
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


def test_many_tasks_over_many_steps_stay_small_and_lose_no_step(tmp_path: Path) -> None:
    """800 tasks x 3,000 steps, a tenth of the tasks in each batch, were 180 MB with every task in every line."""
    tracker: Any = SimpleNamespace(log=lambda line: None)
    folder = RunFolder(tmp_path)
    names = [f"task{i:04d}_of_a_long_name" for i in range(800)]
    lines = RunLogger(folder, tracker, is_main=True, steps=3000, log_every=10_000, remote=None, tasks=names)
    for step in range(1, 3001):
        tasks = {f"task{i:04d}_of_a_long_name": float(step) for i in range(step % 10, 800, 10)}
        lines.step(replace(metrics(step), task_loss=tasks))
    assert folder.metrics.stat().st_size < 20_000_000
    written = [m for m in read_jsonl(folder.metrics) if m["task_loss"]]
    every = written[0]["step"]
    assert 1 < every < 20
    assert [m["step"] for m in written] == [*range(every, 3001, every), *([3000] if 3000 % every else [])]
    seen = [s for s in range(1, every + 1) if s % 10 == 3]
    assert written[0]["task_loss"].get("task0003_of_a_long_name") == (sum(seen) / len(seen) if seen else None)


def test_a_damaged_status_counts_as_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for text in ("", "{", "[]", "3", "\udcff"):
        (tmp_path / "status.json").write_text(text, errors="surrogateescape")
        assert folder.status() == {}
    folder.set_status("running", step=1)
    assert folder.status()["step"] == 1
