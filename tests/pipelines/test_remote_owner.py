"""A place of checkpoint.remote belongs to one run: another one is refused before it would continue those checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


def test_checkpoints_of_another_run_are_not_continued(sft: Any, project: Path, tmp_path: Path) -> None:
    assert sft("prepare", "my.yaml")[0] == 0
    url = f"checkpoint.remote=file://{tmp_path}/bucket/run"
    assert sft("write-run", "my.yaml", url, "--run-dir", "runs/first")[0] == 0
    checkpoint = tmp_path / "bucket" / "run" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "index.json").write_text("{}")
    shutil.copy(project / "runs" / "first" / "config.json", checkpoint.parent)

    # its folder was lost: the same settings go on
    assert sft("write-run", "my.yaml", url, "train.log_every_steps=7", "--run-dir", "runs/again")[0] == 0

    code, _, err = sft("write-run", "my.yaml", url, "optim.lr=0.5", "--run-dir", "runs/other")
    assert code == 2
    assert "a run with other settings (optim.lr " in err
    assert not (project / "runs" / "other" / "config.json").exists()

    code, _, err = sft("write-run", "my.yaml", url, "checkpoint.resume=never", "--run-dir", "runs/first")
    assert code == 2
    assert "holds the checkpoints of an earlier run" in err
    assert len(list((project / "runs").glob("first*"))) == 1  # not put aside either
