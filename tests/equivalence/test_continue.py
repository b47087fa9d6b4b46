"""A run of three epochs that is stopped anywhere and continued by a new process: bit for bit the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases_more import WHOLE, Epochs, EpochsResume

Outcome = Callable[..., dict[str, Any]]
TERM = Epochs(name="term", saves=(5,), term_pass=9)


@pytest.mark.cases(WHOLE)
def test_the_plan_is_as_the_cases_below_assume(outcome: Outcome) -> None:
    whole = outcome(WHOLE)
    assert (whole["state"], whole["step"]) == ("finished", 9)  # three epochs of three steps
    by_epoch = [sorted(i for step in whole["ids"][e : e + 3] for i in step) for e in (0, 3, 6)]
    assert by_epoch == [[f"{i:032x}" for i in range(40)]] * 3  # every document once an epoch
    assert len({str(whole["ids"][e : e + 3]) for e in (0, 3, 6)}) == 3  # in another order each time


@pytest.mark.parametrize(
    ("case", "start"),
    [
        (EpochsResume(saved=WHOLE, at=3), [1, 0]),
        (EpochsResume(saved=WHOLE, at=4), [1, 1]),
        (EpochsResume(saved=WHOLE, at=8), [2, 2]),
    ],
    ids=["between two epochs", "in the second epoch", "before the last step"],
)
def test_continued_from_a_checkpoint(outcome: Outcome, case: EpochsResume, start: list[int]) -> None:
    whole = outcome(WHOLE)
    resumed = outcome(case)
    assert resumed["start"] == start
    for name in ("ids", "losses", "norms", "lrs"):
        assert resumed[name] == whole[name][case.at :], name
    assert resumed["difference"] == 0.0  # weights and both moments


@pytest.mark.cases(WHOLE, TERM, EpochsResume(saved=TERM, at=5))
def test_continued_after_sigterm_between_two_micro_steps(outcome: Outcome) -> None:
    """The last rank gets the signal; all ranks finish the step, save and stop."""
    whole, ended = outcome(WHOLE), outcome(TERM)
    assert (ended["state"], ended["step"]) == ("stopped", 5)
    assert ended["losses"] == whole["losses"][:5]
    resumed = outcome(EpochsResume(saved=TERM, at=5))
    assert ended["ids"] + resumed["ids"] == whole["ids"]
    assert resumed["losses"] == whole["losses"][5:]
    assert resumed["difference"] == 0.0


@pytest.mark.parametrize(
    ("world", "case"),
    [(1, EpochsResume(saved=WHOLE, at=4)), (2, EpochsResume(saved=WHOLE, at=4, sp=2))],
    ids=["on one rank", "with rows that two ranks share"],
)
def test_continued_on_other_ranks_meets_the_same_global_batches(
    outcome: Outcome, world: int, case: EpochsResume
) -> None:
    whole, resumed = outcome(WHOLE), outcome(case, world)
    assert resumed["ids"] == whole["ids"][4:]
    np.testing.assert_allclose(resumed["losses"], whole["losses"][4:], rtol=1e-6)
    assert resumed["difference"] < 1e-5
