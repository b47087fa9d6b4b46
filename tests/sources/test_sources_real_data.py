"""Real data sets, read whole: every count is known, and every planted damage is named by file and line."""

from __future__ import annotations

from collections import Counter

import pytest

from sft_dist.config.sources import AlpacaSource, ChatSource, NaturalInstructionsSource
from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord, Example
from sft_dist.sources import open_source
from sft_dist.sources.files.data_files import data_files, read_records
from sft_dist.sources.natural_instructions import NaturalInstructionsReader


def read(config):
    found = list(open_source("x", config))
    return [r for r in found if isinstance(r, Example)], [r for r in found if isinstance(r, BadRecord)]


@pytest.mark.parametrize(
    "name, examples, options",
    [
        ("alpaca_permissive.jsonl", 10607, {"task": "{source}"}),
        ("alpaca_noncommercial.jsonl", 6125, {}),
        ("alpaca_zh_demo_200.json", 200, {}),
        (
            "dolly_hhrlhf_train_small.jsonl",
            1000,
            {"instruction_field": "prompt", "input_field": None, "output_field": "response"},
        ),
    ],
)
def test_alpaca_style(shared_data, name, examples, options):
    good, bad = read(AlpacaSource(kind="alpaca", path=str(shared_data / "alpaca-style" / name), **options))
    assert (len(good), bad) == (examples, [])


def test_tasks_of_alpaca_style(shared_data):
    path = str(shared_data / "alpaca-style" / "alpaca_permissive.jsonl")
    good, _ = read(AlpacaSource(kind="alpaca", path=path, task="{source}", dataset="{source}"))
    tasks = Counter(e.task for e in good)
    assert len(tasks) == 7
    assert all(e.origin == (f"dataset:{e.task}",) for e in good)


def test_planted_damage_in_instructwild(shared_data):
    files = data_files(str(shared_data / "instructwild" / "data_v2_user_*.jsonl"))
    found = list(read_records(files))
    bad = [r for r in found if isinstance(r, BadRecord)]
    assert [(r.file.rsplit("_", 1)[1], r.line) for r in bad] == [
        ("2.jsonl", 134),
        ("2.jsonl", 168),
        ("3.jsonl", 10),
        ("3.jsonl", 121),
        ("3.jsonl", 122),
    ]
    assert [r.reason.split(" at ")[0] for r in bad] == [
        "not valid JSON: Invalid \\escape",
        "not valid JSON: Invalid \\escape",
        "not valid JSON: Invalid \\escape",
        "not valid JSON: Unterminated string starting",
        "not valid JSON: Expecting value",
    ]
    assert all(0 < len(r.text) <= 200 for r in bad)
    assert len(found) == 878
    good, bad = read(
        AlpacaSource(kind="alpaca", path=str(files[0].parent / "data_v2*"), output_field="instruction")
    )
    assert (len(good), len(bad)) == (873, 5)


def test_instructwild_has_no_answers_to_train_on(shared_data):
    with pytest.raises(UserError, match="'output' is missing"):
        open_source(
            "x",
            AlpacaSource(
                kind="alpaca", path=str(shared_data / "instructwild" / "data_seed_prompts_en.jsonl")
            ),
        )


def test_self_instruct_seeds(shared_data):
    path = str(shared_data / "self-instruct")
    good, bad = read(AlpacaSource(kind="alpaca", path=path, instances_field="instances", task="{id}"))
    assert (len(good), bad) == (427, [])


def test_flan_tables(shared_data):
    config = AlpacaSource(
        kind="alpaca",
        path=str(shared_data / "flan-cot"),
        columns=("question", "answer", "rationale"),
        instruction_field="question",
        output_field="rationale",
        unescape=True,
    )
    good, bad = read(config)
    assert (len(good), bad) == (5873, [])
    assert not any("\\n" in e.instruction for e in good)


