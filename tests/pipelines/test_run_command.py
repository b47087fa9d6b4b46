"""`sft-dist run`, the command of the README: everything from raw records to a report, on one rank and a small model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

Sft = Callable[..., tuple[int, str, str]]


def test_run_goes_from_records_to_a_report(sft: Sft, project: Path) -> None:
    code, out, err = sft("run", "my.yaml", "launch.nproc=1", "train.max_steps=2")
    assert code == 0, err
    (folder,) = (project / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "export" / "config.json").is_file()
    assert (folder / "eval" / "scores.json").is_file()
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert "report.html" in out
