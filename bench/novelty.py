"""ROUGE-L novelty of new instructions against a large pool: seconds, and how many times faster than rouge-score in a loop.

    python bench/novelty.py                                  # 100,000 made-up instructions; about 2 minutes of one core
    python bench/novelty.py --instructions file.jsonl        # field "instruction" of JSON lines, as many as there are

Prints one JSON object. Expect at 100,000: 1 minute, 1 ms for an instruction at the full pool, and a ratio of about 10,000 (the goal is 20).
Seconds are CPU seconds of one core. The loop is timed on a sample of pairs and extrapolated to the pairs that
it would have to score, one for each pair of a new instruction and one that was kept before; `loop_extrapolated` says so.
`tokenised_before` is the loop over its LCS alone, as later projects do it. On the sample both must decide alike.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

from rouge_score.rouge_scorer import RougeScorer, _score_lcs
from rouge_score.tokenize import tokenize

from sft_dist.construct import NoveltyPool

THRESHOLD = 0.7


def made_up(n, seed):
    """Instructions of 4 to 60 words (24 on average, as in Alpaca) with natural word frequencies; one in ten is a near copy."""
    rng = random.Random(seed)
    words = [f"w{i}" for i in range(40_000)]
    weights = [1 / (i + 3) for i in range(len(words))]
    texts = []
    for i in range(n):
        if i % 10 == 9:
            source = texts[rng.randrange(len(texts))].split()
            texts.append(" ".join(w if rng.random() < 0.85 else rng.choice(words) for w in source))
        else:
            length = min(60, max(4, int(rng.lognormvariate(3.0, 0.6))))
            texts.append(" ".join(rng.choices(words, weights, k=length)))
    return texts


def read(path):
    """Distinct instructions of a JSON-lines file, in random order."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = list(dict.fromkeys(r["instruction"] for r in rows if r.get("instruction")))
    random.Random(0).shuffle(texts)
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=100_000, help="made-up instructions (100000)")
    parser.add_argument("--instructions", type=Path, help="JSON lines with a field `instruction` instead")
    parser.add_argument("--pairs", type=int, default=20_000, help="pairs that the loop is timed on (20000)")
    options = parser.parse_args()
    texts = read(options.instructions) if options.instructions else made_up(options.size, seed=0)

    pool, kept, pairs = NoveltyPool(THRESHOLD), [], 0
    start = time.process_time()
    for text in texts:
        pairs += len(kept)
        if pool.similar(text) is None:
            pool.add(text)
            kept.append(text)
    ours_s = time.process_time() - start

    asked = (
        made_up(200, seed=1)
        if not options.instructions
        else random.Random(2).sample(texts, min(200, len(texts)))
    )
    start = time.process_time()
    matches = [pool.similar(text) for text in asked]
    query_s = (time.process_time() - start) / len(asked)

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    rng = random.Random(3)
    sample = [(rng.choice(texts), rng.choice(kept)) for _ in range(options.pairs)]
    start = time.process_time()
    scores = [scorer.score(new, old)["rougeL"].fmeasure for new, old in sample]
    pair_s = (time.process_time() - start) / len(sample)
    tokens = [(tokenize(new, None), tokenize(old, None)) for new, old in sample]
    start = time.process_time()
    for new, old in tokens:
        _score_lcs(old, new)
    lcs_s = (time.process_time() - start) / len(sample)

    same = all(
        (s > THRESHOLD) == (_alone(old).similar(new) is not None)
        for (new, old), s in zip(sample, scores, strict=True)
    )
    found = [(text, match) for text, match in zip(asked, matches, strict=True) if match]
    same = same and all(scorer.score(text, kept[m.number])["rougeL"].fmeasure == m.score for text, m in found)
    report = {
        "instructions": str(options.instructions or "made up"),
        "asked": len(texts),
        "kept": len(kept),
        "mean_words": round(sum(len(t.split()) for t in texts) / len(texts), 1),
        "ours_s": round(ours_s, 2),
        "ours_ms_an_instruction": round(1000 * ours_s / len(texts), 3),
        "ours_ms_at_full_pool": round(1000 * query_s, 3),
        "pairs": pairs,
        "loop_us_a_pair": round(1e6 * pair_s, 1),
        "loop_extrapolated_s": round(pairs * pair_s),
        "loop_extrapolated": f"from {len(sample)} pairs to {pairs}",
        "ratio": round(pairs * pair_s / ours_s, 1),
        "ratio_at_full_pool": round(len(kept) * pair_s / query_s, 1),
        "loop_us_a_pair_tokenised_before": round(1e6 * lcs_s, 1),
        "ratio_tokenised_before": round(pairs * lcs_s / ours_s, 1),
        "same_decisions": same,
    }
    print(json.dumps(report, indent=1))


def _alone(text):
    """A pool of one text."""
    pool = NoveltyPool(THRESHOLD)
    pool.add(text)
    return pool


if __name__ == "__main__":
    main()
