"""A bad batch costs its own update and nothing else, on two ranks: state bit-equal to a run that never saw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Outcome = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("case", ["3:spike", "2:spike", "0:spike", "3:nonfinite"])
def test_a_skipped_step_leaves_no_trace(outcome: Outcome, case: str) -> None:
    seen = outcome(2)[f"bad:{case}:skip"]
    assert seen["everywhere"] == [[True, "finished", 7]] * 2
    assert seen["skipped"] == [False] * 4 + [True] + [False] * 2
    [(kind, facts)] = seen["events"]
    cause = case.partition(":")[2]
    assert (kind, facts["step"], facts["cause"]) == ("skipped_step", 5, cause)
    # rank 0 trains documents 0, 4, 8, ... in its first micro-batch, rank 1 documents 1, 5, 9, ...
    assert facts["examples"][0] == ("doc1" if cause == "spike" else "doc0")


@pytest.mark.parametrize("cause", ["spike", "nonfinite"])
def test_stop_keeps_the_state_before_the_bad_step(outcome: Outcome, cause: str) -> None:
    seen = outcome(2)[f"bad:3:{cause}:stop"]
    assert seen["everywhere"] == [[True, "fatal", 4]] * 2
    assert seen["checkpoints"] == ["step-00000004"]
    assert f"train.on_{cause}=stop" in seen["reason"]
    assert "that of step 4" in seen["reason"]
    assert [e[0] for e in seen["events"]] == ["skipped_step", "commit", "fatal"]
