"""Heuristics, prompts and their answers, journals, seeds: what one checks by eye."""

import pytest

from sft_dist.construct.heuristics import answer_fault, evolved_fault, instruction_fault, keep_instances
from sft_dist.construct.journal import Journal
from sft_dist.construct.novelty import NoveltyPool
from sft_dist.construct.seed_examples import bits, group_seeds, joint_origin, shots, training_only
from sft_dist.construct.templates import (
    OPERATIONS,
    classification_prompt,
    evolve_prompt,
    input_first_prompt,
    output_first_prompt,
    parse_input_first,
    parse_output_first,
    says_equal,
    says_yes,
    split_list,
    tasks_prompt,
)
from sft_dist.core.errors import UserError
from sft_dist.core.records import Message, make_example, single_turn
from sft_dist.holdout import Holdout, input_key


def example(instruction, output="out", given="", task="t", origin=()):
    return single_turn(
        task=task, source="s", instruction=instruction, input=given, output=output, origin=origin
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name three rivers in Asia", None),
        ("Name three rivers", "length"),
        ("word " * 151, "length"),
        ("Describe the picture in two words", "unfit_word"),
        ("Say what one should go to Rome for", "unfit_word"),
        ("Describe the mapping of two words", None),
        ("Write a program that sorts numbers", "write_a_program"),
        ("(a) Name three rivers in Asia", "begins_with_punctuation"),
        ("Éclairs need which four ingredients?", "begins_non_ascii"),
    ],
)
def test_instructions(text, reason):
    fault = instruction_fault(text)
    assert (fault and fault.reason) == reason


def test_instructions_of_any_language():
    """InstructWild has a Chinese half: no spaces between words."""
    assert instruction_fault("什么东西,每个房间都有两个?").reason == "begins_non_ascii"
    assert instruction_fault("什么东西,每个房间都有两个?", english=False) is None
    assert instruction_fault("你好吗?", english=False) is None  # three words and a question mark
    assert instruction_fault("你好", english=False).reason == "length"
    pool = NoveltyPool(0.7)
    pool.add("写一个关于Twitter的完整场景")
    assert pool.similar("写一个关于Twitter的场景") is not None
    assert pool.similar("什么东西在Twitter每个房间都有") is None


@pytest.mark.parametrize(
    ("instances", "kept"),
    [
        ([("a", "b"), ("c", "d")], [("a", "b"), ("c", "d")]),
        ([("a", "b"), ("a", "b")], [("a", "b")]),
        ([("a", "b"), ("a", "c")], "contradiction"),
        ([("", "b"), ("", "c")], [("", "b"), ("", "c")]),  # no input: several answers are no contradiction
        ([("a", "a"), ("b", ""), ("c", "d:"), ("e:", "f")], "no_instance"),
        ([(str(i), "x") for i in range(9)], [(str(i), "x") for i in range(5)]),
    ],
)
def test_instances(instances, kept):
    found = keep_instances(instances, most=5)
    assert (found if isinstance(kept, list) else found.reason) == kept


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Name three rivers, and say where they end", None),
        ("name  three rivers", "no_gain"),
        ("", "empty"),
        ("#Rewritten Prompt#: name four rivers", "leaked_words"),
    ],
)
def test_rewritten_instructions(text, reason):
    fault = evolved_fault(text, "Name three rivers")
    assert (fault and fault.reason) == reason


def test_answers_that_show_that_there_is_none():
    assert answer_fault("I am sorry, but I cannot.").reason == "refusal"
    assert answer_fault("Sorry is a word. " + "It has a long history. " * 20) is None
    assert answer_fault("It is what it is.").reason == "no_content"
    assert answer_fault("...").reason == "no_content"
    assert answer_fault("Paris") is None


def test_the_list_of_tasks():
    assert tasks_prompt(["Add two numbers", "Name a river"], chat=False).endswith(
        "1. Add two numbers\n2. Name a river\n3."
    )
    assert "1. Sort these\n" in tasks_prompt(["Sort these:"], chat=False)
    assert "numbers 3 to 15" in tasks_prompt(["Add two numbers", "Name a river"], chat=True)
    # a plain model goes on behind "9."; a chat model begins with the number, may add a sentence, bold or brackets
    assert split_list(" sort the\n words\n10. name it 2.5 times\n11 . Use JSON") == [
        "Sort the words",
        "Name it 2.5 times",
        "Use JSON",
    ]
    assert split_list("9. **sort** words\n\n10) name it") == ["Sort words", "Name it"]
    assert split_list("  ") == []


