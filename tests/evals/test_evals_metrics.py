"""Metrics by hand, against the published scorer, and in every script."""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import replace

import pytest
from rouge_score.rouge_scorer import RougeScorer

from sft_dist.config.train import EvalConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Message, make_example
from sft_dist.evals import metrics
from sft_dist.evals.baselines import Baselines
from sft_dist.evals.metrics import (
    METRICS,
    exact_match,
    metric_of_task,
    normalise,
    numeric,
    rouge_l,
    strict_exact_match,
    token_f1,
    unicode_tokens,
    xlingual_tokens,
)
from sft_dist.evals.score import score_examples
from sft_dist.evals.splits import Generation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Answer.", "the answer"),  # articles stay, unlike SQuAD's script
        ("  a \n b\t c ", "a b c"),
        ("it's well-known!", "its wellknown"),
        ("naïve «Öl»", "naïve «öl»"),  # only ASCII punctuation goes
        ("?!", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_exact_match_takes_the_best_reference_and_strict_compares_letters():
    assert exact_match("positive.", ["Negative", "Positive"])
    assert not exact_match("the positive", ["Positive"])
    assert not strict_exact_match("positive.", ["Negative", "Positive"])
    assert strict_exact_match(" Positive\n", ["Negative", "Positive"])


@pytest.mark.parametrize(
    ("prediction", "references", "expected"),
    [
        ("a b c", ["a b c"], 1.0),
        # LCS of [a cat sat down] and [the cat sat] after stemming "cats": 2. P = 2/4, R = 2/3, F = 4/7.
        ("a cat sat down", ["the cats sat"], 4 / 7),
        ("a cat sat down", ["nothing", "the cats sat"], 4 / 7),  # the best of the references
        ("c b a", ["a b c"], 1 / 3),  # order counts: LCS 1
        ("", ["a"], 0.0),
    ],
)
def test_rouge_l_by_hand(prediction, references, expected):
    assert rouge_l(prediction, references) == pytest.approx(expected)


def sentences():
    draw = random.Random(0)
    words = [
        "The",
        "running",
        "dogs'",
        "3,5",
        "cafés",
        "(easily)",
        "relational_data",
        "flies",
        "U.S.",
        "'quoted'",
        "<",
        ">",
        "denied",
        "agreed",
        "Öl",
        "x1",
        "skies",
        "generously",
    ]
    return [" ".join(draw.choices(words, k=draw.randint(0, 12))) for _ in range(400)]


def test_rouge_l_equals_the_published_scorer():
    """The official script of Super-NaturalInstructions calls it so."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    texts = sentences()
    for a, b in zip(texts[:200], texts[200:], strict=True):
        assert rouge_l(a, [b]) == pytest.approx(scorer.score(b, a)["rougeL"].fmeasure)


SCRIPTS = (
    "今天天气很好",
    "сегодня хорошая погода",
    "اختر العمر",
    "วันนี้อากาศดี",
    "हिन्दी भाषा",
    "été",
    "<",
    "Ελληνικά",
    "안녕하세요 세계",
    "日本語のテスト",
)


@pytest.mark.parametrize("text", SCRIPTS)
def test_identical_texts_score_1_in_any_script(text):
    for asked in ("auto", *METRICS):
        metric = metric_of_task(asked, [[text]] * 3)
        if metric != "numeric" and not METRICS[metric].by_checks:
            assert METRICS[metric].function(text, [text]) == 1.0, (asked, metric)


def test_different_texts_of_other_scripts_do_not_score_1():
    assert metric_of_task("rouge_l", [["été"], ["élève"]]) == "rouge_l_xlingual"
    assert METRICS["rouge_l_xlingual"].function("t", ["été"]) == 0.0
    assert METRICS["rouge_l_xlingual"].function("今天天气不好", ["今天天气很好"]) == pytest.approx(10 / 12)
    assert exact_match("<", [">"]) == 0.0
    assert exact_match("<", ["<"]) == 1.0


def test_the_metric_of_a_task_follows_its_answers():
    assert metric_of_task("auto", [["yes"], ["no"], ["yes"]] * 4) == "accuracy"
    assert metric_of_task("auto", [[str(n)] for n in range(12)]) == "numeric"
    assert metric_of_task("auto", [[f"answer number {n} of many"] for n in range(12)]) == "rouge_l"
    assert metric_of_task("auto", [["好"], ["天气"], ["很好"]]) == "rouge_l_xlingual"
    assert metric_of_task("auto", [["a b c"]], classification=True) == "accuracy"
    assert metric_of_task("auto", [["a"]], told="token_f1") == "token_f1"
    assert metric_of_task("exact_match", [["好"]]) == "exact_match"
    assert metric_of_task("auto", [["a"], ["b"]], checked=True) == "checks"


def test_checks_judge_by_what_the_record_names():
    turns = (Message(role="user", content="Why?"), Message(role="assistant", content="x"))
    e = make_example(
        task="t",
        source="s",
        messages=turns,
        checks=('{"verifier": "no_commas"}', '{"verifier": "at_most_words", "words": 3}'),
    )
    for said, score in {"a b": 1.0, "a, b": 0.0, "a b c d": 0.0}.items():
        answers = {e.id: Generation(id=e.id, prediction=said, stopped=True, tokens=1)}
        [judged] = score_examples({"seen": [e]}, answers, Baselines([]), metric="auto")
        assert judged.metric == "checks"
        assert judged.scores["model"]["checks"] == score
    with pytest.raises(
        UserError, match="judges by the constraints that records name, and examples of t name none"
    ):
        score_examples(
            {"seen": [e, replace(e, id="0" * 32, checks=())]},
            {**answers, "0" * 32: answers[e.id]},
            Baselines([]),
            metric="checks",
        )


def test_every_metric_has_its_name_in_the_config_and_stays_between_0_and_1():
    for name in (*METRICS, "auto"):
        assert EvalConfig(metric=name).metric == name
    with pytest.raises(ValueError, match="no metric; use one of"):
        EvalConfig(metric="bleu")
    texts = [*sentences()[:60], *SCRIPTS, "", "1,234.5", "-3"]
    for metric in (m for m in METRICS.values() if not m.by_checks):
        for a, b in zip(texts, reversed(texts), strict=True):
            assert 0.0 <= metric.function(a, [b, a[:3]]) <= 1.0


def test_token_f1_and_numbers_by_hand():
    assert token_f1("The cat sat.", ["a cat sat down"]) == pytest.approx(2 * 2 / (3 + 4))
    assert token_f1("", ["a"]) == 0.0
    assert numeric("So the answer is 1,234.50 euros", ["1234.5"]) == 1.0
    assert numeric("12 apples and 13", ["12"]) == 0.0
    assert numeric("It costs 1,200.", ["1200"]) == 1.0
    assert numeric("It costs 1,200.", ["200"]) == 0.0
    assert numeric("none", ["0"]) == 0.0


def test_tokens_of_any_script():
    assert unicode_tokens("It's 3.5€ 你好 สวัสดี") == [
        "it",
        "'",
        "s",
        "3",
        ".",
        "5",
        "€",
        "你",
        "好",
        "ส",
        "วั",
        "ส",
        "ดี",
    ]
    assert unicode_tokens("हिन्दी भाषा") == ["हिन्दी", "भाषा"]


def test_the_other_track_takes_byte_level_bpe_where_it_is_at_hand(tmp_path, monkeypatch):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["a cat sat"] * 3, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    found = metrics.gpt2_tokenizer(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(metrics, "gpt2_tokenizer", lambda: found)
    assert all(not t.startswith("\u0120") for t in xlingual_tokens("a cat sat"))
    assert METRICS["rouge_l_xlingual"].function("a cat", ["a cat"]) == 1.0
    assert "GPT-2" in metrics.xlingual_tokens_title()
    monkeypatch.setattr(metrics, "gpt2_tokenizer", lambda: None)
    assert xlingual_tokens("A cat") == ["a", "cat"]
    assert "not at hand" in metrics.xlingual_tokens_title()


def test_metrics_never_reach_torch():
    code = "import sys, sft_dist.evals.metrics as m, sft_dist.evals.statistics; m.rouge_l('a', ['a']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
