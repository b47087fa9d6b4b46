"""Choice by likelihood: which answer is taken, which tasks are judged so, and what is said where none is offered."""

from __future__ import annotations

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import example_from_dict, example_to_dict, single_turn
from sft_dist.evals.baselines import Baselines
from sft_dist.evals.choices import offered, picked
from sft_dist.evals.score import score_examples, scores
from sft_dist.evals.splits import AnswerLoss


def asked(number, answer, choices=("rain", "snow"), task="weather"):
    return single_turn(task=task, source="p3", instruction=f"Day {number}?", output=answer, choices=choices)


def test_the_most_likely_choice_is_the_answer_whatever_its_length():
    examples = [asked(0, "rain"), asked(1, "snow"), asked(2, "snow")]
    sets = {"seen": examples}
    told = {"weather": "choice"}
    copies = offered(sets, metric="auto", told=told, categories={})
    assert [[c.messages[-1].content for c in copies[e.id]] for e in examples] == [["rain", "snow"]] * 3
    assert examples[0].id in {c.id for c in copies[examples[0].id]}  # its loss is computed once
    nats = iter(
        [(3.0, 9), (2.0, 1), (3.0, 9), (2.0, 1), (0.0, 0), (5.0, 4)]
    )  # the third: rain cannot be rendered
    losses = {
        c.id: AnswerLoss(id=c.id, nats=n, tokens=t)
        for e in examples
        for c, (n, t) in zip(copies[e.id], nats, strict=False)
    }
    said = picked(copies, losses)
    assert [said[e.id].prediction for e in examples] == ["snow"] * 3
    out = scores(score_examples(sets, said, Baselines([]), metric="auto", told=told), asked="auto")
    task = out["sets"]["seen"]["tasks"]["weather"]
    assert task["metric"] == "choice"
    assert task["score"]["model"] == pytest.approx(2 / 3)


def test_a_task_without_choices_is_refused_by_name_or_judged_otherwise():
    free = {"seen": [asked(0, "rain", choices=(), task="free")]}
    with pytest.raises(UserError, match="free offers none.*eval.metric=auto"):
        offered(free, metric="choice", told={}, categories={})
    assert offered(free, metric="auto", told={"free": "choice"}, categories={}) == {}


def test_choices_survive_a_file():
    e = asked(0, "rain")
    assert example_from_dict(example_to_dict(e)) == e
    assert e.id == asked(0, "rain", choices=()).id  # what is offered changes no id
