"""A kill before any rename of prepare, construct, export or evaluate costs nothing that the same command does not make again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_a_kill_before_any_rename_changes_no_outcome(crash: Callable[..., dict[str, Any]]) -> None:
    seen = crash("kill_renames.py", timeout_s=600)
    least = {"prepare": 10, "construct": 2, "export": 2, "evaluate": 4}
    assert {name: stage["failed"] for name, stage in seen.items()} == {name: [] for name in least}
    assert {name: stage["unequal"] for name, stage in seen.items()} == {name: [] for name in least}
    assert [name for name, n in least.items() if seen[name]["kills"] < n] == []
