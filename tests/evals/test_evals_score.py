from __future__ import annotations

import json
import sys
import time

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import single_turn
from sft_dist.evals.baselines import (
    Baselines,
    TokenSetIndex,
    TrainingPair,
    format_guesses,
    most_common,
    training_pairs,
)
from sft_dist.evals.score import score_examples, scores, write_results
from sft_dist.evals.splits import AnswerLoss, Generation
from sft_dist.evals.statistics import wilson


def ask(task, text, *answers):
    return single_turn(
        task=task, source="s", instruction="Do it.", input=text, output=answers[0], references=answers
    )


def said(example, text, stopped=True):
    return Generation(id=example.id, prediction=text, stopped=stopped, tokens=3)


def test_majority_and_ties():
    assert most_common(["b", "a", "a", "b"]) == "b"
    assert most_common([]) == ""
    training = [
        TrainingPair("t", "x", "yes"),
        TrainingPair("t", "y", "yes"),
        TrainingPair("t", "z", "no"),
        TrainingPair("u", "x", "no"),
        TrainingPair("u", "w", "no"),
    ]
    baselines = Baselines(training)
    assert baselines.majority("t") == "yes"
    assert baselines.majority("never trained") == "no"  # of all training: no 3, yes 2


def test_nearest_neighbour_by_eye():
    training = [
        TrainingPair("colour", "Name the colour of the sky", "blue"),
        TrainingPair("colour", "Name the colour of the grass", "green"),
        TrainingPair("sound", "Which sound does the duck make", "quack"),
    ]
    baselines = Baselines(training)
    assert baselines.nearest("colour", "Name the colour of wet grass") == "green"
    assert baselines.nearest("colour", "Which sound does the duck make") in {
        "blue",
        "green",
    }  # same task only
    assert baselines.nearest("held out", "Which sound does a duck make?") == "quack"  # all training tasks
    assert baselines.nearest("colour", "zzz") == "blue"  # nothing shared: the first
    assert Baselines([]).nearest("t", "x") == "" == Baselines([]).majority("t")


def test_index_equals_brute_force_weighted_jaccard():
    texts = ["a b c", "a b d", "a e", "f", "", "a b c d"]
    index = TokenSetIndex(texts)
    import math

    def weight(token):
        df = sum(token in t.split() for t in texts)
        return math.log1p(len(texts) / df) if df else math.log1p(len(texts))

    def similarity(x, y):
        x, y = set(x.split()), set(y.split())
        return round(sum(map(weight, x & y)) / (sum(map(weight, x | y)) or 1), 12)  # ties stay ties

    for query in ["a b", "d c", "f a", "e e q", "a b c d"]:
        truth = [similarity(query, t) for t in texts]
        best, value = index.nearest(query)
        assert best == truth.index(max(truth))
        assert value == pytest.approx(max(truth))


def test_nearest_of_300_in_3000_texts_is_fast():
    import numpy as np

    rng = np.random.default_rng(0)
    # Zipf-distributed words: frequent ones have postings over nearly all texts, as the shared instruction has.
    texts = [" ".join(f"w{i}" for i in rng.zipf(1.3, 80) % 5000) for _ in range(3_000)]
    start = time.process_time()
    index = TokenSetIndex(texts)
    assert [index.nearest(t)[0] for t in texts[:300]][7] == 7
    assert time.process_time() - start < 10  # under a second on an idle core


def test_of_a_large_training_set_a_sample_is_kept():
    training = [TrainingPair("t", f"question {i}", str(i)) for i in range(50)]
    baselines = Baselines(iter(training), tasks={"t"}, max_pairs=10)
    for task in ("t", "held out"):  # five pairs each
        answers = {baselines.nearest(task, pair.text) for pair in training}
        assert len(answers) == 5
        assert baselines.majority(task) in answers
    other = Baselines(training, tasks={"t"}, max_pairs=10, seed=1)
    assert {other.nearest("t", p.text) for p in training} != {
        baselines.nearest("t", p.text) for p in training
    }
    whole = Baselines(training, tasks={"t"}, max_pairs=100)
    assert [whole.nearest("t", p.text) for p in training] == [p.answer for p in training]


