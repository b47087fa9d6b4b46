"""One example against the decision: which side, or why none."""

from __future__ import annotations

import json

import pytest

from sft_dist.config.data import HoldoutConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, Message, make_example, single_turn
from sft_dist.holdout import Holdout, descend, input_key, split
from sft_dist.holdout import decide as decide_all


def decide(found, *, seed, **options):
    return decide_all(found, HoldoutConfig(**options), seed=seed)


def example(task="t", given="x", *, instruction="Do.", output="o", origin=()):
    return single_turn(
        task=task, source="s", instruction=instruction, input=given, output=output, origin=origin
    )


def key(given):
    return input_key(example(given=given))


HOLDOUT = Holdout(
    tasks=frozenset({"held"}),
    inputs={"t": frozenset({key("what all have seen")})},
    heldout_inputs={"held": frozenset({key("what nobody saw before")})},
    datasets=frozenset({"squad"}),
    ids=frozenset({"f" * 32}),
)


def test_input_key_is_the_input_alone():
    assert len(input_key(example())) == 16
    assert input_key(example(instruction="Do.")) == input_key(example(instruction="Please do."))
    assert input_key(example(given="The  Cat\n")) == input_key(example(given="the cat"))
    assert input_key(example(given="ﬁne")) == input_key(example(given="fine"))
    assert input_key(example(given="cat")) != input_key(example(given="cats"))
    assert input_key(example(task="a")) == input_key(example(task="b"))
    assert input_key(example(output="a")) == input_key(example(output="b"))


def test_input_key_without_an_input_is_all_user_turns():
    assert input_key(example(given="", instruction="Sing.")) == key("Sing.")

    def chat(*turns):
        roles = ("user", "assistant") * len(turns)
        return make_example(
            task="t",
            source="s",
            messages=tuple(Message(role=r, content=c) for r, c in zip(roles, turns, strict=False)),
        )

    assert input_key(chat("a", "b", "c", "d")) == input_key(chat("a", "other", "c", "else"))
    assert input_key(chat("a", "b", "c", "d")) != input_key(chat("a", "b", "x", "d"))
    assert input_key(chat("a b", "x")) != input_key(chat("a", "x", "b", "x"))


@pytest.mark.parametrize(
    "e, side",
    [
        (example(given="fresh"), "train"),
        (example(given="what all have seen"), "seen"),
        (example(given="What all have SEEN", instruction="Another phrasing."), "seen"),
        (example(task="held", given="what nobody saw before"), "heldout"),
    ],
)
def test_sides(e, side):
    assert split(e, HOLDOUT) == side


@pytest.mark.parametrize(
    "e, reason, detail",
    [
        (
            example(task="held", given="fresh"),
            "eval_surplus",
            "task held is held out and 1 other inputs of it are evaluated",
        ),
        (
            example(task="other", given="what all have seen"),
            "eval_input",
            "is an evaluation input of another task",
        ),
        (
            example(task="t", given="what nobody saw before"),
            "eval_input",
            "is an evaluation input of another task",
        ),
        (example(origin=("dataset:wiki", "dataset:SQuAD")), "heldout_origin", "dataset SQuAD is held out"),
        (example(origin=("task:held",)), "heldout_origin", "made from the held-out task held"),
        (example(origin=("held",)), "heldout_origin", "made from the held-out task held"),
        (example(origin=("0" * 32, "f" * 32)), "heldout_origin", "made from the evaluation example ffff"),
        (
            example(given="what all have seen", origin=("task:held",)),
            "heldout_origin",
            "made from the held-out task held",
        ),
    ],
)
def test_drops(e, reason, detail):
    drop = split(e, HOLDOUT)
    assert isinstance(drop, Drop)
    assert drop.reason == reason
    assert detail in drop.detail


def test_evaluation_inputs_of_other_tasks_may_be_trained_on():
    assert (
        split(example(task="other", given="what all have seen"), HOLDOUT, drop_eval_inputs=False) == "train"
    )
    assert split(example(task="t", given="what all have seen"), HOLDOUT, drop_eval_inputs=False) == "seen"


def test_descendants_of_what_is_held_out_are_refused_whatever_their_task():
    for parent in (example(task="held", given="what nobody saw before"), example(origin=("dataset:squad",))):
        child = example(task="mine", given="new", origin=descend([example(), parent]))
        assert split(child, HOLDOUT).reason == "heldout_origin"
        grandchild = example(task="mine", given="newer", origin=descend([child]))
        assert split(grandchild, HOLDOUT).reason == "heldout_origin"
    assert split(example(task="mine", given="new", origin=descend([example()])), HOLDOUT) == "train"
    seen = example(given="what all have seen")
    holdout = Holdout(inputs=HOLDOUT.inputs, ids=frozenset({seen.id}))
    assert split(example(given="new", origin=descend([seen])), holdout).reason == "heldout_origin"


def test_the_question_and_answer_of_a_held_out_task_under_another_name():
    held = example(task="held", given="fresh")
    holdout = decide(
        [("s", held), ("s", example(task="free", given="other"))], tasks=["held"], max_eval_per_task=1, seed=0
    )
    assert len(holdout.copies) == 1
    only_copies = Holdout(copies=holdout.copies)
    assert (
        split(example(task="free", given=" FRESH ", instruction="Reworded."), only_copies).reason
        == "heldout_copy"
    )
    assert split(example(task="free", given="other"), only_copies) == "train"
    assert Holdout.from_dict(holdout.to_dict()) == holdout


def test_descend_names_each_parent_once():
    a, b = example(task="a", origin=("dataset:d",)), example(task="b", origin=("dataset:d",))
    assert descend([a, b]) == ("dataset:d", "task:a", a.id, "task:b", b.id)


def test_nothing_held_out():
    assert split(example(), Holdout()) == "train"


def test_json_round_trip():
    again = Holdout.from_dict(json.loads(json.dumps(HOLDOUT.to_dict())))
    assert again == HOLDOUT
    assert again.fingerprint() == HOLDOUT.fingerprint()
    assert Holdout().fingerprint() != HOLDOUT.fingerprint()
    with pytest.raises(UserError, match="not a hold-out decision"):
        Holdout.from_dict({"tasks": []})
