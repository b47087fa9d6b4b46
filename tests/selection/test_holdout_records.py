"""Several questions about one annotated record fall on one side: templates of a dataset, variants of a question."""

from __future__ import annotations

from sft_dist.config.data import HoldoutConfig
from sft_dist.core.records import single_turn
from sft_dist.holdout import Holdout, split
from sft_dist.holdout import decide as decide_all


def decide(found, *, seed, **options):
    return decide_all(found, HoldoutConfig(**options), seed=seed)


def ask(template, number):
    return single_turn(
        task=f"toy/{template}",
        source="p3",
        instruction=f"{template}: {number}?",
        output="x",
        origin=("dataset:toy", f"record:{number:032x}"),
    )


ALL = [("p3", ask(t, n)) for n in range(40) for t in "abc"]


def test_tasks_over_the_same_records_are_evaluated_on_the_same_ones():
    holdout = decide(ALL, examples_per_task=4, seed=0)
    sides = {(e.task, e.origin[1]): split(e, holdout) for _, e in ALL}
    evaluated = {record for (_, record), side in sides.items() if side == "seen"}
    assert len(evaluated) == 4
    assert all((side == "seen") == (record in evaluated) for (_, record), side in sides.items())
    assert decide(ALL[::-1], examples_per_task=4, seed=0) == holdout
    assert decide(ALL, examples_per_task=4, seed=1) != holdout


def test_a_record_of_a_held_out_task_is_not_trained_on_in_other_words():
    holdout = decide(ALL, tasks=["toy/b"], max_eval_per_task=5, seed=0)
    evaluated = {e.origin[1] for _, e in ALL if split(e, holdout) == "heldout"}
    assert len(evaluated) == 5
    for _, e in ALL:
        if e.task == "toy/b":
            continue
        side = split(e, holdout, drop_eval_inputs=False)
        assert (side == "train") == (e.origin[1] not in evaluated)
        if side != "train":
            assert (side.reason, side.detail) == (
                "eval_record",
                f"another example made from {e.origin[1]} is evaluated",
            )


def test_nothing_changes_without_records():
    e = ask("a", 1)
    assert split(e, Holdout()) == "train"
    assert split(e, Holdout(ids=frozenset({"record:other"}))) == "train"
