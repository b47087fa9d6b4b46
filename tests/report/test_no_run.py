"""A folder that is no run is refused, and nothing is written into it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sft_dist.cli import main


@pytest.mark.parametrize(
    "command", [["report"], ["watch"], ["compare", "."], ["evaluate"], ["export"]], ids=lambda c: c[0]
)
def test_a_folder_that_is_no_run(
    tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*command, str(tmp_path)]) == 2
    assert re.search("(no|not a) run folder", capsys.readouterr().err)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
