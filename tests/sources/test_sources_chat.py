"""Conversations: OpenAI messages, ShareGPT, OASST trees."""

from __future__ import annotations

import json

import pytest

from sft_dist.core.records import BadRecord, Message, ToolCall
from sft_dist.sources.chat import ChatReader

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "ho"}


@pytest.fixture
def read(tmp_path):
    def run(*rows, **options):
        path = tmp_path / "x.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return list(ChatReader("mine", path=str(path), **options))

    return run


def test_a_null_column_gives_way_to_the_other_spelling(read):
    [e] = read({"messages": None, "conversations": [USER, ANSWER]})
    assert [m.content for m in e.messages] == ["hi", "ho"]
    [bad] = read({"messages": None})
    assert bad.reason == "the turns are null, not a list"


def test_openai_messages(read):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}
    turns = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "1+1?", "name": "kim"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "use the tool"},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "assistant", "content": "2", "loss_weight": 0.5},
    ]
    [e] = read({"messages": turns, "tools": [{"name": "add"}], "chat_template_kwargs": {"b": 1, "a": True}})
    assert e.messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content="1+1?", name="kim"),
        Message(
            role="assistant",
            content="",
            reasoning_content="use the tool",
            tool_calls=(ToolCall(name="add", arguments='{"a":1}', id="c1"),),
        ),
        Message(role="tool", content="2", tool_call_id="c1"),
        Message(role="assistant", content="2", weight=0.5),
    )
    assert e.tools == ('{"name": "add"}',)
    assert e.template_kwargs == '{"a": true, "b": 1}'
    assert e.output == "2"


def test_sharegpt_with_tools(read):
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": "gpt", "value": "I look."},
        {"from": "function_call", "value": '{"name": "sky", "arguments": {"at": "Zürich"}}'},
        {"from": "observation", "value": "sun"},
        {"from": "function_call", "value": '[{"name": "a", "arguments": "{}"}, {"name": "b"}]'},
        {"from": "observation", "value": "1, 2"},
        {"from": "gpt", "value": "Sun."},
    ]
    [e] = read({"conversations": turns, "system": "be kind", "tools": '[{"name": "sky"}]'})
    assert [m.role for m in e.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert e.messages[2] == Message(
        role="assistant", content="I look.", tool_calls=(ToolCall(name="sky", arguments='{"at": "Zürich"}'),)
    )
    assert [(c.name, c.arguments) for c in e.messages[4].tool_calls] == [("a", "{}"), ("b", "{}")]
    assert e.tools == ('{"name": "sky"}',)


def test_content_given_as_parts(read):
    parts = [
        {"type": "reasoning", "value": "think"},
        {"type": "text", "value": "one"},
        {"type": "text", "text": "two"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    ]
    [e] = read(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": parts},
            ]
        }
    )
    assert e.messages[0].content == "q"
    assert e.messages[1] == Message(
        role="assistant",
        content="onetwo",
        reasoning_content="think",
        tool_calls=(ToolCall(name="f", arguments='{"x": 1}'),),
    )


