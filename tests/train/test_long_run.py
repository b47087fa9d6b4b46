"""A long run: memory and open files stay as they are, and going on with it does not read what it wrote down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ranks import on_ranks

EVEN_FROM = 500  # by then every cache is filled
SLACK_BYTES = 24 << 20


@pytest.mark.slow
def test_memory_and_descriptors_are_flat_over_2000_steps(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    on_ranks(1, Path(__file__).with_name("long_run.py"), str(tmp_path), str(out))
    found = json.loads(out.read_text())
    late = [(rss, files) for step, rss, files in found["seen"] if step >= EVEN_FROM]
    assert len(late) >= 30
    assert max(rss for rss, _ in late) - late[0][0] < SLACK_BYTES
    assert max(files for _, files in late) <= late[0][1] + 4  # a checkpoint that is being written
    assert len(found["opened"]) >= 3
    assert {mode[0] for mode in found["opened"]} == {"a"}  # appended to, and not read
