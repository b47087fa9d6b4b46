"""A bad batch costs its own update and nothing else, on two ranks: state bit-equal to a run that never saw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases import Bad

Outcome = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    "case",
    [
        Bad(stage=3, cause="spike", action="skip"),
        Bad(stage=2, cause="spike", action="skip"),
        Bad(stage=0, cause="spike", action="skip"),
        Bad(stage=3, cause="nonfinite", action="skip"),
    ],
)
def test_a_skipped_step_leaves_no_trace(outcome: Outcome, case: Bad) -> None:
    seen = outcome(case)
    assert seen["everywhere"] == [[True, "finished", 7]] * 2
    assert seen["skipped"] == [False] * 4 + [True] + [False] * 2
    [(kind, facts)] = seen["events"]
    assert (kind, facts["step"], facts["cause"]) == ("skipped_step", 5, case.cause)
    # rank 0 trains documents 0, 4, 8, ... in its first micro-batch, rank 1 documents 1, 5, 9, ...
    assert facts["examples"][0] == ("doc1" if case.cause == "spike" else "doc0")


@pytest.mark.parametrize(
    "case", [Bad(stage=3, cause=cause, action="stop") for cause in ("spike", "nonfinite")]
)
def test_stop_keeps_the_state_before_the_bad_step(outcome: Outcome, case: Bad) -> None:
    seen = outcome(case)
    assert seen["everywhere"] == [[True, "fatal", 4]] * 2
    assert seen["checkpoints"] == ["step-00000004"]
    assert f"train.on_{case.cause}=stop" in seen["reason"]
    assert "that of step 4" in seen["reason"]
    assert [e[0] for e in seen["events"]] == ["skipped_step", "commit", "fatal"]