def test_tasks_that_nobody_asks_for_take_no_room():
    training = [TrainingPair(f"task {i}", f"question {i}", str(i)) for i in range(40)]
    baselines = Baselines(training, tasks={"task 7"}, max_pairs=80)
    assert baselines.nearest("task 7", "question 9") == "7"
    assert baselines.nearest("held out", "question 9") == "9"
    assert baselines.nearest("task 9", "question 7") == "7"  # kept with all training only


def test_known_reads_user_text_and_answer():
    e = single_turn(task="t", source="s", instruction="Add.", input="1 2", output="3", system="be brief")
    assert training_pairs(e) == TrainingPair("t", "Add.\n\n1 2", "3", "1 2")


def fixture():
    """Task a: 2 of 3 right. Task b: 0 of 1 right. Held-out task c: 1 of 1 right."""
    a = [ask("a", "sky", "blue"), ask("a", "grass", "green", "Grün"), ask("a", "sea", "blue")]
    b = [ask("b", "2+2", "four")]
    c = [ask("c", "dog", "bark")]
    generations = {
        e.id: said(e, text)
        for e, text in zip([*a, *b, *c], ["Blue.", "grün", "red", "it is four", "bark"], strict=True)
    }
    training = [
        TrainingPair("a", "Do it.\n\nblue sky", "blue"),
        TrainingPair("a", "Do it.\n\nsea", "green"),
        TrainingPair("a", "Do it.\n\nlake", "blue"),
        TrainingPair("b", "Do it.\n\n1+1", "two"),
    ]
    return {"seen": [*a, *b], "heldout": c}, generations, Baselines(training)


def test_scores_per_task_and_macro_by_hand():
    sets, generations, baselines = fixture()
    losses = {e.id: AnswerLoss(id=e.id, nats=2.0, tokens=4) for e in sets["seen"]}
    judged = score_examples(sets, generations, baselines, metric="exact_match", losses=losses)
    assert [j.scores["model"]["exact_match"] for j in judged] == [1, 1, 0, 0, 1]
    assert [j.strict for j in judged] == [False, False, False, False, True]
    assert [j.answers["majority"] for j in judged] == ["blue", "blue", "blue", "two", "blue"]
    assert [j.answers["nearest"] for j in judged][:4] == ["blue", "green", "green", "two"]

    out = scores(
        judged, asked="exact_match", categories={"a": "Word Analogy"}, training_examples={"a": 3, "b": 1}
    )
    seen = out["sets"]["seen"]
    a, b = seen["tasks"]["a"], seen["tasks"]["b"]
    assert (a["n"], a["training_examples"], a["category"], a["metric"]) == (
        3,
        3,
        "Word Analogy",
        "exact_match",
    )
    assert a["score"]["model"] == a["score"]["majority"] == pytest.approx(2 / 3)
    assert (a["low"], a["high"]) == pytest.approx(wilson(2, 3))
    assert a["score"]["nearest"] == pytest.approx(2 / 3)  # blue right, green right, green wrong
    assert a["loss"] == pytest.approx(6 / 12)
    assert b["metrics"]["rouge_l"]["model"] == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    macro = seen["macro"]
    assert (macro["tasks"], macro["units"], macro["n"], macro["few"]) == (2, 2, 4, True)
    assert macro["score"]["model"]["mean"] == pytest.approx((2 / 3 + 0) / 2)  # tasks count the same
    assert seen["contrasts"]["nearest"]["difference"] == pytest.approx(0)
    assert (seen["contrasts"]["nearest"]["win"], seen["contrasts"]["nearest"]["tie"]) == (0, 2)
    assert seen["categories"]["Word Analogy"]["score"]["model"] == pytest.approx(2 / 3)
    assert out["sets"]["heldout"]["macro"]["score"]["model"]["mean"] == 1.0
    assert "loss" not in out["sets"]["heldout"]["macro"]
    assert "base" not in seen["contrasts"]


