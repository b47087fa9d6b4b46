"""Run folder -> the one figure by which the runs of a sweep are ranked, and how it went step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_json, read_jsonl, read_object

Direction = Literal["minimize", "maximize"]
Curve = list[tuple[int, float]]
TAIL_SHARE = 0.05  # of the steps: the end of a training curve, which is noisy step by step


@dataclass(frozen=True, slots=True)
class RunMetric:
    """A figure of a run: how people call it, and which end of it is good. `evaluated`: it needs `sft-dist evaluate`."""

    title: str
    direction: Direction
    evaluated: bool = False


RUN_METRICS: dict[str, RunMetric] = {
    "eval_loss": RunMetric("validation loss", "minimize"),
    "train_loss": RunMetric("training loss", "minimize"),
    "validation": RunMetric("score on the validation set", "maximize", evaluated=True),
    "tokens_per_s": RunMetric("tokens a second", "maximize"),
}


def curve_of(run_dir: Path, metric: str) -> Curve:
    """Return (step, value) as recorded in metrics.jsonl; empty for a metric that has no course.

    Steps that were repeated after a restart count as they were last; what is not finite is left out, and so is step 0: that is
    the model before training, which no trial changes.
    """
    kind, field = {
        "eval_loss": ("eval", "loss"),
        "train_loss": ("train", "loss"),
        "tokens_per_s": ("train", "tokens_per_s"),
    }.get(metric, ("", ""))
    found: dict[int, float] = {}
    for line in read_jsonl(run_dir / "metrics.jsonl", {"kind": str, "step": int}):
        if line.get("kind") == kind and line["step"] and _finite(line.get(field)):
            found[int(line["step"])] = float(line[field])
    return sorted(found.items())


def metric_of(run_dir: Path, metric: str) -> float | None:
    """Return the figure of a run that has ended; None when its files do not hold it.

    A loss is that of the model at the end: the last validation loss, the mean over the last 5 % of training steps.
    """
    if RUN_METRICS[metric].evaluated:
        return _score(run_dir, metric)
    values = [v for _, v in curve_of(run_dir, metric)]
    if not values:
        return None
    if metric == "eval_loss":
        return values[-1]
    if metric == "tokens_per_s":
        return median(values)
    return _mean(values[-max(1, round(TAIL_SHARE * len(values))) :])


def first_error(run_dir: Path) -> str:
    """Return what the earliest error of the newest attempt says, with its rank's host; "" when none was recorded."""
    attempts = sorted(run_dir.glob("logs/attempt-*"), key=_turn)
    found: list[tuple[float, str]] = []
    for file in attempts[-1].glob("node-*/error.json") if attempts else ():
        with suppress(ValueError, KeyError, TypeError, OSError):
            said = read_json(file)["message"]
            if isinstance(said, dict):
                found.append((float(said["extraInfo"]["timestamp"]), str(said["message"])))
            else:
                found.append((file.stat().st_mtime, str(said)))
    return min(found)[1].strip().splitlines()[0] if found else ""


def _turn(attempt: Path) -> tuple[int, ...]:
    """Return the numbers of an attempt, such as (2, 1) of attempt-2.1: restart and try."""
    return tuple(int(n) for n in attempt.name.partition("-")[2].split(".") if n.isdecimal())


def _score(run_dir: Path, name: str) -> float | None:
    with suppress(UserError, OSError, ValueError, KeyError, TypeError):
        value = read_object(run_dir / "eval" / "scores.json", "")["sets"][name]["macro"]["score"]["model"][
            "mean"
        ]
        return float(value) if _finite(value) else None
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
