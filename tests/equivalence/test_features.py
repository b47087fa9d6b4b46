"""Every feature of the trainer keeps (or, where that is its purpose, changes) the trajectory, and can be continued."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases_features
import numpy as np
import pytest
from cases_features import DiskFeature, EmaStates, Feature, HeldOut

Outcome = Callable[..., dict[str, Any]]
PLAIN = Feature(name="plain", stage=3)
SAME = [
    Feature(name="offload_optimizer", stage=3),
    Feature(name="offload_optimizer", stage=2),
    Feature(name="offload_optimizer", stage=1),
    Feature(name="offload_params", stage=3),
    Feature(name="hpz", stage=3),
    Feature(name="full", stage=3),
    Feature(name="second", stage=3),
    Feature(name="selective", stage=2),
    Feature(name="offload_activations", stage=3),
    Feature(name="tiles", stage=3),
    Feature(name="tiles_full", stage=3),
    Feature(name="tiles", stage=2),
    Feature(name="compiled", stage=3),
    Feature(name="compiled_full", stage=3),
    pytest.param(Feature(name="compiled", stage=2), marks=pytest.mark.slow),
]
OTHER = [
    Feature(name="neftune", stage=3),
    Feature(name="loss_options", stage=3),
    Feature(name="layer_decay", stage=3),
    Feature(name="layer_decay", stage=2),
    Feature(name="muon", stage=0),
]
NVME = DiskFeature(name="nvme", stage=3)
LAYER_DECAY = [Feature(name="layer_decay", stage=stage) for stage in (2, 3)]


def check(ours: dict[str, Any]) -> None:
    assert ours["resumed"] == ours["losses"][cases_features.HALF :]
    assert ours["apart"] == 0.0


@pytest.mark.cases(PLAIN)
@pytest.mark.parametrize("feature", SAME, ids=str)
def test_the_trajectory_stays_and_is_continued(outcome: Outcome, feature: Feature) -> None:
    ours, plain = outcome(feature), outcome(PLAIN)
    check(ours)
    np.testing.assert_allclose(ours["losses"], plain["losses"], rtol=1e-5)
    np.testing.assert_allclose(ours["norms"], plain["norms"], rtol=1e-4)


@pytest.mark.cases(PLAIN)
@pytest.mark.parametrize("feature", OTHER, ids=str)
def test_the_trajectory_is_another_and_is_continued(outcome: Outcome, feature: Feature) -> None:
    ours = outcome(feature)
    check(ours)
    apart = np.subtract(ours["losses"], outcome(PLAIN)["losses"])
    assert np.abs(apart).max() > 1e-4


@pytest.mark.cases(*LAYER_DECAY)
def test_layer_decay_does_not_depend_on_the_stage(outcome: Outcome) -> None:
    a, b = (outcome(feature)["losses"] for feature in LAYER_DECAY)
    np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("case", [EmaStates(stage=3), EmaStates(stage=2), EmaStates(stage=0)])
def test_averaged_weights_are_saved_exported_and_restored(outcome: Outcome, case: EmaStates) -> None:
    seen = outcome(case)
    assert seen["exported"]
    assert seen["restored"]
    assert seen["apart"] < 1e-6


@pytest.mark.parametrize("case", [HeldOut(documents=1), HeldOut(documents=7)])
def test_set_loss_with_fewer_examples_than_ranks_and_with_uneven_ranks(
    outcome: Outcome, case: HeldOut
) -> None:
    seen = outcome(case)
    assert seen["found"]["loss"] is None  # nothing is chosen by what judges
    assert seen["found"]["set_loss"] == {"seen": pytest.approx(seen["expected"]["loss"], rel=1e-5)}
    assert seen["found"]["task_loss"] == pytest.approx(seen["expected"]["task_loss"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.cases(PLAIN, NVME)
def test_offload_to_disk_keeps_the_trajectory(outcome: Outcome) -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if not AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("libaio is not installed")
    ours, plain = outcome(NVME), outcome(PLAIN)
    check(ours)
    np.testing.assert_allclose(ours["losses"], plain["losses"], rtol=1e-4)
    assert ours["swapped"] >= 2 * 3  # on each rank a flat tensor and its two moments
    assert plain["swapped"] == 0
