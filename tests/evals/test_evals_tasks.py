from __future__ import annotations

import json
from collections import Counter

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import Message, example_to_dict, make_example, single_turn
from sft_dist.core.sets import JUDGES
from sft_dist.evals.splits import cap_per_task, load_eval_sets, prompt_text, user_text


def example(task, text, answer):
    return single_turn(
        task=task, source="s", instruction=f"Instruction of {task}.", input=text, output=answer
    )


def write(path, examples):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps(example_to_dict(e), ensure_ascii=False) + "\n" for e in examples), encoding="utf-8"
    )


def test_cap_is_balanced_over_labels_and_independent_of_file_order():
    examples = [example("t", f"q{i}", "yes" if i < 90 else "no") for i in range(100)]
    kept = cap_per_task(examples, 10, seed=1)
    assert Counter(e.output for e in kept) == {"yes": 5, "no": 5}
    assert kept == cap_per_task(examples[::-1], 10, seed=1)
    assert kept != cap_per_task(examples, 10, seed=2)


def test_cap_applies_to_each_task_and_duplicates_count_once():
    examples = [example("b", f"q{i}", f"answer {i}") for i in range(5)] + [example("a", "q", "x")] * 3
    kept = cap_per_task(examples, 3, seed=0)
    assert [e.task for e in kept] == ["a", "b", "b", "b"]
    assert len(cap_per_task(examples, None, seed=0)) == 6


def test_sets_are_read_and_an_absent_one_is_left_out(tmp_path):
    write(tmp_path / "eval" / "heldout.jsonl", [example("t", "line separator\u2028inside", "ä")])
    sets = load_eval_sets(tmp_path, JUDGES, max_per_task=5, seed=0)
    assert list(sets) == ["heldout"]
    assert sets["heldout"][0].output == "ä"


def test_nothing_to_evaluate_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match=r"examples_per_task.*sft-dist prepare"):
        load_eval_sets(tmp_path, JUDGES, max_per_task=5, seed=0)


def test_a_cut_line_is_named(tmp_path):
    write(tmp_path / "eval" / "seen.jsonl", [example("t", "q", "a")])
    with (tmp_path / "eval" / "seen.jsonl").open("a") as f:
        f.write('{"id": "ab')
    with pytest.raises(UserError, match=r"seen.jsonl:2 is not an evaluation example"):
        load_eval_sets(tmp_path, JUDGES, max_per_task=5, seed=0)


def test_prompt_text_shows_roles_of_a_conversation():
    turns = (
        Message(role="system", content="be kind"),
        Message(role="user", content="hi"),
        Message(role="assistant", content="hello"),
        Message(role="user", content="bye"),
        Message(role="assistant", content="ciao"),
    )
    e = make_example(task="t", source="s", messages=turns)
    assert prompt_text(e) == "system: be kind\n\nuser: hi\n\nassistant: hello\n\nuser: bye"
    assert user_text(e) == "hi\nbye"
    assert prompt_text(example("t", "q", "a")) == "Instruction of t.\n\nq"