def test_classification():
    prompt = classification_prompt([("Is it spam?", True), ("Write a poem", False)], "Is it true?")
    assert prompt.endswith(
        "Task: Is it spam?\nClassification: Yes\n\nTask: Write a poem\nClassification: No\n\nTask: Is it true?\nClassification:"
    )
    assert [says_yes(t) for t in (" Yes", "yes, it is", "**Yes**", "No", "Yesterday", "")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_instances_of_open_tasks():
    shown = [("Add them.", [("1 2", "3")]), ("Say hello.", [("", "Hello")])]
    prompt = input_first_prompt(shown, "Reverse it.", most=5)
    assert (
        "Task: Add them.\nExample 1\nInput: 1 2\nOutput: 3\n\nTask: Say hello.\nExample 1\nOutput: Hello\n\nTask: Reverse it.\n"
        in prompt
    )
    answer = "Example 1\nInput: abc\nOutput: cba\n\nExample 2\nInput: see Example 7\nOutput: two\nlines"
    assert parse_input_first(answer) == [("abc", "cba"), ("see Example 7", "two\nlines")]
    assert parse_input_first("Output: just this") == [("", "just this")]
    more = "Input: 1\nOutput: one\nInput: 2\nOutput: two"
    assert parse_input_first(f"Example 1\n{more}\nExample 2\nOutput: 3\nOutput: 4") == [
        ("1", "one"),
        ("", "3"),
    ]
    assert parse_input_first("Example 1\nabc\nOutput:\ncba\nExample 2\nno end") == [("abc", "cba")]
    assert parse_input_first("nothing of the kind") == []


def test_instances_of_classifications():
    prompt = output_first_prompt([("Spam or not?", [("buy now", "spam")])], "Good or bad?", most=3)
    assert "Task: Spam or not?\nClass label: spam\nbuy now\n\nTask: Good or bad?\n" in prompt
    answer = "Class label: good\nInput: a fine day\nClass label: bad\na bad day\nin May\nClass label: none"
    assert parse_output_first(answer) == [("a fine day", "good"), ("a bad day\nin May", "bad"), ("", "none")]
    assert parse_output_first("good: a fine day") == []


def test_evolution():
    prompts = [evolve_prompt(o, "Name {three} rivers.") for o in OPERATIONS]
    assert len(set(prompts)) == 6
    assert all(p.endswith("Instruction:\nName {three} rivers.\n\nResult:\n") for p in prompts)
    assert [says_equal(t) for t in ("Equal", "equal.", "Not equal", "Different", "Equally good")] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_torn_line_of_a_journal_is_cut_off(tmp_path):
    journal = Journal(tmp_path / "a.jsonl", {"model": "m"})
    journal.append({"value": 1})
    journal.append({"value": "ü"})
    with journal.path.open("ab") as f:
        f.write(b'{"value": 3')
    again = Journal(journal.path, {"model": "m"})
    assert (again.done, list(again)) == (2, [{"value": 1}, {"value": "ü"}])
    again.append({"value": 3})
    assert [line["value"] for line in Journal(journal.path, {"model": "m"})] == [1, "ü", 3]


def test_a_journal_of_something_else_is_refused_by_name(tmp_path):
    Journal(tmp_path / "a.jsonl", {"model": "m", "human": 6})
    with pytest.raises(UserError, match="another human, model"):
        Journal(tmp_path / "a.jsonl", {"model": "n", "human": 5})


HELD = Holdout(tasks=frozenset({"secret"}), datasets=frozenset({"squad"}), ids=frozenset({"f" * 32}))


@pytest.mark.parametrize(
    "planted",
    [
        example("x y", task="secret"),
        example("x y", origin=("dataset:squad",)),
        example("x y", origin=("task:secret",)),
        example("x y", origin=("f" * 32,)),
    ],
)
def test_what_is_held_out_is_refused(planted):
    assert list(training_only([example("a b")], HELD))
    with pytest.raises(UserError, match="must not be used to make training data"):
        group_seeds([example("a b"), planted], HELD)


def test_an_evaluation_input_is_refused():
    asked = example("a b", given="the input")
    with pytest.raises(UserError, match="must not be used"):
        list(training_only([asked], Holdout(inputs={"t": frozenset({input_key(asked)})})))


def test_seeds_are_the_distinct_instructions_of_single_turns():
    chat = make_example(
        task="t", source="s",
        messages=tuple(Message(role=r, content="x") for r in ("user", "assistant", "user", "assistant")),
    )  # fmt: skip
    examples = [
        example("Add  them.", "3", "1 2"),
        chat,
        example("Say hello.", "Hello"),
        example("Add them.", "7", "3 4", origin=("dataset:d",)),
    ]
    seeds = group_seeds(examples, Holdout(), labels={"Say hello.": False})
    assert [(s.instruction, s.instances, s.is_classification) for s in seeds] == [
        ("Add them.", (("1 2", "3"), ("3 4", "7")), None),
        ("Say hello.", (("", "Hello"),), False),
    ]
    assert seeds[0].origin == ("task:t", examples[0].id, "dataset:d", examples[3].id)
    assert joint_origin(seeds, bits([1])) == ("task:t", examples[2].id)
    assert set(joint_origin(seeds, bits([0, 1]))) == set(seeds[0].origin) | set(seeds[1].origin)
    assert shots(seeds, classification=False, most=5, most_chars=100) == [1]
    assert shots(seeds, classification=None, most=5, most_chars=5) == []
    with pytest.raises(UserError, match="no single-turn"):
        group_seeds([chat], Holdout())
