"""kill -9 of `sft-dist prepare` at random moments costs the shards in hand and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.mark.slow
def test_a_preparation_killed_twenty_times_ends_byte_for_byte_equal(
    crash: Callable[..., dict[str, Any]],
) -> None:
    seen = crash("kill_prepare.py", 20, timeout_s=400)
    assert seen["killed"] == 20
    assert seen["shards"] > 5
    assert seen["half_built"] == []
    assert seen["made_again"] == []  # a finished shard is never made twice
    assert seen["unequal"] == []
    assert seen["left"] == []