def test_other_spellings(read):
    [e] = read(
        {"conversation": [{"from": "User", "value": "a"}, {"role": "bot", "content": "b", "train": False}]}
    )
    assert [m.role for m in e.messages] == ["user", "assistant"]
    assert e.messages[1].weight == 0.0
    [e] = read({"talk": json.dumps([USER, ANSWER])}, messages_field="talk")
    assert e.output == "ho"
    [e] = read({"messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]})
    assert e.messages[1].tool_calls == (ToolCall(name="f", arguments="{}"),)
    nulls = {"role": None, "content": None}
    [e] = read({"messages": [nulls | {"from": "human", "value": "a"}, nulls | {"from": "gpt", "value": "b"}]})
    assert e.output == "b"
    for empty in ("", None, [], "[]"):
        [e] = read({"messages": [USER, ANSWER], "tools": empty})
        assert e.tools == ()


@pytest.mark.parametrize(
    "row, reason",
    [
        (
            {"text": "x"},
            "field 'messages' or 'conversations' or 'conversation' or 'contents' is missing (the record has text)",
        ),
        ({"messages": []}, "the list of turns is empty"),
        ({"messages": None}, "the turns are null, not a list"),
        (
            {"messages": "nothing"},
            "the turns cannot be read as JSON: Expecting value: line 1 column 1 (char 0)",
        ),
        ({"messages": [USER, "ho"]}, "turn 2: is text, not an object"),
        (
            {"messages": [USER, {"content": "x"}]},
            "turn 2: has no 'role' or 'from' or 'speaker' field (it has content)",
        ),
        ({"messages": [{"role": "usr", "content": "x"}]}, "turn 1: unknown role 'usr'. Did you mean 'user'?"),
        ({"messages": [{"role": None, "content": "x"}]}, "turn 1: unknown role None"),
        (
            {"messages": [USER, {"role": "assistant"}]},
            "turn 2: field 'content' is missing, and there is no tool call",
        ),
        (
            {"messages": [{"role": "user", "content": None}, ANSWER]},
            "turn 1: field 'content' is null, and there is no tool call",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": 5}]},
            "turn 2: its content is a number, not text or a list of parts",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]},
            "turn 1: a part of its content has type 'image_url'; only text, reasoning and tool calls can be read",
        ),
        (
            {"messages": [USER, {**ANSWER, "weight": -1}]},
            "turn 2: field 'weight' holds -1, not a loss weight of 0 or more",
        ),
        (
            {"messages": [USER, {**ANSWER, "loss_weight": "one"}]},
            "turn 2: field 'loss_weight' holds 'one', not a loss weight of 0 or more",
        ),
        ({"messages": [ANSWER, USER]}, "the first turn that is not a system turn is assistant, not user"),
        ({"messages": [{"role": "system", "content": "s"}]}, "there are only system turns"),
        ({"messages": [USER]}, "there is no assistant turn to train on"),
        ({"messages": [USER, ANSWER], "tools": "{"}, "'tools' cannot be read as JSON: "),
        ({"messages": [USER, ANSWER], "tools": [1]}, "an entry of 'tools' is a number, not a schema"),
        (
            {
                "messages": [
                    USER,
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]},
                ]
            },
            "turn 2: the arguments of the call of 'f' cannot be read as JSON: ",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
            "turn 2: a tool call has no 'name'",
        ),
        (
            {"messages": [{**USER, "tool_calls": [{"name": "f"}]}, ANSWER]},
            "turn 1: a user turn holds tool calls, which only",
        ),
        (
            {"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "system": "t"},
            "there are both a 'system' field and a system turn",
        ),
        (
            {"messages": [USER, ANSWER], "template_kwargs": "[1]"},
            "the template's variables are a list, not an object",
        ),
        (
            {"prompt": {"role": "prompter", "text": "q", "replies": []}},
            "the tree holds no assistant turn to train on",
        ),
        ({"prompt": {"role": "oracle", "text": "q"}}, "unknown role 'oracle' in the tree"),
    ],
)
def test_bad_records_say_what_is_wrong_and_where(read, row, reason):
    good = {"messages": [USER, ANSWER]}
    found = read(good, row, good)
    assert [isinstance(r, BadRecord) for r in found] == [False, True, False]
    assert found[1].line == 2
    assert found[1].reason.startswith(reason)


def test_a_given_format_is_kept_to(read):
    [found] = read(
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, format="messages"
    )
    assert found.reason == "turn 1: has no 'role' field (it has from, value)"


def node(text, role, *replies, **more):
    return {"text": text, "role": role, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t",
    "prompt": node(
        "q",
        "prompter",
        node("worse", "assistant", node("and?", "prompter", node("end", "assistant")), rank=1),
        node(
            "best",
            "assistant",
            node("why", "prompter"),
            node("how", "prompter", node("so", "assistant")),
            rank=0,
        ),
        node("spam", "assistant", rank=None, deleted=True),
        node("rude", "assistant", rank=-1, review_result=False),
    ),
}


def test_the_best_path_of_a_tree(read):
    [e] = read(TREE)
    # "why" comes first among replies of equal rank, and has no answer
    assert [(m.role, m.content) for m in e.messages] == [("user", "q"), ("assistant", "best")]


def test_all_paths_of_a_tree_train_each_answer_once(read):
    found = read(TREE, paths="all")
    assert [[(m.content, m.weight) for m in e.messages] for e in found] == [
        [("q", None), ("best", None)],
        [("q", None), ("best", 0.0), ("how", None), ("so", None)],
        [("q", None), ("worse", None), ("and?", None), ("end", None)],
    ]