def test_base_model_is_scored_beside():
    sets, generations, baselines = fixture()
    base = {i: Generation(id=i, prediction="blue", stopped=False, tokens=9) for i in generations}
    out = scores(score_examples(sets, generations, baselines, base, metric="exact_match"))
    seen = out["sets"]["seen"]
    assert seen["tasks"]["a"]["score"]["base"] == pytest.approx(2 / 3)
    assert seen["macro"]["score"]["base"]["mean"] == pytest.approx(1 / 3)
    assert seen["contrasts"]["base"]["difference"] == pytest.approx(0)
    assert seen["contrasts"]["base"]["p_holm"] == 1.0
    assert out["transfer"]["lift"]["seen"]["difference"] == pytest.approx(0)


def test_a_guess_in_the_right_format():
    labelled = [
        single_turn(
            task="t", source="s", instruction="Good or bad?", input=f"x{i}", output=("good", "bad")[i % 2]
        )
        for i in range(8)
    ]
    assert set(format_guesses(labelled).values()) == {("bad", "good")}
    spans = [
        single_turn(task="t", source="s", instruction="First.", input=f"List: {w} b{i} c{i} d{i}", output=w)
        for i, w in enumerate("pqrst")
    ]
    assert format_guesses(spans)[spans[0].id] == ("p", "b0", "c0", "d0")  # "List:" is the frame
    free = [ask("t", f"question {i}", f"answer {i}") for i in range(5)]
    assert set(format_guesses(free).values()) == {()}
    said_ = {e.id: said(e, "p") for e in spans}
    judged = score_examples(
        {"seen": spans}, said_, Baselines([TrainingPair("u", "a", "b")]), metric="exact_match"
    )
    assert [j.scores["format_guess"]["exact_match"] for j in judged] == [0.25] * 5


def test_the_input_alone_finds_the_answer_of_another_task():
    training = [
        TrainingPair("other", "Reverse.\n\nred fox", "fox red", "red fox"),
        TrainingPair("t", "Copy.\n\na", "a", "a"),
    ]
    example = single_turn(task="t", source="s", instruction="Copy.", input="red fox", output="red fox")
    assert Baselines(training).answers(example)["input_only"] == ("fox red",)
    assert Baselines(training).answers(ask("t", "", "x"))["input_only"] == ()


def test_classification_tasks_show_what_they_confuse():
    examples = [
        single_turn(
            task="t", source="s", instruction="Good or bad?", input=f"x{i}", output=("good", "bad")[i % 2]
        )
        for i in range(8)
    ]
    said_ = {e.id: said(e, "good" if i else "what") for i, e in enumerate(examples)}
    out = scores(score_examples({"seen": examples}, said_, Baselines([]), metric="auto"), asked="auto")
    task = out["sets"]["seen"]["tasks"]["t"]
    assert task["metric"] == "accuracy"
    assert task["confusion"] == {"labels": ["bad", "good"], "counts": {"bad": [0, 4, 0], "good": [0, 3, 1]}}


def test_files_have_the_agreed_fields(tmp_path):
    sets, generations, baselines = fixture()
    judged = score_examples(sets, generations, baselines)
    write_results(tmp_path / "eval", judged, scores(judged))
    line = json.loads((tmp_path / "eval" / "generations.jsonl").read_text().splitlines()[1])
    agreed = "set task id prompt references metric answers scores strict stopped nats target_tokens"
    assert set(agreed.split()) == set(line)
    assert line["references"] == ["green", "Grün"]
    assert line["prompt"] == "Do it.\n\ngrass"
    found = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert found["format"] == 2
    assert set(found["sets"]) == {"seen", "heldout"}


def test_a_missing_generation_is_an_error_not_a_zero():
    sets, generations, baselines = fixture()
    generations.pop(sets["heldout"][0].id)
    with pytest.raises(UserError, match="1 evaluation examples have no generation"):
        score_examples(sets, generations, baselines)


def test_scoring_never_reaches_torch():
    import subprocess

    code = "import sys, sft_dist.evals.score as s, sft_dist.evals.probes, sft_dist.evals.resumable_work; s.METRICS['rouge_l'].function('a', ['a']); print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
