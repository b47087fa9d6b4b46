"""`sft-dist watch`: what it shows of a run's files, and how long it stays."""

from __future__ import annotations

import io
import json
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from sft_dist.core.files import append_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.report import watch as module
from sft_dist.report.watch import watch


def step(number: int) -> dict[str, object]:
    return {"kind": "train", "step": number, "mfu": None, "loss": 1.5, "tokens_per_s": 10.0}


def followed(folder: RunFolder) -> tuple[str, str]:
    """The final state, and what was shown."""
    out = io.StringIO()
    return watch(folder.path, Console(file=out, width=200)), out.getvalue()


def test_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    append_jsonl(folder.metrics, step(1))
    with folder.metrics.open("a") as file:
        file.write(json.dumps(step(2))[:20])  # the disk was full
    append_jsonl(folder.metrics, step(3))
    folder.set_status("finished", step=3, steps=3)
    state, shown = followed(folder)
    assert state == "finished"
    assert "step 3 of 3: loss 1.5000" in shown


@pytest.mark.parametrize("file", ["slurm/jobs.json", "heartbeat"])
def test_a_run_that_was_submitted_or_is_between_attempts_is_waited_for(
    tmp_path: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / file).write_text("{}")
    asked = threading.Event()
    monkeypatch.setattr(module.time, "sleep", lambda s: asked.set() or time.monotonic())

    def begin() -> None:
        assert asked.wait(20)
        folder.set_status("stopped", step=3, steps=5)

    threading.Thread(target=begin).start()
    state, shown = followed(folder)
    assert state == "stopped"
    assert shown.count("not started yet") == 1


def test_a_folder_that_nobody_starts_is_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert followed(RunFolder(tmp_path)) == ("not started", "")


def test_ranks_that_hang_or_are_slow_are_shown_once(tmp_path: Path) -> None:
    folder, out = RunFolder(tmp_path), io.StringIO()
    folder.event("straggler", reason="of an earlier attempt")
    watcher = module.Watcher(folder, Console(file=out, width=60))
    watcher.poll()
    folder.event(
        "stalled", reason="rank 3 on n1 stands in [waiting for data], and that is a long sentence, too"
    )
    folder.event("saved", reason="nothing to see")
    watcher.poll()
    watcher.poll()
    assert out.getvalue() == "rank 3 on n1 stands in [waiting for data], and that is a long sentence, too\n"
