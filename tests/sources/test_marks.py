"""Marks of what carries loss: of a record, a turn, a part, a call, a stretch of characters."""

from __future__ import annotations

import json

import pytest
from marked_text import marked

from sft_dist.core.records import BadRecord, example_from_dict, example_to_dict
from sft_dist.sources.alpaca import AlpacaReader
from sft_dist.sources.chat import ChatReader
from sft_dist.sources.examples import ExamplesReader
from sft_dist.sources.marks import unread_marks

ASK = {"role": "user", "content": "Weigh it."}
CALL = {"type": "function", "function": {"name": "scale", "arguments": {"kg": 2}}}
WRITTEN = '<tool_call>\n{"name": "scale", "arguments": {"kg": 2}}\n</tool_call>'


@pytest.fixture
def read(tmp_path):
    def run(row, reader=ChatReader, **options):
        path = tmp_path / "x.jsonl"
        path.write_text(json.dumps(row))
        [found] = reader("mine", path=str(path), **options)
        return found

    return run


def answer(**fields):
    return {"messages": [ASK, {"role": "assistant", "content": "heavy", **fields}]}


@pytest.mark.parametrize(
    "mark, said",
    [
        ({"weight": 0}, "heavy<end>"),
        ({"weight": 1}, "[[heavy<end>]]"),
        ({"loss_weight": 0.25}, "[[heavy<end>]]*0.25"),
        ({"loss_scale": 2}, "[[heavy<end>]]*2"),
        ({"loss": False}, "heavy<end>"),
        ({"train": False}, "heavy<end>"),
        ({"training": True}, "[[heavy<end>]]"),
        ({"trainable": False}, "heavy<end>"),
        ({"loss_mask": 0}, "heavy<end>"),
        ({"mask": True}, "heavy<end>"),
        ({"masked": False}, "[[heavy<end>]]"),
        ({"loss": True, "loss_scale": 0.5}, "[[heavy<end>]]*0.5"),
        ({"weight": 1, "train": False}, "heavy<end>"),
        ({"weight": None, "train": None}, "[[heavy<end>]]"),
        ({"train": "false"}, "heavy<end>"),
    ],
)
def test_marks_of_a_turn(read, mark, said):
    row = answer(**mark)
    row["messages"] += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "light"}]
    assert marked(read(row)) == (
        f"<user>Weigh it.<end><assistant>{said}<user>And?<end><assistant>[[light<end>]]"
    )


@pytest.mark.parametrize(
    "mark, said",
    [
        ({"weight": 0.5}, "[[heavy<end>]]*0.5"),
        ({"loss_weight": "0.5"}, "[[heavy<end>]]*0.5"),
        ({"train": True}, "[[heavy<end>]]"),
        ({"loss": 1.73}, "[[heavy<end>]]"),  # a measured loss is no mark
        ({"train": "the night train"}, "[[heavy<end>]]"),
    ],
)
def test_marks_of_a_record(read, mark, said):
    assert marked(read({**answer(), **mark})) == f"<user>Weigh it.<end><assistant>{said}"
    row = {"instruction": "Weigh it.", "output": "heavy", **mark}
    assert marked(read(row, AlpacaReader)) == f"<user>Weigh it.<end><assistant>{said}"


@pytest.mark.parametrize("mark", [{"weight": 0}, {"train": False}, {"mask": True}, {"loss": "false"}])
def test_an_excluded_record_carries_no_loss(read, mark):
    assert read({**answer(), **mark}).weight == 0


def test_a_records_weight_multiplies_those_of_its_turns(read):
    row = {**answer(weight=0.5), "weight": 0.5}
    assert marked(read(row)) == "<user>Weigh it.<end><assistant>[[heavy<end>]]*0.25"


def test_parts_are_joined_as_they_stand_and_keep_their_weights(read):
    parts = [
        {"type": "text", "text": "A stone, ", "train": False},
        {"type": "text", "text": "heavy"},
        {"type": "text", "text": " as lead", "weight": 0.5},
    ]
    found = read({"messages": [ASK, {"role": "assistant", "content": parts}]})
    assert found.output == "A stone, heavy as lead"
    assert marked(found) == "<user>Weigh it.<end><assistant>A stone, [[heavy as lead]]*0.5[[<end>]]"
    assert marked(read({"messages": [ASK, {"role": "assistant", "content": parts, "weight": 0.5}]})) == (
        "<user>Weigh it.<end><assistant>A stone, [[heavy]]*0.5[[ as lead]]*0.25[[<end>]]*0.5"
    )


def test_a_part_of_a_question_can_carry_loss(read):
    parts = [{"type": "text", "text": "Weigh", "train": True}, {"type": "text", "text": " it."}]
    found = read({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "ok"}]})
    assert marked(found) == "<user>[[Weigh]] it.<end><assistant>[[ok<end>]]"


def test_reasoning_may_be_excluded_alone(read):
    parts = [{"type": "reasoning", "text": "two kilos", "train": False}, {"type": "text", "text": "heavy"}]
    found = read({"messages": [ASK, {"role": "assistant", "content": parts}]})
    assert marked(found) == ("<user>Weigh it.<end><assistant><think>\ntwo kilos\n</think>\n\n[[heavy<end>]]")


def test_stretches_of_characters(read):
    pieces = [
        {"begin_offset": 2, "end_offset": 6, "train": True},
        {"begin_offset": 7, "end_offset": 8, "train": False},
    ]
    found = read(answer(content="a heavy stone", train_detail=pieces))
    assert marked(found) == "<user>Weigh it.<end><assistant>a [[heavy]] stone[[<end>]]"
    bad = read(
        answer(content="a heavy stone", train_detail=[{"begin_offset": 5, "end_offset": 90, "train": True}])
    )
    assert "train_detail has a piece from 5 to 90" in bad.reason


