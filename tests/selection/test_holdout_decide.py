"""The decision over all sources: names, globs, a split file, draws by seed, datasets, inputs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from sft_dist.config.data import HoldoutConfig, ValidationConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, Message, make_example, single_turn
from sft_dist.holdout import decide as decide_all
from sft_dist.holdout import input_key, split


def decide(found, validation=None, uses=None, *, seed, **options):
    return decide_all(
        found, HoldoutConfig(**options), validation and ValidationConfig(**validation), uses=uses, seed=seed
    )


def examples(*tasks, n=10, phrasings=1, origin=(), unlike=""):
    """`n` inputs of each task, each asked in `phrasings` ways."""
    return [
        (
            "s",
            single_turn(
                task=t,
                source="s",
                instruction=f"Do {p}.",
                input=f"{unlike}{t} {i}",
                output=str(i),
                origin=origin,
            ),
        )
        for t in tasks
        for i in range(n)
        for p in range(phrasings)
    ]


def sides(found, holdout):
    out = Counter()
    for _, e in found:
        side = split(e, holdout)
        out[e.task, side.reason if isinstance(side, Drop) else side] += 1
    return out


def test_nothing_asked_for_holds_nothing_out():
    found = decide(examples("a", "b"), seed=0)
    assert (found.tasks, found.inputs, found.heldout_inputs, found.datasets) == (
        frozenset(),
        {},
        {},
        frozenset(),
    )


def test_tasks_by_name_and_glob():
    found = decide(examples("qa_one", "qa_two", "sum", "rest"), tasks=["qa_*", "sum"], seed=0)
    assert found.tasks == {"qa_one", "qa_two", "sum"}
    assert sorted(found.heldout_inputs) == ["qa_one", "qa_two", "sum"]


def test_a_name_that_matches_nothing_is_an_error_with_near_ones():
    with pytest.raises(
        UserError,
        match=r"data\.holdout\.tasks names 'task1391_winograde', which no source holds.*Did you mean 'task1391_winogrande'",
    ):
        decide(examples("task1391_winogrande", "b"), tasks=["task1391_winograde"], seed=0)
    with pytest.raises(UserError, match=r"names 'xyz\*'.*Known: a, b\."):
        decide(examples("a", "b"), tasks=["xyz*"], seed=0)


def test_a_split_file(tmp_path, caplog):
    path = tmp_path / "test_tasks.txt"
    path.write_text("a\nnot_here\n")
    found = decide(examples("a", "b"), task_file=str(path), seed=0)
    assert found.tasks == {"a", "not_here"}  # a source that comes later is held to it too
    path.write_text("bb\n")
    with pytest.raises(UserError, match=r"none of the 1 tasks in .*test_tasks\.txt is in a source.*'bb'"):
        decide(examples("a", "b"), task_file=str(path), seed=0)
    with pytest.raises(UserError, match="does not exist"):
        decide(examples("a", "b"), task_file=str(tmp_path / "no.txt"), seed=0)


def test_a_number_of_further_tasks_by_seed():
    data = examples(*"abcdefgh", n=2)
    found = decide(data, tasks=["a"], number=3, seed=1)
    assert len(found.tasks) == 4
    assert "a" in found.tasks
    assert found.tasks == decide(data[::-1], tasks=["a"], number=3, seed=1).tasks
    assert len({decide(data, number=3, seed=s).tasks for s in range(10)}) > 5
    # a further source leaves the ranking of the others as it is
    assert (
        decide(data + examples("z", n=2), number=3, seed=1).tasks - {"z"}
        <= decide(data, number=3, seed=1).tasks
    )


def test_something_must_be_left():
    with pytest.raises(
        UserError, match=r"data\.holdout\.number=2, but only 2 tasks are not held out already.*use at most 1"
    ):
        decide(examples("a", "b"), number=2, seed=0)
    with pytest.raises(UserError, match="holds out all 2 tasks"):
        decide(examples("a", "b"), tasks=["*"], seed=0)
    decide([], seed=0)


def test_inputs_of_trained_tasks():
    data = examples("a", "b", "held", n=10, phrasings=3)
    found = decide(data, tasks=["held"], examples_per_task=4, max_eval_per_task=2, seed=0)
    assert {t: len(keys) for t, keys in found.inputs.items()} == {"a": 4, "b": 4}
    assert {t: len(keys) for t, keys in found.heldout_inputs.items()} == {"held": 2}
    # every phrasing of an input lies on the same side
    assert sides(data, found) == {
        ("a", "seen"): 12,
        ("a", "train"): 18,
        ("b", "seen"): 12,
        ("b", "train"): 18,
        ("held", "heldout"): 6,
        ("held", "eval_surplus"): 24,
    }
    trained = {input_key(e) for _, e in data if split(e, found) == "train"}
    evaluated = {input_key(e) for _, e in data if str(split(e, found)).startswith("eval")}
    assert not trained & evaluated


def test_the_decision_depends_on_no_order():
    data = examples("a", "b", "c", n=50, phrasings=2)
    options = {"number": 1, "examples_per_task": 7, "max_eval_per_task": 3, "seed": 5}
    found = decide(data, **options)
    for seed in range(5):
        random.Random(seed).shuffle(data)
        assert decide(data, **options) == found
    assert decide(data, **{**options, "seed": 6}) != found


def test_the_chosen_inputs_are_those_of_the_smallest_hash_of_all():
    """The bounded memory of the pass changes nothing: a large one chooses the same."""
    data = examples("a", n=300)
    small = decide(data, examples_per_task=5, max_eval_per_task=1, seed=0)
    large = decide(data, examples_per_task=5, max_eval_per_task=1000, seed=0)
    assert small.inputs == large.inputs


def test_at_most_half_of_a_task_is_for_evaluation():
    found = decide(examples("a", n=5) + examples("b", n=1), examples_per_task=4, seed=0)
    assert {t: len(keys) for t, keys in found.inputs.items()} == {"a": 2}


def test_ids_of_evaluated_examples_are_kept_for_their_descendants():
    data = examples("a", n=10, phrasings=2)
    found = decide(data, examples_per_task=3, seed=0)
    assert found.ids == {e.id for _, e in data if split(e, found) == "seen"}
    assert len(found.ids) == 6


def test_datasets_hold_their_tasks_out():
    data = (
        examples("qa", "qg", origin=("dataset:SQuAD 2",))
        + examples("sum", origin=("dataset:xsum",))
        + examples("free")
    )
    found = decide(data, datasets=["squad*"], seed=0)
    assert found.tasks == {"qa", "qg"}
    assert found.datasets == {"squad 2"}
    with pytest.raises(
        UserError,
        match=r"data\.holdout\.datasets names 'squat', but no example comes from.*Did you mean 'squad'",
    ):
        decide(examples("a", origin=("dataset:squad",)), datasets=["squat"], seed=0)


def test_of_a_mixed_task_only_the_examples_of_the_dataset_are_refused():
    mixed = examples("t", n=8) + examples("t", n=8, origin=("dataset:gsm8k",), unlike="math ")
    found = decide(mixed, datasets=["gsm8k"], examples_per_task=3, seed=0)
    assert found.tasks == frozenset()
    assert sides(mixed, found) == {("t", "heldout_origin"): 8, ("t", "seen"): 3, ("t", "train"): 5}


def test_whole_datasets_of_held_out_tasks():
    data = examples("qa", "qg", n=4, origin=("dataset:squad",)) + examples(
        "sum", n=4, origin=("dataset:xsum",)
    )
    loose = decide(data, tasks=["qa"], examples_per_task=1, seed=0)
    assert sides(data, loose)["qg", "train"] == 3
    strict = decide(data, tasks=["qa"], examples_per_task=1, whole_datasets=True, seed=0)
    assert sides(data, strict)["qg", "heldout_origin"] == 4
    assert sides(data, strict)["sum", "train"] == 3
    assert sorted(strict.inputs) == ["sum"]


def test_an_input_that_another_task_is_evaluated_on_is_not_trained_on():
    data = examples("a", n=10, unlike="one long question about ")
    twin = [
        ("s", single_turn(task="b", source="s", instruction="Else.", input=e.input, output="x"))
        for _, e in data
    ]
    found = decide(data + twin, examples_per_task=2, seed=0)
    for _, e in data + twin:
        if split(e, found) == "train":
            assert input_key(e) not in found.inputs["a"] | found.inputs["b"]
    assert sum(n for (_, side), n in sides(data + twin, found).items() if side == "eval_input") > 0


def test_one_word_is_the_same_question_only_with_the_same_answer():
    def ask(task, answer, given="Cuba", source="s"):
        return source, single_turn(
            task=task, source=source, instruction=f"{task}?", input=given, output=answer
        )

    capital = [ask("capital", "Havana"), ask("capital", "Bern", "Switzerland")]
    found = decide(
        [*capital, ask("currency", "peso"), ask("city", "Havana"), ask("none", "x", "y")],
        tasks=["capital"],
        seed=0,
    )
    assert split(ask("currency", "peso")[1], found) == "train"
    assert split(ask("city", "Havana")[1], found).reason == "heldout_copy"
    other = decide(
        [
            ask("capital", "Havana", source="test"),
            ask("capital", "Bern", "Switzerland"),
            ask("city", "Havana"),
        ],
        uses={"test": "seen"},
        seed=0,
    )
    assert split(ask("city", "Havana")[1], other).reason == "eval_input"
    assert split(ask("currency", "peso")[1], other) == "train"


def test_what_chooses_and_what_judges_share_no_input():
    data = examples("a", "b", n=40, unlike="some long question about ")
    judged = decide(data, examples_per_task=5, seed=0)
    both = decide(data, validation={"examples_per_task": 7}, examples_per_task=5, seed=0)
    assert both.inputs == judged.inputs  # a validation set moves no other
    assert {t: len(keys) for t, keys in both.validation_inputs.items()} == {"a": 7, "b": 7}
    assert not both.validation_inputs["a"] & both.inputs["a"]
    assert sides(data, both) == {
        (t, side): n for t in "ab" for side, n in (("seen", 5), ("validation", 7), ("train", 28))
    }
    assert decide(data[::-1], validation={"examples_per_task": 7}, examples_per_task=5, seed=0) == both
    by_share = decide(data, validation={"share": 0.1}, share=0.25, seed=0)
    assert {t: (len(by_share.inputs[t]), len(keys)) for t, keys in by_share.validation_inputs.items()} == {
        "a": (10, 4),
        "b": (10, 4),
    }


def test_records_that_judge_in_one_task_choose_in_none():
    def ask(task, number):
        return "s", single_turn(
            task=task, source="s", instruction=f"{task} {number}?", output="x", origin=(f"record:{number}",)
        )

    data = [ask("a", n) for n in range(30)] + [ask("b", n) for n in range(15, 45)]
    found = decide(data, validation={"examples_per_task": 6}, examples_per_task=6, seed=0)
    records = {
        side: {e.origin[0] for _, e in data if split(e, found) == side} for side in ("seen", "validation")
    }
    assert records["validation"]
    assert not records["seen"] & records["validation"]
    trained = {e.origin[0] for _, e in data if split(e, found) == "train"}
    assert not trained & (records["seen"] | records["validation"])


def test_asking_for_more_than_there_is_is_said():
    found = decide(
        examples("a", n=10) + examples("b", n=100),
        validation={"examples_per_task": 6},
        examples_per_task=12,
        seed=0,
    )
    assert (len(found.inputs["a"]), len(found.validation_inputs["a"])) == (3, 2)
    assert (len(found.inputs["b"]), len(found.validation_inputs["b"])) == (12, 6)
    assert [note.split(",")[0] for note in found.notes] == [
        "data.holdout.examples_per_task=12 is more than 1 of 2 trained tasks can give (half of a task's inputs at most)",
        "data.validation.examples_per_task=6 is more than 1 of 2 trained tasks can give (half of a task's inputs at most)",
    ]
    assert "a gives 3 of its 10 inputs" in found.notes[0]


def test_sources_that_are_evaluated_whole():
    train = examples("a", n=20, unlike="the long question number ")
    test = [("test", e) for _, e in examples("a", "c", n=24, unlike="the long question number ")]
    test = [
        (s, single_turn(task=e.task, source=s, instruction="Do.", input=e.input, output=e.output))
        for s, e in test
    ]
    found = decide(train + test, uses={"test": "validation"}, seed=0)
    assert sides(test, found) == {("a", "validation"): 24, ("c", "validation"): 24}
    assert sides(train, found) == {("a", "eval_input"): 20}
    assert "no source trains 1 of their tasks, such as 'c'" in found.notes[0]
    found = decide(examples("b") + test, uses={"test": "heldout"}, max_eval_per_task=4, seed=0)
    assert found.tasks == {"a", "c"}
    assert sides(test, found) == {(t, s): n for t in "ac" for s, n in (("heldout", 4), ("eval_surplus", 20))}


def test_what_is_evaluated_is_shown_in_no_prompt():
    def ask(task, n, shows):
        return single_turn(
            task=task,
            source="s",
            instruction=f"Say it in French.\n\nInput: the number {shows}\nOutput: x",
            input=f"the number {n}",
            output=str(n),
        )

    own = [("s", ask("a", n, 7)) for n in range(20) if n != 7] + [("s", ask("a", 7, 8))]
    found = decide(own, examples_per_task=10, seed=0)
    assert len(found.inputs["a"]) == 9  # of 20 inputs, but not those two that every prompt of the task shows
    assert not found.inputs["a"] & {input_key(ask("a", 7, 0)), input_key(ask("a", 8, 0))}
    evaluated = next(n for n in range(20) if input_key(ask("a", n, 0)) in found.inputs["a"])
    assert split(ask("b", 99, evaluated), found).reason == "eval_shown"
    assert split(ask("b", 99, 100), found) == "train"
    earlier = [
        Message(role="user", content=f"the number {evaluated}"),
        Message(role="assistant", content="x"),
    ]
    later = [Message(role="user", content="and now?"), Message(role="assistant", content="y")]
    talk = make_example(task="c", source="s", messages=(*earlier, *later))
    assert split(talk, found).reason == "eval_shown"
    assert split(make_example(task="c", source="s", messages=(*later, *later)), found) == "train"


def test_generated_examples_do_not_ask_what_a_held_out_task_asks():
    def ask(task, instruction, origin=()):
        return single_turn(
            task=task,
            source="s",
            instruction=instruction,
            input=f"some words of {task}",
            output="x",
            origin=origin,
        )

    data = [
        ("s", ask("held", "Which of the two words names a larger animal?")),
        ("s", ask("held", "Answer the question.")),
        ("s", ask("free", "Answer the question.")),
    ]
    found = decide(data, tasks=["held"], seed=0)
    made = ("task:free", "0" * 32)
    asked = [
        ("Which of the two words names a larger animal?", made, "heldout_instruction"),
        ("Which of the two words names the larger animal", made, "heldout_instruction"),
        ("Answer the question.", made, "train"),  # a trained task asks so too
        (
            "Which of the two words names a larger animal?",
            (),
            "train",
        ),  # written: another source, another task
    ]
    for instruction, origin, side in asked:
        side_of = split(ask("mine", instruction, origin), found, drop_eval_inputs=False)
        assert (side_of.reason if isinstance(side_of, Drop) else side_of) == side


def test_held_out_tasks_are_near_or_far():
    def asks(task, instruction):
        return [
            ("s", single_turn(task=task, source="s", instruction=instruction, input=f"{n}", output="x"))
            for n in range(3)
        ]

    data = [
        *asks("animal", "Which of these is an animal?"),
        *asks("city", "Which of these is a city?"),
        *asks("sum", "Add the numbers."),
        *asks("product", "Multiply what follows, and write the result in words."),
        *asks("mood", "Is the reviewer happy with the film?"),
    ]
    held = ["city", "product", "mood"]
    found = decide(data, tasks=held, near_similarity=0.6, seed=0)
    assert found.near == {"city": "its instruction is like that of the trained task animal (ROUGE-L 0.67)"}
    assert decide(data, tasks=held, seed=0).near == {}  # 0.7
    declared = decide(
        data,
        tasks=held,
        near_similarity=0.6,
        families={"arithmetic": ["sum", "prod*"], "place": ["city"]},
        seed=0,
    )
    assert declared.near == {
        "city": "its instruction is like that of the trained task animal (ROUGE-L 0.67)",
        "product": "the trained task sum is of its family, arithmetic",
    }
    apart = decide(
        data, tasks=held, near_similarity=0.6, families={"place": ["city"], "zoo": ["animal"]}, seed=0
    )
    assert apart.near == {}  # two declared families decide, whatever the wording
    with pytest.raises(
        UserError, match=r"families\.arithmetic names 'summ', which no source holds.*Did you mean 'sum'"
    ):
        decide(data, tasks=held, near_similarity=0.6, families={"arithmetic": ["summ"]}, seed=0)


def test_real_tasks(shared_data):
    from sft_dist.config.sources import NaturalInstructionsSource
    from sft_dist.sources import open_source

    folder = shared_data / "natural-instructions"
    source = open_source(
        "ni", NaturalInstructionsSource(kind="natural_instructions", path=str(folder), max_per_task=20)
    )
    data = [("ni", e) for e in source]
    found = decide(
        data,
        task_file=str(folder / "splits/default/test_tasks.txt"),
        examples_per_task=2,
        max_eval_per_task=5,
        seed=0,
    )
    assert len(found.tasks) == 119
    assert len(found.heldout_inputs) == 16
    assert all(len(keys) == 5 for keys in found.heldout_inputs.values())
    counts = Counter(side for (_, side), n in sides(data, found).items() for _ in range(n))
    assert counts["heldout"] >= 80
    assert not {e.task for _, e in data if split(e, found) == "train"} & found.tasks


def test_the_demo_has_near_and_far_tasks():
    from sft_dist.config.load import load_config
    from sft_dist.sources import open_source

    config = load_config(["data.sources.demo.examples_per_task=60"])
    source = open_source("demo", config.data.sources["demo"])
    found = decide_all((("demo", e) for e in source), config.data.holdout, seed=0)
    assert (len(found.near), len(found.tasks - found.near.keys())) == (12, 10)
