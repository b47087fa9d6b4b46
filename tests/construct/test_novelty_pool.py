"""The pool decides as the rouge-score package does, on every pair, while it grows."""

import json
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from sft_dist.construct.novelty import FIRST_INDEX, NoveltyPool, f_measure, rouge_tokens

SCORER = RougeScorer(["rougeL"], use_stemmer=False)


def score(a: str, b: str) -> float:
    return SCORER.score(a, b)["rougeL"].fmeasure


def slow_similar(text, pool, threshold):
    """The most similar text of a list, by the package, if its score is more than the threshold."""
    scores = [score(other, text) for other in pool]
    best = max(range(len(pool)), key=lambda i: (scores[i], -i), default=None)
    return None if best is None or scores[best] <= threshold else (best, scores[best])


def grow(texts, threshold):
    """Ask and add each text as generation does, with both; return how many are new."""
    pool, kept = NoveltyPool(threshold), []
    for text in texts:
        match = pool.similar(text)
        expected = slow_similar(text, kept, threshold)
        assert (None if match is None else tuple(match)) == expected, text
        if match is None:
            pool.add(text)
            kept.append(text)
    return len(kept)


def test_by_eye():
    pool = NoveltyPool(0.7)
    pool.extend(["Write a poem about the sea", "Translate the sentence into French"])
    assert tuple(pool.similar("write a long poem about the sea!")) == (0, 2 * (6 / 7) * 1 / (6 / 7 + 1))
    assert pool.similar("Write a story about the moon") is None  # 4 of 6 tokens in common: 0.67
    assert len(pool) == 2


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_random_texts_of_few_words_with_repetitions(threshold):
    rng = random.Random(int(threshold * 10))
    texts = [" ".join(rng.choices("abcdef", k=rng.randint(1, 9))) for _ in range(220)]
    assert 0 < grow(texts, threshold) < len(texts) or threshold == 1.0


def test_a_score_that_equals_the_threshold_is_new():
    a, b = " ".join("abcdefghij"), " ".join("abcdefgxyz")  # 7 of 10 in common
    assert score(a, b) == f_measure(7, 10, 10)
    for threshold in (0.7, 0.69999):
        pool = NoveltyPool(threshold)
        pool.add(a)
        assert (pool.similar(b) is not None) == (score(a, b) > threshold)


def test_after_rarity_was_counted_again():
    rng = random.Random(0)
    words = [f"w{int(rng.paretovariate(0.6))}" for _ in range(4000)]
    texts = [" ".join(rng.choices(words, k=rng.randint(3, 14))) for _ in range(FIRST_INDEX + 60)]
    for i in range(0, len(texts), 9):  # near copies
        texts[i] = " ".join(w for w in texts[i - 1].split() if rng.random() < 0.85) or "x"
    pool = NoveltyPool(0.7)
    pool.extend(texts)
    for text in texts[::7]:
        assert tuple(pool.similar(text)) == slow_similar(text, texts, 0.7)


def test_real_instructions(shared_data):
    lines = (shared_data / "alpaca-style" / "alpaca_permissive.jsonl").read_text().splitlines()
    texts = [json.loads(line)["instruction"] for line in lines[:4000]]
    texts = [t for t in dict.fromkeys(texts) if len(t) < 120][:260]
    assert 0 < grow(texts, 0.7) < len(texts)


def test_text_without_a_token_is_similar_to_its_equal_only():
    pool = NoveltyPool(0.7)
    pool.extend(["напиши стих", "!!!"])
    assert tuple(pool.similar("напиши стих ")) == (0, 1.0)
    assert pool.similar("напиши песню") is None
    assert rouge_tokens("Don't 写诗 stop-it_now 42") == ["don", "t", "写", "诗", "stop", "it", "now", "42"]
