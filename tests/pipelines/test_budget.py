"""A budget of examples: every task keeps its part, what is kept covers more than chance does, the best come first."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from test_select import run, small_blocks, with_processes, write

from sft_dist.config import RunConfig
from sft_dist.config.filters import FiltersConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.selection.budget import chosen, quotas
from sft_dist.selection.files import training_examples

TOPICS = 40


def test_parts_of_tasks():
    def parts(sizes, total, least):
        return quotas(np.array(sizes), total, least).tolist()

    assert parts([1000, 100, 3], 103, 10) == [83, 17, 3]  # 10, 10, 3, and 80 as 990 to 90
    assert parts([50, 50, 2], 12, 10) == [5, 5, 2]  # the least does not reach: alike for all
    assert parts([50, 50, 2], 11, 10) == [5, 4, 2]
    assert parts([7, 1], 20, 5) == [7, 1]
    with pytest.raises(UserError, match="less than the 3 tasks"):
        parts([5, 5, 5], 2, 1)


@pytest.mark.parametrize("seed", range(5))
def test_the_lazy_choice_is_that_of_counting_every_gain_each_time(seed: int):
    draw = random.Random(seed)
    held = [sorted(draw.sample(range(60), draw.randint(0, 8))) for _ in range(80)]
    quality = [draw.choice([1.0, 0.5, 0.25]) for _ in held]
    weight: Counter[int] = Counter()
    expected: list[int] = []
    for _ in range(30):
        gains = {
            i: sum(sqrt(weight[u] + quality[i]) - sqrt(weight[u]) for u in grams)
            for i, grams in enumerate(held)
            if i not in expected
        }
        best = max(gains, key=lambda i: (gains[i], -i))
        expected.append(best)
        for u in held[best]:
            weight[u] += quality[best]
    first = np.cumsum([0, *map(len, held)])
    flat = np.array([u for grams in held for u in grams], np.int64)
    assert chosen(first, flat, np.array(quality), 30).tolist() == expected


def records() -> dict[str, list[dict[str, str]]]:
    """ "main": a large task, whose texts are of topics that are the rarer the higher, and a small one; "other": one more."""
    draw = random.Random(7)
    words = [[f"w{t}x{i}" for i in range(12)] for t in range(TOPICS)]

    def text(topic: int) -> str:
        return " ".join(draw.choices(words[topic], k=12))

    main = []
    for k in range(600):
        topic = min(int(draw.expovariate(0.25)), TOPICS - 1)
        main.append({"instruction": f"Tell {k} {text(topic)}", "output": text(topic), "task": "large"})
    main += [{"instruction": f"Ask {k} {text(k)}", "output": text(k), "task": "small"} for k in range(6)]
    main += [{"instruction": f"Held {k} out", "output": text(k), "task": "held"} for k in range(3)]
    other = [{"instruction": f"Say {k} {text(k % 3)}", "output": text(k % 5)} for k in range(60)]
    return {"main": main, "other": other}


def kept(config: RunConfig) -> dict[str, Example]:
    sources, selected = run(config)
    return {e.id: e for n, s in sources.items() for e in training_examples(s, selected.sources[n])}


def grams(examples) -> set[tuple[str, str]]:
    texts = [f"{e.instruction} {e.output}".split() for e in examples]
    return {pair for t in texts for pair in pairwise(t)}


def test_every_task_keeps_its_part_and_more_is_covered_than_by_chance(tmp_path: Path):
    everything = kept(write(tmp_path, records()))
    config = write(tmp_path, records(), budget={"examples": 80, "task_min": 10})
    found = kept(config)
    # 10, 6 and 10 first, then 54 as 590 to 50
    assert Counter(e.task for e in found.values()) == {"large": 60, "small": 6, "other": 14}
    rejects = [json.loads(x) for x in (tmp_path / "data/rejects/main.jsonl").read_text().splitlines()]
    assert Counter((r["reason"], r["detail"]) for r in rejects) == {
        ("budget", "60 of 600 examples of its task are kept"): 540
    }
    large = [e for e in everything.values() if e.task == "large"]
    by_chance = [len(grams(random.Random(i).sample(large, 60))) for i in range(20)]
    assert len(grams(e for e in found.values() if e.task == "large")) > 1.1 * max(by_chance)
    assert len(kept(write(tmp_path, records(), budget={"examples": 10_000}))) == len(everything)


def test_the_same_for_any_number_of_workers_and_another_for_another_seed(tmp_path: Path, monkeypatch):
    small_blocks(monkeypatch)
    found = []
    for name, processes, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1)):
        (tmp_path / name).mkdir()
        config = with_processes(write(tmp_path / name, records(), budget={"examples": 50}), processes)
        found.append(set(kept(config.model_copy(update={"seed": seed}))))
    assert found[0] == found[1] != found[2]


def test_higher_scores_are_likelier(tmp_path: Path):
    everything = kept(write(tmp_path, records()))
    scores = {i: random.Random(i).random() for i in everything}
    (tmp_path / "s.jsonl").write_text(
        "".join(json.dumps({"id": i, "s": v}) + "\n" for i, v in scores.items())
    )
    means = []
    for best in ("high", "low"):
        config = write(
            tmp_path,
            records(),
            scores={"s": {"file": str(tmp_path / "s.jsonl"), "best": best}},
            budget={"examples": 80, "score": "s"},
        )
        means.append(np.mean([scores[i] for i in kept(config)]))
    assert means[0] > 0.65
    assert means[1] < 0.35


def test_a_budget_names_a_score_that_is_there():
    with pytest.raises(ValueError, match=r"budget\.score='s' is none of `scores`"):
        FiltersConfig(budget={"examples": 5, "score": "s"})
