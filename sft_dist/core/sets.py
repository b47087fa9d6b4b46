"""The names of the evaluation sets: which set chooses between models, which sets judge them.

Nothing goes in. `SETS` are the files <folder>/eval/<set>.jsonl, `CURVES` the losses that a run measures while it trains.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Literal, TypeAlias

SetName: TypeAlias = Literal["validation", "seen", "heldout"]
CurveName: TypeAlias = Literal["validation", "seen", "heldout_near", "heldout_far"]

VALIDATION: SetName = "validation"
"""New inputs of trained tasks: chooses the best checkpoint, stops early, ranks and prunes trials."""
JUDGES: tuple[SetName, ...] = ("seen", "heldout")
"""seen: new inputs of trained tasks. heldout: tasks that training never met. Nothing is chosen by them."""
SETS: tuple[SetName, ...] = (VALIDATION, *JUDGES)
CURVES: tuple[CurveName, ...] = ("validation", "seen", "heldout_near", "heldout_far")
"""heldout_near: a trained task is of the same family or has a similar instruction. heldout_far: none is."""
NEAR = "near.json"
"""Beside the files of the sets: held-out task -> why it is near. Held-out tasks that it does not name are far."""


def curve_of(name: SetName, task: str, near: Container[str]) -> CurveName:
    """Return the curve of the training log that an example belongs to.

    Args:
        name: Its set.
        task: Its task.
        near: The held-out tasks that are near.
    """
    if name != "heldout":
        return name
    return "heldout_near" if task in near else "heldout_far"
