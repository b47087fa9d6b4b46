"""From the config to rules, and what counts as a duplicate."""

from __future__ import annotations

import pydantic
import pytest

from sft_dist.config.filters import FiltersConfig, LengthRule
from sft_dist.core.records import Drop, Message, ToolCall, make_example, single_turn
from sft_dist.filters import FILTERS, build_filters, duplicate_key, filters_fingerprint

ALL_ON = {
    name: {} if "Rule" in str(field.annotation) else True
    for name, field in FiltersConfig.model_fields.items()
    if name not in ("own", "drop_ids", "licenses", "scores", "budget")  # need a plugin, a file or a number
}


def test_the_defaults():
    assert [f.name for f in build_filters(FiltersConfig())] == ["length", "control_characters"]


def test_none_and_false_are_off_and_zero_is_a_number():
    assert build_filters(FiltersConfig(length=None, control_characters=False)) == []
    [rule] = build_filters(
        FiltersConfig(length={"min_prompt_chars": 0, "min_answer_chars": 0}, control_characters=False)
    )
    empty = single_turn(task="t", source="s", instruction="", output="")
    assert rule(empty) is None
    [rule] = build_filters(FiltersConfig(control_characters=False))
    assert rule(empty) == Drop("prompt_too_short", "0 characters < 1")


def test_every_rule_of_the_config_exists_and_runs():
    rules = build_filters(FiltersConfig(**ALL_ON))
    assert [f.name for f in rules] == list(FILTERS)
    # These need more than the one example: the selection pass.
    elsewhere = {
        "own",
        "exact_duplicates",
        "eval_inputs",
        "near_duplicates",
        "leakage",
        "drop_ids",
        "licenses",
        "scores",
        "budget",
    }
    assert set(FILTERS) == set(FiltersConfig.model_fields) - elsewhere
    good = single_turn(
        task="t", source="s", instruction="Name a colour of the sky.", output="Blue, and at dusk red."
    )
    assert [f(good) for f in rules] == [None] * len(rules)


def test_options_reach_the_rule():
    [rule, *_] = build_filters(FiltersConfig(length={"max_chars": 10}))
    assert (
        rule(single_turn(task="t", source="s", instruction="123456", output="12345")).detail
        == "11 characters > 10"
    )


def test_a_limit_that_drops_everything_is_refused():
    with pytest.raises(pydantic.ValidationError, match="every example would be dropped"):
        LengthRule(min_prompt_chars=5, max_chars=3)


def test_fingerprint_follows_the_rules_that_are_on():
    first = filters_fingerprint(FiltersConfig())
    assert filters_fingerprint(FiltersConfig(refusal=False, repetition=None)) == first
    assert filters_fingerprint(FiltersConfig(refusal=True)) != first
    assert filters_fingerprint(FiltersConfig(length={"min_answer_chars": 0})) != filters_fingerprint(
        FiltersConfig(length=None)
    )


def key(*messages, tools=(), task="t"):
    return duplicate_key(make_example(task=task, source="s", messages=messages, tools=tools))


def test_duplicates():
    user, answer = Message(role="user", content="a b"), Message(role="assistant", content="c")
    same = key(user, answer)
    assert key(Message(role="user", content=" a\n b"), answer) == same
    assert key(user, Message(role="assistant", content="c", weight=0.5)) == same
    assert key(user, answer, task="other") == same
    assert key(Message(role="user", content="caf\u00e9"), answer) == key(
        Message(role="user", content="cafe\u0301"), answer
    )
    different = [
        key(user, Message(role="assistant", content="C")),
        key(Message(role="user", content="ab"), answer),
        key(answer, user),
        key(user, answer, user, answer),
        key(user, answer, tools=('{"name": "f"}',)),
        key(user, Message(role="assistant", content="c", reasoning_content="r")),
        key(user, Message(role="assistant", content="c", tool_calls=(ToolCall(name="f", arguments="{}"),))),
        key(Message(role="user", content="a"), Message(role="assistant", content="b c")),
    ]
    assert len({same, *different}) == len(different) + 1


def test_known_duplicates_in_real_data(shared_data):
    from sft_dist.config.sources import AlpacaSource
    from sft_dist.sources import open_source

    path = str(shared_data / "alpaca-style" / "alpaca_noncommercial.jsonl")
    keys = [duplicate_key(e) for e in open_source("x", AlpacaSource(kind="alpaca", path=path))]
    assert (len(keys), len(set(keys))) == (6125, 6111)
