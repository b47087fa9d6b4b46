"""A kill before any call that renames, links or removes a file: the same command again ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

# in the order of kill_renames.COMMANDS; the least number of changes that each makes
CHANGES = {"prepare": 15, "construct": 3, "train": 15, "export": 2, "evaluate": 5}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.takes(900)
@pytest.mark.parametrize("command", CHANGES)
def test_a_kill_at_each_change_of_a_folder(command: str, crash: Callable[..., dict[str, Any]]) -> None:
    seen = crash("kill_renames.py", list(CHANGES).index(command), timeout_s=1500)
    assert seen["changes"] >= CHANGES[command]
    assert seen["kills"] >= CHANGES[command] // 2
    assert 10 * len(seen["alive"]) <= seen["kills"]
    assert (seen["failed"], seen["unequal"], seen["left"]) == ([], [], [])
