"""A step waits for the device at a handful of places, all of them after its last backward pass.

What is counted are calls on a CPU that would wait on a GPU (waits.py): a value that is brought to the host, a result whose
size depends on values, a copy that blocks. Whether the copies overlap on a GPU, no CPU can show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases_features import WaitingCalls

# The backend of CPUs reads the borders of documents; those of GPUs are given them.
OF_CPU = {"backends.py:sdpa_per_doc tolist"}
# One value a step each: the sums that are logged, and whether the gradient is finite and how long it is.
ONCE = {
    "metrics.py:reduce tolist",
    "zero.py:update _local_scalar_dense",
    "stage_1_and_2.py:has_overflow _local_scalar_dense",
    "utils.py:clip_tensors_by_global_norm _local_scalar_dense",
}
FEW = {"utils.py:is_invalid_grad_norm _local_scalar_dense": 3}
# `.to(device)` of what lies there already, and small host tensors that are sent to it.
CHEAP = {
    "modeling_llama.py:forward to",
    "utils.py:get_global_norm_of_tensors to",
    "utils.py:mask_nan_or_inf_with_val_inplace tensor",
    "stage_1_and_2.py:has_overflow to",
    "stage_1_and_2.py:get_grad_norm_direct to",
    "stage3.py:get_grad_norm_direct tensor",
}


@pytest.mark.parametrize(
    ("world", "case"), [(1, WaitingCalls(stage=3)), (1, WaitingCalls(stage=1)), (2, WaitingCalls(stage=2))]
)
def test_nothing_waits_before_the_last_backward_pass(
    outcome: Callable[..., dict[str, Any]], world: int, case: WaitingCalls
) -> None:
    found = outcome(case, world)
    assert set(found["micro-steps"]) <= OF_CPU | CHEAP
    assert set(found["update"]) <= ONCE | set(FEW) | CHEAP
    for site, count in found["update"].items():
        assert count <= FEW.get(site, 1) or site in CHEAP, site
