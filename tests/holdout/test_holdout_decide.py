"""The decision over all sources: names, globs, a split file, draws by seed, datasets, inputs."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, single_turn
from sft_dist.holdout import decide, input_key, split


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
        ("a", "eval_seen"): 12,
        ("a", "train"): 18,
        ("b", "eval_seen"): 12,
        ("b", "train"): 18,
        ("held", "eval_heldout"): 6,
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
    assert found.ids == {e.id for _, e in data if split(e, found) == "eval_seen"}
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
    assert sides(mixed, found) == {("t", "heldout_origin"): 8, ("t", "eval_seen"): 3, ("t", "train"): 5}


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
    data = examples("a", n=10)
    twin = [
        ("s", single_turn(task="b", source="s", instruction="Else.", input=e.input, output="x"))
        for _, e in data
    ]
    found = decide(data + twin, examples_per_task=2, seed=0)
    for _, e in data + twin:
        if split(e, found) == "train":
            assert input_key(e) not in found.inputs["a"] | found.inputs["b"]
    assert sum(n for (_, side), n in sides(data + twin, found).items() if side == "eval_input") > 0


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
    assert counts["eval_heldout"] >= 80
    assert not {e.task for _, e in data if split(e, found) == "train"} & found.tasks
