"""The schedule as a closed form; DeepSpeed's keys, what we derive and what a user may add."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from sft_dist.core.errors import UserError
from sft_dist.train.optim import lr_at, parameter_groups, steps_of
from sft_dist.train.zero import DERIVED, zero_config


def schedule(name: str, total: int = 10, warmup: float = 2, **options: Any) -> list[float]:
    defaults = {"peak": 1.0, "schedule": name, "warmup": warmup, "decay": 0.4, "min_share": 0.0} | options
    return [round(lr_at(s, total_steps=total, **defaults), 4) for s in range(total)]


def test_schedules_by_eye() -> None:
    assert schedule("constant") == [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert schedule("linear") == [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]
    assert schedule("linear", min_share=0.2)[-1] == 0.3
    assert schedule("wsd") == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    cosine = schedule("cosine")
    assert cosine[6] == 0.5  # half-way between warm-up and end
    assert cosine[1:] == sorted(cosine[1:], reverse=True)
    assert cosine[-1] > 0


def test_below_one_is_a_share_of_all_steps() -> None:
    assert (steps_of(0.03, 1000), steps_of(5, 1000), steps_of(1, 1000), steps_of(0, 1000)) == (30, 5, 1, 0)


def test_vectors_do_not_decay() -> None:
    groups = parameter_groups(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), 0.1)
    assert [(g["weight_decay"], [tuple(p.shape) for p in g["params"]]) for g in groups] == [
        (0.1, [(3, 2)]),
        (0.0, [(3,), (3,), (3,)]),
    ]


def make(
    stage: int = 3, dtype: str = "bfloat16", clip: float | None = 1.0, extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    return zero_config(
        stage=stage,
        dtype=dtype,
        clip=clip,
        overlap_comm=True,
        reduce_bucket_size=5,
        prefetch_bucket_size=5,
        persistence_threshold=5,
        max_live_parameters=5,
        sub_group_size=5,
        communication_dtype=None,
        extra=extra or {},
    )


def test_what_deepspeed_would_default_to_wrongly_is_explicit() -> None:
    config = make()
    assert config["gradient_clipping"] == 1.0
    assert make(clip=None)["gradient_clipping"] == 0.0  # the default of 1.0 would clip in silence
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["managed_gradient_accumulation"] is False
    assert config["zero_optimization"]["reduce_scatter"] is True
    assert make(stage=1)["zero_optimization"]["overlap_comm"] is False


def test_extra_is_merged_last_and_may_not_contradict() -> None:
    config = make(extra={"zero_optimization": {"zero_hpz_partition_size": 8}, "wall_clock_breakdown": True})
    assert config["zero_optimization"]["zero_hpz_partition_size"] == 8
    assert config["zero_optimization"]["stage"] == 3
    assert config["wall_clock_breakdown"] is True


@pytest.mark.parametrize("key", sorted(DERIVED))
def test_derived_keys_are_refused(key: str) -> None:
    *path, last = key.split(".")
    extra: Any = {last: 1}
    for part in reversed(path):
        extra = {part: extra}
    with pytest.raises(UserError, match=f"deepspeed.extra.{key} is derived"):
        make(extra=extra)
