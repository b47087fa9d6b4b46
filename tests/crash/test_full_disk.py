"""A full disk: training goes on, ends with a reason, the last good checkpoint is intact, and with room it goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_a_full_disk_costs_no_good_checkpoint(crash: Callable[..., dict[str, Any]]) -> None:
    seen = crash("full_disk.py", timeout_s=300)
    assert seen["codes"] == [3, 3]  # both ranks ended by themselves, together
    assert seen["status"]["state"] == "fatal"
    assert "could not be written" in seen["status"]["reason"]
    assert "the steps after 22, the last good checkpoint, are lost" in seen["status"]["reason"]
    assert seen["kinds"][-3:] == ["resumed", "save_failed", "save_failed"]
    assert seen["left"] == ["LATEST", "step-00000022"]
    assert seen["damage"] == ""
    assert seen["equal"]  # the same command, with room, ends as an undisturbed run
