"""cluster/sweep/search.py: the same past gives the same point; what lags behind is hopeless."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from sft_dist.cluster.sweep.folder import Definition, Trial
from sft_dist.cluster.sweep.search import Past, hopeless, suggest

pytest.importorskip("optuna")

SEARCH = Definition(
    method="optuna",
    metric="eval_loss",
    space={"optim.lr": "tag(log,interval(1e-5,1))", "n": "range(1,9,2)", "s": "choice(a,b)"},
    overrides=[],
    cwd="",
    base={},
    trials=24,
    pruning="none",
    prune_after=0.2,
    retries=0,
    max_parallel=1,
    seed=3,
)


def loss(settings: dict[str, str]) -> float:
    """Lowest at lr=1e-3 and s=b; n does not matter."""
    return (math.log10(float(settings["optim.lr"])) + 3) ** 2 + (settings["s"] == "a")


def finished(number: int, value: float, curve=(), **settings) -> Past:
    return Past(Trial(number=number, settings=settings, state="finished", value=value), list(curve))


def search(definition: Definition) -> list[Past]:
    past: list[Past] = []
    for number in range(definition.trials):
        settings = suggest(definition, past, number)
        past.append(finished(number, loss(settings), **settings))
    return past


def test_a_search_is_a_function_of_its_seed_and_finds_the_valley():
    first, again = search(SEARCH), search(SEARCH)
    assert [p.trial.settings for p in first] == [p.trial.settings for p in again]
    assert [p.trial.settings for p in search(replace(SEARCH, seed=4))] != [p.trial.settings for p in first]
    assert {p.trial.settings["n"] for p in first} <= {"1", "3", "5", "7"}
    random, model = (min(p.trial.value for p in part) for part in (first[:6], first[6:]))
    assert model < min(random, 0.5)


def test_the_direction_follows_the_metric():
    """The best of six scores lies at 0.9: the model looks there, and not at 0.1, where the lowest is."""
    space = {"x": "interval(0.0,1.0)"}
    past = [finished(i, x, x=str(x)) for i, x in enumerate((0.1, 0.3, 0.5, 0.7, 0.8, 0.9))]
    highest = replace(SEARCH, metric="validation", space=space, trials=4)
    drawn = [float(suggest(highest, past, n)["x"]) for n in range(6, 16)]
    assert sum(drawn) / len(drawn) > 0.6
    lowest = [float(suggest(replace(highest, metric="eval_loss"), past, n)["x"]) for n in range(6, 16)]
    assert sum(lowest) / len(lowest) < 0.5


STEPS = (20, 40, 60, 80, 100)
GOOD = [finished(i, 1.0 + i / 10, [(s, 1.0 + i / 10 + 10 / s) for s in STEPS], x="0.5") for i in range(3)]
SPACE = {"x": "interval(0.0,1.0)"}


def live(values) -> Past:
    return Past(
        Trial(number=9, settings={"x": "0.5"}, state="running"), list(zip(STEPS, values, strict=False))
    )


@pytest.mark.parametrize("pruning", ["median", "asha"])
def test_a_trial_that_lags_behind_is_hopeless_and_one_that_leads_is_not(pruning):
    definition = replace(SEARCH, pruning=pruning, space=SPACE)
    assert hopeless(definition, GOOD, live([9.0, 9.0]), 100)
    assert not hopeless(definition, GOOD, live([0.5, 0.5]), 100)
    assert not hopeless(replace(definition, pruning="none"), GOOD, live([9.0, 9.0]), 100)


@pytest.mark.parametrize("pruning", ["median", "asha"])
def test_nothing_is_pruned_early(pruning):
    definition = replace(SEARCH, pruning=pruning, space=SPACE, prune_after=0.5)
    assert not hopeless(definition, GOOD, live([9.0, 9.0]), 100)  # step 40 of 100
    assert hopeless(definition, GOOD, live([9.0, 9.0, 9.0]), 100)


def test_the_first_trials_are_not_judged_by_the_median():
    definition = replace(SEARCH, pruning="median", space=SPACE)
    assert not hopeless(definition, GOOD[:1], live([9.0, 9.0]), 100)


def test_a_diverged_trial_is_a_bad_one_and_a_broken_one_says_nothing():
    """Where trials diverged the model no longer looks; a crash of the machine is no reason to avoid a place."""
    space = {"x": "interval(0.0,1.0)"}
    definition = replace(SEARCH, space=space, trials=4)
    ended = [finished(i, 1.0 + i / 100, x=str(0.1 + i / 50)) for i in range(4)]

    def mean(fatal: bool) -> float:
        failed = [
            Past(Trial(number=4 + i, settings={"x": str(0.8 + i / 50)}, state="failed", fatal=fatal), [])
            for i in range(6)
        ]
        drawn = [float(suggest(definition, [*ended, *failed], n)["x"]) for n in range(10, 20)]
        return sum(drawn) / len(drawn)

    assert mean(fatal=True) < mean(fatal=False)