def test_thoughts_inside_the_content_move_the_stretches(read):
    text = "<think>\nlead\n</think>\n\nheavy stone"
    at = text.index("heavy")
    pieces = [{"begin_offset": at, "end_offset": at + 4, "train": True}]
    assert marked(read(answer(content=text, train_detail=pieces))) == (
        "<user>Weigh it.<end><assistant><think>\nlead\n</think>\n\n[[heavy]] stone[[<end>]]"
    )


def test_calls_keep_their_weights(read):
    found = read(answer(content="Look:", tool_calls=[{**CALL, "train": False}, CALL]))
    assert marked(found) == (f"<user>Weigh it.<end><assistant>[[Look:]]\n{WRITTEN}[[\n{WRITTEN}<end>]]")
    found = read(answer(content=None, tool_calls=[CALL, {**CALL, "weight": 0.5}]))
    assert marked(
        found
    ) == f"<user>Weigh it.<end><assistant>[[{WRITTEN}]][[\n{WRITTEN}]]*0.5[[<end>]]".replace("]][[", "")


@pytest.mark.parametrize(
    "said, called, text",
    [
        ({"weight": 0}, {}, "Look:[[\n" + WRITTEN + "<end>]]"),
        ({}, {"weight": 0}, "[[Look:]]\n" + WRITTEN + "<end>"),
        ({"loss": False}, {"loss": True}, "Look:[[\n" + WRITTEN + "<end>]]"),
        ({"weight": 0}, {"weight": 0}, None),
        ({}, {}, "[[Look:\n" + WRITTEN + "<end>]]"),
    ],
)
def test_an_answer_and_its_call_in_turns_of_their_own(read, said, called, text):
    turns = [
        {"from": "human", "value": "Weigh it."},
        {"from": "gpt", "value": "Look:", **said},
        {"from": "function_call", "value": json.dumps(CALL["function"]), **called},
    ]
    found = read({"conversations": turns})
    assert len(found.messages) == 2
    if text is None:
        assert found.messages[1].weight == 0
    else:
        assert marked(found) == f"<user>Weigh it.<end><assistant>{text}"


def test_roles_and_ends_by_key(read):
    turns = [
        {"role": "system", "content": "Be brief."},
        ASK,
        {"role": "assistant", "content": "heavy"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "light", "train": True},
    ]
    assert marked(read({"messages": turns}, train_roles=("user",))) == (
        "<system>Be brief.<end><user>[[Weigh it.<end>]]<assistant>heavy<end><user>[[And?<end>]]<assistant>[[light<end>]]"
    )
    assert marked(read({"messages": turns}, train_end_of_turn=False)) == (
        "<system>Be brief.<end><user>Weigh it.<end><assistant>[[heavy]]<end><user>And?<end><assistant>[[light]]<end>"
    )


def test_a_mark_that_means_nothing_is_refused(read):
    for mark, what in (
        ({"mask": 1}, "field 'mask' holds 1, not true or false"),
        ({"loss": "some"}, "field 'loss' holds 'some', not a loss weight of 0 or more"),
        ({"weight": -1}, "field 'weight' holds -1, not a loss weight of 0 or more"),
    ):
        found = read(answer(**mark))
        assert isinstance(found, BadRecord)
        assert found.reason == f"turn 2: {what}"


def test_a_weight_that_says_what_is_so_anyway_is_no_other_example(read):
    plain = read(answer())
    assert read({**answer(weight=1.0), "weight": 1}).id == plain.id
    assert read(answer(weight=0)).id != plain.id != read({**answer(), "weight": 0.5}).id


def test_weights_outlive_the_files_of_the_pipeline(read, tmp_path):
    parts = [
        {"type": "thinking", "thinking": "t", "train": False},
        {"type": "text", "text": "h", "weight": 0.5},
    ]
    turns = [ASK, {"role": "assistant", "content": parts, "tool_calls": [{**CALL, "weight": 0.25}]}]
    example = read({"messages": turns, "weight": 0.5}, train_end_of_turn=False)
    assert example_from_dict(json.loads(json.dumps(example_to_dict(example)))) == example
    again = read(example_to_dict(example), ExamplesReader)
    assert (again.messages, again.weight, again.id) == (example.messages, example.weight, example.id)


def test_keys_that_look_like_marks_and_are_not_read():
    row = {
        "loss_multiplier": 2,
        "loss": 1.7,
        "weight": 0.5,
        "train": True,
        "trainer": "kim",
        "attention_mask": [1],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "train_this": 1}], "masks": 1},
            {
                "role": "assistant",
                "content": "y",
                "weight": 1,
                "tool_calls": [{"name": "f", "is_trained": 0}],
            },
        ],
    }
    assert sorted(unread_marks(row)) == [
        "call.is_trained",
        "loss",
        "loss_multiplier",
        "part.train_this",
        "turn.masks",
    ]


@pytest.mark.parametrize(
    "key",
    ["lossMask", "loss-mask", "skipLoss", "noTrain", "untrained", "is_target", "supervise", "learnable", "ignored", "skip", "Exclude"],
)  # fmt: skip
def test_however_they_are_written(key: str) -> None:
    assert list(unread_marks({"messages": [{"role": "assistant", "content": "y", key: True}]})) == [
        f"turn.{key}"
    ]


@pytest.mark.parametrize(
    "key", ["trainer", "glossary", "learner_id", "target_language", "unmask_count2", "skipper"]
)
def test_words_that_only_begin_like_one(key: str) -> None:
    assert not list(unread_marks({key: 1}))
