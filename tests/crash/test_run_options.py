"""What retention, remote places, staging and the policies for bad steps do in whole runs, on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(
    run_script: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    return run_script(tmp_path_factory.mktemp("options"), "run_options.py", timeout_s=400)


def kinds(seen: dict[str, Any], name: str) -> list[str]:
    return [e["kind"] for e in seen["events"][name]]


def files_below(seen: dict[str, Any], folder: str) -> set[str]:
    return {f.removeprefix(f"{folder}/") for f in seen["files"] if f.startswith(f"{folder}/")}


def test_the_best_checkpoint_stays_without_its_optimizer_state(seen: dict[str, Any]) -> None:
    assert seen["codes"]["kept"] == [0, 0]
    losses = {int(s): v for s, v in seen["evals"]["kept"].items()}
    best = min(losses, key=lambda s: losses[s])
    assert best != 24
    assert seen["best"] == f"step-{best:08d}"
    here = files_below(seen, "runs/kept/checkpoints")
    assert {f for f in here if "/" not in f} == {"LATEST", "BEST", seen["best"], "step-00000024"}
    assert not any("optimizer" in f for f in here if f.startswith(seen["best"]))
    assert sum("optimizer" in f for f in here if f.startswith("step-00000024")) == 2


def test_checkpoints_reach_the_url_and_come_back(seen: dict[str, Any]) -> None:
    checkpoints = files_below(seen, "runs/kept/checkpoints")
    assert files_below(seen, "bucket/run") == {"config.json", *checkpoints}
    assert "uploaded" in kinds(seen, "kept")
    assert seen["codes"]["again"] == [0, 0]
    assert kinds(seen, "again")[:2] == ["fetched", "resumed"]
    assert seen["events"]["again"][1]["step"] == 24


def test_a_url_that_cannot_be_written_ends_the_run_before_its_first_step(seen: dict[str, Any]) -> None:
    assert seen["codes"]["unwritable"] == [2, 2]
    assert seen["status"]["unwritable"]["state"] == "fatal"
    assert (
        "checkpoint.remote=file:///dev/null/run cannot be written" in seen["status"]["unwritable"]["reason"]
    )
    assert seen["status"]["unwritable"].get("step", 0) == 0
    assert not [f for f in seen["files"] if f.startswith("runs/unwritable/checkpoints")]


def test_stores_come_from_the_url_over_the_nodes_own_disk(seen: dict[str, Any]) -> None:
    assert "demo/manifest.json" in files_below(seen, "bucket/stores")
    assert len([f for f in files_below(seen, "disk/stores") if f.endswith("/manifest.json")]) == 1


def test_spikes_are_skipped_where_the_limit_says_so(seen: dict[str, Any]) -> None:
    skipped = [e for e in seen["events"]["spike"] if e["kind"] == "skipped_step"]
    assert skipped
    assert {e["cause"] for e in skipped} == {"spike"}
    assert min(e["step"] for e in skipped) > 16  # fewer losses say nothing about the spread
    assert all(len(e["examples"][0]) == 32 for e in skipped)
    assert "skipped_step" not in kinds(seen, "kept")  # off by default


def test_a_loss_that_is_not_finite_stops_where_the_policy_says_so(seen: dict[str, Any]) -> None:
    assert seen["codes"]["nonfinite"] == [3, 3]
    assert seen["status"]["nonfinite"]["state"] == "fatal"
    assert "train.on_nonfinite=stop" in seen["status"]["nonfinite"]["reason"]
    [event] = [e for e in seen["events"]["nonfinite"] if e["kind"] == "skipped_step"]
    assert event["cause"] == "nonfinite"
    assert event["examples"]
