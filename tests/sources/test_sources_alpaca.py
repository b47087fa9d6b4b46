"""Single-turn records: field mapping, references, history, instances, names of tasks and datasets."""

from __future__ import annotations

import json

import pytest

from sft_dist.core.records import BadRecord, Message
from sft_dist.holdout import input_key
from sft_dist.sources.alpaca import AlpacaReader


@pytest.fixture
def reader(tmp_path):
    def build(*rows, **options):
        path = tmp_path / "x.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return AlpacaReader("mine", path=str(path), **options)

    return build


def read(reader, *rows, **options):
    return list(reader(*rows, **options))


@pytest.mark.parametrize("nothing", [" \n", "<noinput>", "<NoInput>\n"])
def test_an_input_that_says_nothing_is_none(reader, nothing):
    """As an input, it would be one that all such records share, and would be evaluated or dropped together."""
    a, b = read(reader, *({"instruction": f"Say {w}.", "input": nothing, "output": w} for w in "ab"))
    assert (a.instruction, a.input, a.messages[0].content) == ("Say a.", "", "Say a.")
    assert input_key(a) != input_key(b)


def test_instruction_input_output(reader):
    [e] = read(reader, {"instruction": "Add.", "input": "1 2", "output": "3"})
    assert e.messages == (Message(role="user", content="Add.\n\n1 2"), Message(role="assistant", content="3"))
    assert (e.instruction, e.input, e.output) == ("Add.", "1 2", "3")
    assert (e.task, e.source, e.origin, e.references) == ("mine", "mine", (), ())


@pytest.mark.parametrize("row", [{"input": ""}, {"input": None}, {}])
def test_input_is_optional(reader, row):
    [e] = read(reader, {"instruction": "Sing.", "output": "La", **row})
    assert e.messages[0].content == "Sing."
    assert e.input_start is None


def test_field_mapping_reads_prompt_and_completion(reader):
    [e] = read(
        reader,
        {"prompt": "p", "completion": "c", "sys": "s", "input": "not ours"},
        instruction_field="prompt",
        input_field=None,
        output_field="completion",
        system_field="sys",
    )
    assert [(m.role, m.content) for m in e.messages] == [("system", "s"), ("user", "p"), ("assistant", "c")]


def test_the_first_output_field_that_is_there(reader):
    rows = ({"instruction": "a", "output": "1"}, {"instruction": "b", "output": None, "response": "2"})
    assert [e.output for e in read(reader, *rows, output_field=("output", "response"))] == ["1", "2"]


def test_a_list_of_outputs_is_a_list_of_references(reader):
    [e] = read(reader, {"instruction": "a", "output": ["x", "y", "x"]})
    assert (e.output, e.references) == ("x", ("x", "y"))
    [e] = read(reader, {"instruction": "a", "output": ["x"]})
    assert (e.output, e.references) == ("x", ())


def test_history(reader):
    row = {"instruction": "c", "input": "i", "output": "d", "old": [["a", "b"]], "s": "sys"}
    [e] = read(reader, row, history_field="old", system_field="s")
    assert [m.content for m in e.messages] == ["sys", "a", "b", "c\n\ni", "d"]
    assert [e.messages[i].role for i in (0, 1, 2, 3, 4)] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]


def test_instances_share_the_instruction(reader):
    row = {
        "name": "t7",
        "instruction": "Add.",
        "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "?"}],
    }
    found = read(reader, row, instances_field="instances", task="{name}")
    assert [(e.instruction, e.input, e.output, e.task) for e in found] == [
        ("Add.", "1 2", "3", "t7"),
        ("Add.", "", "?", "t7"),
    ]


def test_names_from_fields(reader):
    row = {"instruction": "a", "output": "b", "set": "squad", "template": 3, "tags": ["qa"]}
    [e] = read(reader, row, task="p3/{set}/{template}/{tags}", dataset="{set}")
    assert e.task == "p3/squad/3/qa"
    assert e.origin == ("dataset:squad",)
    [e] = read(reader, row, task="all", dataset="alpaca")
    assert (e.task, e.origin) == ("all", ("dataset:alpaca",))


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"input": "i", "output": "o"}, "field 'instruction' is missing (the record has input, output)"),
        ({"instruction": "a"}, "field 'output' is missing (the record has instruction)"),
        ({"instruction": 5, "output": "o"}, "field 'instruction' holds a number, not text"),
        ({"instruction": None, "output": "o"}, "field 'instruction' holds null, not text"),
        ({"instruction": "a", "input": ["x"], "output": "o"}, "field 'input' holds a list, not text"),
        ({"instruction": "a", "output": {"x": 1}}, "field 'output' holds an object, not text"),
        ({"instruction": "a", "output": []}, "field 'output' holds an empty list, not one of texts"),
        ({"instruction": "a", "output": ["x", 1]}, "field 'output' holds a list, not one of texts"),
        (
            {"instruction": "a", "output": "b", "old": ["q"]},
            "field 'old' is not a list of [question, answer] pairs of texts",
        ),
    ],
)
def test_bad_records_say_what_is_wrong_and_where(reader, row, reason):
    good = {"instruction": "a", "output": "b"}
    found = read(reader, good, row, good, history_field="old")
    assert [isinstance(r, BadRecord) for r in found] == [False, True, False]
    assert (found[1].line, found[1].reason) == (2, reason)


@pytest.mark.parametrize(
    "value, state",
    [(None, "holds None, not a name"), (" ", "holds ' ', not a name"), (True, "holds True, not a name")],
)
def test_a_task_field_without_a_name(reader, value, state):
    [found] = read(reader, {"instruction": "a", "output": "b", "set": value}, task="{set}")
    assert found.reason == f"field 'set', which names the task, {state}"
    [found] = read(reader, {"instruction": "a", "output": "b"}, task="{set}")
    assert found.reason == "field 'set', which names the task, is missing"


def test_a_record_is_taken_whole_or_not_at_all(reader):
    row = {"instruction": "a", "instances": [{"output": "1"}, {"output": 2}]}
    [found] = read(reader, row, instances_field="instances")
    assert isinstance(found, BadRecord)


def test_fingerprint_covers_content_and_options_but_not_the_place(reader, tmp_path):
    row = {"instruction": "a", "output": "b"}
    first = reader(row).fingerprint()
    assert reader(row).fingerprint() == first
    assert reader(row, task="t").fingerprint() != first
    assert reader(row, system_field="s").fingerprint() != first
    assert reader({**row, "output": "c"}).fingerprint() != first
    other = tmp_path / "elsewhere" / "x.jsonl"
    other.parent.mkdir()
    other.write_text(json.dumps(row))
    assert AlpacaReader("mine", path=str(other)).fingerprint() == first
    other.rename(other.with_name("y.jsonl"))
    assert AlpacaReader("mine", path=str(other.with_name("y.jsonl"))).fingerprint() != first


def test_reading_twice_gives_the_same(reader):
    source = reader(*({"instruction": str(i), "output": "x"} for i in range(5)))
    assert list(source) == list(source)
    assert len({e.id for e in source}) == 5
