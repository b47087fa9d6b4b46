"""`doctor --prove`: what is wrong with a case, and how its file scales the estimate."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from test_fit import QWEN_06B, taken

from sft_dist.cluster.estimate.memory import Setup
from sft_dist.core.errors import UserError
from sft_dist.pipelines.cluster.prove import lines, scale, verdict


def test_a_kernel_that_differs_a_failure_and_a_resume_that_differs_are_named() -> None:
    right = {"varlen": {"error_over_dense": 1.1}, "flash": {"skipped": "not installed"}}
    assert verdict({"case": "attention", "backends": right}) == ""
    assert "flex" in verdict({"case": "attention", "backends": right | {"flex": {"error_over_dense": 40.0}}})
    assert verdict({"case": "loss", "failed": "odd"}) == "odd"
    plain = {"relative_errors": [1e-3, 1e-3, 1e-3]}
    assert verdict({"case": "loss", "plain": plain, "ours": {"relative_errors": [1e-3, 2e-3, 1e-3]}}) == ""
    assert "differs" in verdict(
        {"case": "loss", "plain": plain, "ours": {"relative_errors": [1e-3, 2e-2, 1e-3]}}
    )
    weights = {"weights_resumed_over_undisturbed": 1e-6, "weights_of_the_same_run_again": 1e-6}
    assert verdict({"case": "resume", **weights}) == ""  # as far apart as two equal runs on that device
    assert verdict({"case": "resume", **weights, "weights_of_the_same_run_again": 0.0}) != ""


def test_the_estimate_is_scaled_by_what_was_measured(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "ranks": 1, "stage": 1, "dtype": "bfloat16", "tokens": 8192, "target_share": 1.0, "gradient_checkpointing": False,
        "reduce_bucket_size": 10**8, "max_live_parameters": 10**9, "sub_group_size": 10**8, "compiled": True,
    }  # fmt: skip
    step = {
        "case": "one", "micro_step_ms": 1500 * taken(QWEN_06B, "H100", compiled=True).micro_step, "shape": QWEN_06B,
        "setup": asdict(Setup(**options)), "tokens": 8192, "squares": 8192.0**2, "targets": 8192,
    }  # fmt: skip
    file = tmp_path / "found.jsonl"
    file.write_text(
        "\n".join(map(json.dumps, ({"case": "machine", "device": "NVIDIA H100 80GB HBM3"}, step)))
    )
    assert scale(file) == pytest.approx(1.5)
    file.write_text(json.dumps({"case": "machine", "device": "cpu"}))
    with pytest.raises(UserError, match="no step that was measured on a known GPU"):
        scale(file)
    assert [line["case"] for line in lines(file)] == ["machine"]
