"""kill -9 of a whole training run at random moments changes nothing: the final weights are bit-equal.

Ten kills here; fifty by `SFT_KILLS=50 pytest tests/crash/test_kill_training.py -m slow`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_equal(crash: Callable[..., dict[str, Any]]) -> None:
    kills = int(os.environ.get("SFT_KILLS", "10"))
    seen = crash("kill_training.py", kills, timeout_s=300 + 40 * kills)
    assert seen["killed"] == kills
    assert seen["resumed"] > 0
    assert seen["bad"] == []  # no checkpoint that was there was half-written
    assert seen["reference"]["state"] == "finished"
    assert None not in seen["reference"]["losses"]
    for end in seen["ends"]:
        assert end == seen["reference"]
