"""Natural Instructions task files: v2, the five-key variant, v1; Tk-Instruct's encoding; what is wrong with a file."""

from __future__ import annotations

import gzip
import json

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord
from sft_dist.sources.natural_instructions import NaturalInstructionsReader, TaskInfo
from sft_dist.sources.task_files import read_task_list

V2 = {
    "Source": ["squad; wiki", "librispeech_asr,"],
    "Categories": ["Question Answering"],
    "Domains": ["Wikipedia"],
    "Reasoning": [],
    "Definition": ["Answer the question", "A paraphrase."],
    "Input_language": ["English"],
    "Output_language": ["English"],
    "Positive Examples": [
        {"input": "Who?", "output": "Ann", "explanation": "She did"},
        {"input": "When?", "output": "2 pm.", "explanation": ""},
    ],
    "Negative Examples": [
        {"input": "Why?", "output": "", "explanation": "Empty!"},
        {"input": "-", "output": "-"},
        "-",
    ],
    "Instances": [
        {"id": "i-1", "input": "Where?", "output": ["Rome", "in Rome", "Rome"]},
        {"id": "i-2", "input": "How?", "output": "well"},
    ],
    "Instance License": ["MIT"],
}
MINIMAL = {k: V2[k] for k in ("Definition", "Categories", "Positive Examples", "Negative Examples")} | {
    "Instances": [{"input": "x", "output": ["y"]}]
}
V1 = {
    "Contributors": "someone",
    "Source": "quoref",
    "Categories": "Question Generation",
    "Prompt": "Write a question.",
    "Definition": "Read the passage and ask",
    "Things to Avoid": "Yes or no questions",
    "Emphasis & Caution": "-",
    "Examples": {
        "Positive Examples": [{"input": "Passage: p", "output": "Who?", "reason": "good", "suggestion": "-"}],
        "Negative Examples": "-",
    },
    "Instances": [{"input": "Passage: z", "output": ["Where?"]}],
}


@pytest.fixture
def folder(tmp_path):
    for name, task in (("task001_squad", V2), ("task002_mini", MINIMAL), ("subtask003_v1", V1)):
        (tmp_path / f"{name}.json").write_text(json.dumps(task, indent=1))
    (tmp_path / "manifest.json").write_text("[]")
    return tmp_path


def read(folder, **options):
    return list(NaturalInstructionsReader("ni", path=str(folder), **options))


def test_the_definition_and_the_input(folder):
    first, second, third = read(folder, tasks=("task*",))
    assert first.messages[0].content == "Answer the question.\n\nWhere?"
    assert (first.instruction, first.input, first.output) == ("Answer the question.", "Where?", "Rome")
    assert first.references == ("Rome", "in Rome")
    assert (second.output, second.references) == ("well", ())
    assert [e.task for e in (first, second, third)] == ["task001_squad", "task001_squad", "task002_mini"]
    assert first.origin == ("dataset:squad", "dataset:wiki", "dataset:librispeech_asr")
    assert third.origin == ()


def test_examples_as_tk_instruct_writes_them(folder):
    [first, _] = read(folder, tasks=("task001*",), positive_examples=2, negative_examples=2)
    assert (
        first.instruction
        == (
            "Answer the question."
            "\n\n Positive Example 1 -\nInput: Who?\n Output: Ann."
            "\n\n Positive Example 2 -\nInput: When?\n Output: 2 pm."
            "\n\n Negative Example 1 -\nInput: Why?\n Output: "
        ).rstrip()
    )
    [first, _] = read(
        folder,
        tasks=("task001*",),
        positive_examples=2,
        negative_examples=1,
        explanations=True,
        definition=False,
    )
    assert first.instruction == (
        " Positive Example 1 -\nInput: Who?\n Output: Ann.\n Explanation: She did."
        "\n\n Positive Example 2 -\nInput: When?\n Output: 2 pm."
        "\n\n Negative Example 1 -\nInput: Why?\n Output: \n Explanation: Empty!"
    )


def test_no_prompt_shows_its_own_answer(tmp_path):
    task = V2 | {"Instances": [{"input": "Who? ", "output": "Ann"}, {"input": "Where?", "output": "Rome"}]}
    (tmp_path / "task1.json").write_text(json.dumps(task))
    own, other = read(tmp_path, positive_examples=1)
    assert own.instruction == "Answer the question.\n\n Positive Example 1 -\nInput: When?\n Output: 2 pm."
    assert other.instruction == "Answer the question.\n\n Positive Example 1 -\nInput: Who?\n Output: Ann."


def test_no_instruction_at_all(folder):
    [e] = read(folder, tasks=("task002*",), definition=False)
    assert (e.messages[0].content, e.input_start) == ("x", None)


def test_v1(folder):
    [e] = read(folder, tasks=("sub*",), positive_examples=1, negative_examples=1, explanations=True)
    assert e.instruction == (
        "Read the passage and ask. Yes or no questions. Write a question."
        "\n\n Positive Example 1 -\nInput: Passage: p.\n Output: Who?\n Explanation: good."
    )
    assert (e.input, e.output, e.task, e.origin) == (
        "Passage: z",
        "Where?",
        "subtask003_v1",
        ("dataset:quoref",),
    )


