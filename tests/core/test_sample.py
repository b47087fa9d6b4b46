"""A sample of a stream: independent of its order, fair, each key once."""

from __future__ import annotations

import random
from collections import Counter

from sft_dist.core.sample import Sample


def sampled(keys, size=10, seed=1):
    sample: Sample[str] = Sample(size, seed)
    for key in keys:
        sample.add(key, key.upper())
    return sample.items()


def test_order_and_repeats_do_not_matter():
    keys = [f"key{i}" for i in range(200)]
    first = sampled(keys)
    assert len(first) == len(set(first)) == 10
    for seed in range(5):
        mixed = [*keys, *keys[:50]]
        random.Random(seed).shuffle(mixed)
        assert sampled(mixed) == first
    assert sampled(keys, seed=2) != first


def test_few_are_all_kept():
    assert sorted(sampled(["a", "b", "a"])) == ["A", "B"]
    assert sampled([]) == []


def test_every_key_has_the_same_chance():
    counts = Counter(
        k for seed in range(600) for k in sampled([f"k{i}" for i in range(20)], size=5, seed=seed)
    )
    assert len(counts) == 20
    assert all(100 < n < 200 for n in counts.values())  # 150 expected, standard deviation 10.6