@pytest.mark.parametrize(
    "name, examples, turns",
    [
        ("openai_messages_v1_sft_demo.jsonl", 500, {"user": 500, "assistant": 500}),
        (
            "openai_messages_reason_tool_use_50.jsonl",
            50,
            {"system": 50, "user": 70, "assistant": 112, "tool": 42},
        ),
        ("sharegpt_dummy_conversation.json", 500, {"user": 1000, "assistant": 1000}),
        # each of 211 calls is a turn of its own in the file and joins an assistant turn only where one precedes it
        ("sharegpt_glaive_toolcall_en_demo.json", 300, {"user": 746, "assistant": 957, "tool": 211}),
        ("oasst_en_100_tree.jsonl", 100, None),
    ],
)
def test_multi_turn(shared_data, name, examples, turns):
    good, bad = read(ChatSource(kind="chat", path=str(shared_data / "multi-turn" / name)))
    assert (len(good), bad) == (examples, [])
    if turns:
        assert Counter(m.role for e in good for m in e.messages) == turns


def test_multi_turn_details(shared_data):
    folder = shared_data / "multi-turn"
    good, _ = read(ChatSource(kind="chat", path=str(folder / "openai_messages_v1_sft_demo.jsonl")))
    assert {m.weight for e in good for m in e.messages if m.role == "assistant"} == {1.0}
    assert {m.weight for e in good for m in e.messages if m.role == "user"} == {0.0}
    good, _ = read(ChatSource(kind="chat", path=str(folder / "openai_messages_reason_tool_use_50.jsonl")))
    assert sum(len(m.tool_calls) for e in good for m in e.messages) == 68
    assert all(m.reasoning_content for e in good for m in e.messages if m.role == "assistant")
    assert sum(bool(e.tools) for e in good) == 48
    good, _ = read(ChatSource(kind="chat", path=str(folder / "sharegpt_glaive_toolcall_en_demo.json")))
    assert sum(len(m.tool_calls) for e in good for m in e.messages) == 211


def test_all_paths_of_real_trees_train_each_answer_once(shared_data):
    path = str(shared_data / "multi-turn" / "oasst_en_100_tree.jsonl")
    good, bad = read(ChatSource(kind="chat", path=path, paths="all"))
    trained = [m for e in good for m in e.messages if m.role == "assistant" and m.weight != 0]
    assert bad == []
    assert len(trained) == 687  # the assistant messages of all trees


def test_prompts_without_answers_are_refused(shared_data):
    with pytest.raises(
        UserError, match=r"none of the first 80 records can be read.*question_id, category, turns"
    ):
        open_source(
            "x", ChatSource(kind="chat", path=str(shared_data / "multi-turn" / "mt_bench_question.jsonl"))
        )


def test_natural_instructions(shared_data):
    folder = shared_data / "natural-instructions"
    good, bad = read(
        NaturalInstructionsSource(kind="natural_instructions", path=str(folder), positive_examples=2)
    )
    assert (len(good), bad) == (19172, [])
    assert len({e.task for e in good}) == 109
    assert sum(len(e.references) > 1 for e in good) == 1862 - repeated_references(folder)
    assert all(e.origin and e.instruction and e.output is not None for e in good)
    assert sum(" Positive Example 2 -" in e.instruction for e in good) > 18000


def repeated_references(folder):
    """Instances whose several outputs are all the same text: no references but the answer."""
    import json

    return sum(
        len(i["output"]) > 1 and len(set(i["output"])) == 1
        for path in (folder / "tasks").glob("*.json")
        for i in json.loads(path.read_text())["Instances"]
    )


def test_the_five_key_variant(shared_data):
    path = str(shared_data / "natural-instructions" / "extra_minimal_schema")
    good, bad = read(NaturalInstructionsSource(kind="natural_instructions", path=path))
    assert (len(good), bad) == (1250, [])
    assert len({e.task for e in good}) == 5


def test_the_official_split(shared_data):
    folder = shared_data / "natural-instructions"
    options = {"kind": "natural_instructions", "path": str(folder), "max_per_task": 100}
    test, _ = read(
        NaturalInstructionsSource(task_file=str(folder / "splits/default/test_tasks.txt"), **options)
    )
    train, _ = read(
        NaturalInstructionsSource(task_file=str(folder / "splits/default/train_tasks.txt"), **options)
    )
    assert (len({e.task for e in test}), len(test)) == (16, 1556)
    assert not {e.task for e in test} & {e.task for e in train}


def test_task_info_of_real_tasks(shared_data):
    info = NaturalInstructionsReader("ni", path=str(shared_data / "natural-instructions")).task_info()
    assert len(info) == 109
    assert sum(i.instances for i in info.values()) == 19172
    assert info["task033_winogrande_answer_generation"].categories == ("Coreference Resolution",)
    assert all(i.license and i.categories and i.datasets for i in info.values())