def test_choice_of_tasks(folder, tmp_path):
    split = tmp_path / "split.txt"
    split.write_text("task001_squad\n\ntask999_gone.json\r\n")
    assert {e.task for e in read(folder, task_file=str(split))} == {"task001_squad"}
    assert [e.task for e in read(folder, max_per_task=1)] == [
        "subtask003_v1",
        "task001_squad",
        "task002_mini",
    ]
    assert {e.task for e in read(folder / "task001_squad.json")} == {"task001_squad"}
    for options, message in (
        (
            {"tasks": ("task01_squad",)},
            r"tasks names 'task01_squad', which matches none of 3 .*Did you mean 'task001_squad'",
        ),
        ({"tasks": ("task002*",), "task_file": str(split)}, "no task is both in"),
        ({"task_file": str(tmp_path / "no.txt")}, r"no\.txt does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            read(folder, **options)
    split.write_text("task1_squad\n")
    with pytest.raises(
        UserError, match=r"none of the 1 tasks in .* has a file.*Did you mean 'task001_squad'"
    ):
        read(folder, task_file=str(split))


def test_task_lists(tmp_path):
    path = tmp_path / "tasks.txt"
    path.write_bytes(b"\xef\xbb\xbftask1\r\n task2.json \n\n")
    assert read_task_list(str(path)) == ["task1", "task2"]
    path.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        read_task_list(str(path))
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is not text"):
        read_task_list(str(path))


def test_folders(folder, tmp_path):
    (tmp_path / "repo").mkdir()
    with pytest.raises(UserError, match=r"holds no task\*\.json file"):
        read(tmp_path / "repo")
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "nowhere")
    (tmp_path / "repo" / "tasks").mkdir()
    (tmp_path / "repo" / "tasks" / "task9.json.gz").write_bytes(gzip.compress(json.dumps(MINIMAL).encode()))
    assert [e.task for e in read(tmp_path / "repo")] == ["task9"]


def test_task_from_a_field_and_dataset_by_name(folder):
    first, *_ = read(folder, tasks=("task001*",), task="{Categories}/{task}", dataset="mine")
    assert first.task == "Question Answering/task001_squad"
    assert first.origin == ("dataset:mine",)


def test_task_info(folder):
    info = NaturalInstructionsReader("ni", path=str(folder)).task_info()
    assert info["task001_squad"] == TaskInfo(
        task="task001_squad",
        categories=("Question Answering",),
        domains=("Wikipedia",),
        reasoning=(),
        datasets=("squad", "wiki", "librispeech_asr"),
        input_languages=("English",),
        output_languages=("English",),
        license=("MIT",),
        instances=2,
    )
    assert info["task002_mini"].license == ()


@pytest.mark.parametrize(
    "instance, reason",
    [
        ({"id": "i-9", "output": ["y"]}, "instance i-9: 'input' is missing"),
        ({"input": "x"}, "the instance: 'output' is missing"),
        ({"input": 3, "output": "y"}, "the instance: 'input' is a number, not text"),
        (
            {"input": "x", "output": []},
            "the instance: 'output' is an empty list, not a text or a list of texts",
        ),
        (
            {"input": "x", "output": ["y", 1]},
            "the instance: 'output' is a list, not a text or a list of texts",
        ),
        ("x", "instance 2 is text, not an object"),
    ],
)
def test_a_bad_instance_is_named_by_its_line(tmp_path, instance, reason):
    good = {"input": "x", "output": "y"}
    path = tmp_path / "task1.json"
    path.write_text(json.dumps(MINIMAL | {"Instances": [good, instance, good]}, indent=1))
    found = read(path)
    assert [isinstance(r, BadRecord) for r in found] == [False, True, False]
    lines = path.read_text().split("\n")
    assert found[1].reason == reason
    # the opening line of the second instance: four lines after "Instances": [
    assert found[1].line == next(i for i, line in enumerate(lines, 1) if '"Instances"' in line) + 5
    assert str(instance)[:8].strip("{}") in found[1].text


@pytest.mark.parametrize(
    "text, line, reason",
    [
        ('{\n"Definition": "x",\n"Instances": [}', 3, "the whole task file: not valid JSON: "),
        ("[]", None, "the whole task file: the record is an array"),
        ('{"Definition": "x"}', None, "the whole task: 'Instances' is missing"),
        (
            '{"Definition": "x", "Instances": {}}',
            None,
            "the whole task: 'Instances' is an object, not a list",
        ),
        ('{"Instances": []}', None, "the whole task: 'Definition' is missing"),
    ],
)
def test_a_bad_task_file_costs_one_record(folder, text, line, reason):
    (folder / "task000_bad.json").write_text(text)
    bad, *others = read(folder)[1:]
    assert isinstance(bad, BadRecord)
    assert bad.line == line
    assert bad.reason.startswith(reason)
    assert len(others) == 3
    info = NaturalInstructionsReader("ni", path=str(folder)).task_info()
    assert "task000_bad" not in info or info["task000_bad"].instances == 0


def test_fingerprint(folder):
    def of(**options):
        return NaturalInstructionsReader("ni", path=str(folder), **options).fingerprint()

    first = of()
    assert of() == first
    assert (
        len(
            {
                first,
                of(positive_examples=1),
                of(explanations=True),
                of(max_per_task=1),
                of(definition=False),
                of(tasks=("sub*",)),
            }
        )
        == 6
    )
    (folder / "task002_mini.json").write_text(json.dumps(MINIMAL | {"Definition": "z"}))
    assert of() != first
