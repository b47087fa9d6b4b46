"""cluster/sweep/space.py: overrides with several values, in Hydra's grammar."""

from __future__ import annotations

import pytest

from sft_dist.cluster.sweep.space import Interval, Values, combinations, corners, parameter, split
from sft_dist.core.errors import UserError


def test_what_has_several_values_is_swept():
    overrides = [
        "my.key=1",
        "optim.lr=1e-5,2e-5",
        "train.epochs=range(1,4)",
        "~data.sources.x",
        "a='x,y'",
        "b=[1,2]",
    ]
    assert split(overrides) == (
        ["my.key=1", "~data.sources.x", "a='x,y'", "b=[1,2]"],
        {"optim.lr": "1e-5,2e-5", "train.epochs": "range(1,4)"},
    )


def test_a_grid_is_every_combination_the_last_parameter_turning_fastest():
    assert combinations({"optim.lr": "1e-5,2e-5", "train.epochs": "range(1,3)"}) == [
        {"optim.lr": "1e-05", "train.epochs": "1"},
        {"optim.lr": "1e-05", "train.epochs": "2"},
        {"optim.lr": "2e-05", "train.epochs": "1"},
        {"optim.lr": "2e-05", "train.epochs": "2"},
    ]


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("a,b", Values(texts=("a", "b"), numeric=False)),
        ("choice(1,2)", Values(texts=("1", "2"), numeric=False)),
        ("range(1,6,2)", Values(texts=("1", "3", "5"), numeric=True)),
        ("interval(0,1)", Interval(low=0.0, high=1.0, log=False, integer=False)),
        ("int(interval(1,8))", Interval(low=1, high=8, log=False, integer=True)),
        ("tag(log,interval(1e-6,1e-4))", Interval(low=1e-6, high=1e-4, log=True, integer=False)),
    ],
)
def test_parameters(expression, found):
    assert parameter("x.y", expression) == found


def test_corners_show_every_end_and_choice_once():
    space = {"optim.lr": "tag(log,interval(1e-6,1e-4))", "train.epochs": "1,2,3"}
    assert corners(space) == [
        {"optim.lr": "1e-06", "train.epochs": "1"},
        {"optim.lr": "0.0001", "train.epochs": "1"},
        {"optim.lr": "1e-06", "train.epochs": "2"},
        {"optim.lr": "1e-06", "train.epochs": "3"},
    ]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: split(["optim.lr=choice(1"]), "is no override"),
        (lambda: parameter("optim.lr", "1e-5"), "has one value only"),
        (lambda: parameter("a", "glob(*)"), "glob"),
        (lambda: parameter("a", "interval(2,1)"), "is empty"),
        (lambda: parameter("a", "tag(log,interval(0,1))"), "above zero"),
        (lambda: parameter("a", "range(3,3)"), "has no value"),
        (lambda: combinations({"a": "interval(0,1)"}), "sweep.method=optuna"),
        (lambda: combinations({"a": "range(0,100)", "b": "range(0,100)"}), "10,000 combinations"),
        (lambda: combinations(dict.fromkeys("abcd", "range(0,1000)")), "1,000,000,000,000 combinations"),
        (lambda: parameter("a", "range(0,1000000000)"), "more than 1000 values"),
    ],
)
def test_mistakes_are_sentences(call, said):
    with pytest.raises(UserError, match=said):
        call()
