"""What the pipeline wrote is read back as it was: task, origin, references, tools, reasoning."""

import json

from sft_dist.config.sources import ExamplesSource
from sft_dist.core.records import (
    BadRecord,
    Message,
    Phrasing,
    ToolCall,
    example_to_dict,
    make_example,
    single_turn,
)
from sft_dist.sources import open_source

PLAIN = single_turn(
    task="t", source="mine", instruction="Add.", input="1 2", output="3", references=("3", "three"), origin=("task:s", "dataset:d")
)  # fmt: skip
TOOLS = make_example(
    task="u",
    source="mine",
    messages=(
        Message(role="user", content="Rain?"),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolCall(name="weather", arguments='{"at":"x"}', id="1"),),
        ),
        Message(role="tool", content="no", tool_call_id="1"),
        Message(role="assistant", content="No.", reasoning_content="It said no.", weight=0.5),
    ),
    tools=('{"name":"weather"}',),
)

JUDGED = make_example(
    task="v",
    source="mine",
    messages=(Message(role="user", content="Wet?"), Message(role="assistant", content="yes")),
    choices=("yes", "no"),
    phrasings=(Phrasing("Is it wet?", "yes"),),
    checks=('{"verifier": "no_commas"}',),
)


def read(tmp_path, lines, **options):
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(open_source("mine", ExamplesSource(kind="examples", path=str(file), **options)))


def test_there_and_back(tmp_path):
    assert read(tmp_path, map(example_to_dict, [PLAIN, TOOLS, JUDGED])) == [PLAIN, TOOLS, JUDGED]


def test_task_and_dataset_of_the_config_win(tmp_path):
    (example,) = read(tmp_path, [example_to_dict(PLAIN)], task="other", dataset="e")
    assert (example.task, example.origin) == ("other", ("task:s", "dataset:d", "dataset:e"))


def test_a_record_that_is_something_else_is_reported(tmp_path):
    whole = example_to_dict(PLAIN)
    lines = [
        whole,
        {**whole, "origin": "x"},
        {**whole, "messages": None},
        {**whole, "input_start": "4"},
        {"task": "t"},
        {**whole, "phrasings": [["x"]]},
        {**whole, "checks": ['{"verifier": "unit_tests"}']},
    ]
    records = read(tmp_path, lines)
    assert [isinstance(r, BadRecord) for r in records] == [False, *[True] * 6]
    assert [r.line for r in records[1:]] == [2, 3, 4, 5, 6, 7]
    assert "'origin' holds text" in records[1].reason
