"""Which steps are not worth their update, and whom they are blamed on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sft_dist.config.train import TrainConfig
from sft_dist.core.records import Batch
from sft_dist.train.guard import (
    MIN_STEPS,
    WINDOW_STEPS,
    SpikeDetector,
    example_losses,
    worst_examples,
)

STEADY = [2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.1, 1.9] * 2  # median 2.0, median deviation 0.075: 0.11 robust


def spikes(on_spike: str = "skip", deviations: float = 5.0, losses: list[float] = STEADY) -> SpikeDetector:
    policy = TrainConfig(on_spike=on_spike, spike_deviations=deviations)  # type: ignore[arg-type]
    return SpikeDetector(policy, losses)


@pytest.mark.parametrize(
    ("loss", "wrong"),
    [
        (2.3, ""),
        (2.5, ""),
        (2.6, "spike"),
        (50.0, "spike"),
        (0.1, ""),
        (math.nan, "nonfinite"),
        (math.inf, "nonfinite"),
    ],
)
def test_far_above_the_median_is_a_spike(loss: float, wrong: str) -> None:
    assert spikes().wrong(loss) == wrong


def test_off_looks_at_finiteness_only() -> None:
    assert spikes("off").wrong(50.0) == ""
    assert spikes("off").wrong(math.nan) == "nonfinite"


def test_few_losses_say_nothing() -> None:
    few = spikes(losses=STEADY[: MIN_STEPS - 1])
    assert few.wrong(50.0) == ""
    few.add(2.0)
    assert few.wrong(50.0) == "spike"


def test_losses_that_hardly_vary_do_not_make_a_spike_of_every_step() -> None:
    flat = spikes(losses=[2.0] * 20)
    assert flat.wrong(2.09) == ""  # 5 deviations of at least 1 % of the median
    assert flat.wrong(2.11) == "spike"


def test_a_spike_that_got_through_does_not_hide_the_next() -> None:
    seen = spikes()
    for loss in (40.0, 45.0, 50.0):
        seen.add(loss)
    assert seen.wrong(40.0) == "spike"


def test_a_resumed_judge_remembers_what_an_uninterrupted_one_does() -> None:
    whole = spikes()
    for i in range(100):
        whole.add(2.0 + i / 1000)
    resumed = spikes(losses=whole.losses)
    assert len(whole.losses) == WINDOW_STEPS
    assert resumed.losses == whole.losses
    assert resumed.wrong(2.3) == whole.wrong(2.3) == ("spike" if 2.3 > 2.068 + 5 * 1.4826 * 0.016 else "")


def test_policies_stop_for_their_own_cause() -> None:
    both = SpikeDetector(TrainConfig(on_nonfinite="stop", on_spike="skip"))
    assert both.stops("nonfinite")
    assert not both.stops("spike")
    assert SpikeDetector(TrainConfig(on_spike="stop")).stops("spike")
    assert not SpikeDetector(TrainConfig(on_spike="stop")).stops("nonfinite")


def batch(lengths: list[int], ids: tuple[str, ...], targets: list[int], offset: int = 0) -> Batch:
    cu = np.cumsum([0, *lengths]).astype(np.int32)
    n, empty = len(targets), np.zeros(sum(lengths), np.int64)
    return Batch(
        input_ids=empty,
        position_ids=empty,
        cu_seqlens=cu,
        max_seqlen=max(lengths),
        target_positions=np.array(targets, np.int64),
        target_ids=np.zeros(n, np.int64),
        target_weights=np.ones(n, np.float32),
        target_tasks=np.zeros(n, np.int64),
        doc_ids=ids,
        doc_cost_tokens=0,
        offset=offset,
    )


def test_losses_are_told_apart_by_example() -> None:
    # documents of 3, 2 and 4 tokens: targets are predicted at 1 | 3 | 5, 6, 7
    parts = example_losses(
        [batch([3, 2, 4], ("a", "b", "c"), [1, 3, 5, 6, 7])], [torch.tensor([1.0, 2, 3, 4, 5])]
    )
    assert parts == [("a", 1.0, 1), ("b", 2.0, 1), ("c", 12.0, 3)]
    # the second half of rows that two ranks share: positions count from the slice
    half = example_losses([batch([3, 2, 4], ("a", "b", "c"), [0, 2], offset=4)], [torch.tensor([7.0, 8.0])])
    assert half == [("b", 7.0, 1), ("c", 8.0, 1)]


def test_the_worst_come_first_and_an_example_in_parts_is_one() -> None:
    assert worst_examples([("a", 1.0, 1), ("b", 6.0, 2), ("a", 9.0, 1), ("c", 4.0, 4)]) == ["a", "b", "c"]
    assert worst_examples([("a", 1.0, 1), ("b", math.inf, 1), ("c", math.nan, 2)]) == ["b", "c"]
    assert worst_examples([(f"x{i:02d}", float(i), 1) for i in range(20)]) == [
        f"x{i:02d}" for i in range(19, 11, -1)
    ]
