"""RunFiles -> the figures that the page, the table at the end of a run and the comparison all quote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.heartbeat import SILENT_S, who_stalls
from sft_dist.evals.score import BASELINES
from sft_dist.report.formatting import duration
from sft_dist.report.run_files import RunFiles, number

SET_TITLES = {
    "seen": "Trained tasks, unseen inputs",
    "heldout_near": "Held-out tasks, near",
    "heldout_far": "Held-out tasks, far",
    "validation": "Validation, which chooses",
}
CURVE_TITLES = {
    "validation": "validation",
    "seen": "trained tasks",
    "heldout_near": "held-out, near",
    "heldout_far": "held-out, far",
}

EDGE_SHARE = 0.05
"""Part of the steps that counts as the start, and as the end, of a curve."""

UNITS = {"target_tokens": "tokens with loss", "tokens": "tokens", "examples": "examples"}
"""Key of plan.json -> what shares of a mixture are of, the finest first."""

RARE_SHARE = 0.25
"""A task with less than this part of an equal share is under-represented."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """Headline figures of training; NaN where unknown.

    Attributes:
        steps: Optimizer steps done.
        planned_steps: Of the whole run.
        first_loss: Mean over the first 5 % of steps.
        final_loss: Mean over the last 5 % of steps, nats per target token.
        eval_loss: Of the last evaluation during training.
        tokens: Trained on, padding not counted.
        target_tokens: Of them, with loss.
        seconds: Sum over steps.
        tokens_per_s: Median over steps.
        mfu: Median over steps.
        fill: Tokens over capacity, the whole run.
        imbalance: Mean over steps.
        data_wait_share: Seconds waited for data over all seconds.
        memory_bytes: Peak.
        skipped: Steps that were not applied.
    """

    steps: int
    planned_steps: float
    first_loss: float
    final_loss: float
    eval_loss: float
    tokens: float
    target_tokens: float
    seconds: float
    tokens_per_s: float
    mfu: float
    fill: float
    imbalance: float
    data_wait_share: float
    memory_bytes: float
    skipped: int


def summarize_run(run: RunFiles) -> RunSummary:
    """Compute the headline figures."""
    t = run.training
    loss = t["loss"][np.isfinite(t["loss"])]
    capacity = np.nansum(t["tokens"] / np.where(t["fill"] > 0, t["fill"], np.nan)) if len(t) else math.nan
    planned = number(run.plan.get("steps"))
    return RunSummary(
        steps=int(np.nanmax(t["step"])) if len(t) else 0,
        planned_steps=planned,
        first_loss=edge_mean(loss, last=False),
        final_loss=edge_mean(loss, last=True),
        eval_loss=float(t.evals[1][-1]) if len(t.evals[1]) else math.nan,
        tokens=_total(t["tokens"]),
        target_tokens=_total(t["target_tokens"]),
        seconds=_total(t["step_s"]),
        tokens_per_s=_median(t["tokens_per_s"]),
        mfu=_median(t["mfu"]),
        fill=_total(t["tokens"]) / capacity if capacity and capacity > 0 else number(run.plan.get("fill")),
        imbalance=_mean(t["imbalance"]),
        data_wait_share=_total(t["data_wait_s"]) / _total(t["step_s"])
        if _total(t["step_s"]) > 0
        else math.nan,
        memory_bytes=float(np.nanmax(t["memory_bytes"]))
        if np.isfinite(t["memory_bytes"]).any()
        else math.nan,
        skipped=int(np.nansum(t["skipped"])),
    )


def edge_mean(values: NDArray[np.float64], *, last: bool) -> float:
    """Return the mean of the first or last 5 % of a curve, at least one and at most 50 points; NaN of none."""
    if not len(values):
        return math.nan
    n = min(50, max(1, round(EDGE_SHARE * len(values))))
    return float(values[-n:].mean() if last else values[:n].mean())


def score(figures: Mapping[str, Any], who: str = "model") -> float:
    """Return the score of an answerer in a task entry of scores.json; NaN when absent."""
    found = figures.get("score")
    value = found.get(who) if isinstance(found, Mapping) else None
    return number(value.get("mean") if isinstance(value, Mapping) else value)


def interval(macro: Mapping[str, Any], who: str = "model") -> tuple[float, float, float]:
    """Return (mean, low, high) of an answerer in a macro entry; NaN when absent."""
    found = macro.get("score")
    value = found.get(who) if isinstance(found, Mapping) else None
    if not isinstance(value, Mapping):
        return math.nan, math.nan, math.nan
    return number(value.get("mean")), number(value.get("low")), number(value.get("high"))


def best_baseline(contrasts: Mapping[str, Any]) -> str | None:
    """Return the answerer without a model that comes nearest to the model; None without one."""
    known = {
        w: number(c.get("difference"))
        for w, c in contrasts.items()
        if w in BASELINES and isinstance(c, Mapping)
    }
    known = {w: d for w, d in known.items() if math.isfinite(d)}
    return min(known, key=known.__getitem__) if known else None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskMix:
    """One task before and after mixing. Shares are of `unit`, the finest that the plan knows."""

    name: str
    source: str
    examples: float
    drawn_examples: float
    share_before: float
    share_after: float
    rare: bool
    unit: str

    @property
    def epochs(self) -> float:
        """How often an epoch of the mixture passes over the task."""
        return self.drawn_examples / self.examples if self.examples else math.nan


def task_mix(plan: Mapping[str, Any]) -> list[TaskMix]:
    """Return the tasks of a plan, the largest share after mixing first."""
    tasks = {t: v for t, v in (plan.get("tasks") or {}).items() if isinstance(v, Mapping)}
    if not tasks:
        return []

    def column(name: str) -> NDArray[np.float64]:
        return np.array([number(v.get(name)) for v in tasks.values()])

    # One unit for both shares, the finest that the plan knows before and after.
    unit = next((u for u in UNITS if np.isfinite([column(u), column(f"drawn_{u}")]).all()), "examples")
    before, after = column(unit), column(f"drawn_{unit}")
    share_before, share_after = before / max(np.nansum(before), 1), after / max(np.nansum(after), 1)
    examples, drawn = column("examples"), column("drawn_examples")
    rows = [
        TaskMix(
            name=name,
            source=str(fields.get("source", "")),
            examples=examples[i],
            drawn_examples=drawn[i],
            share_before=share_before[i],
            share_after=share_after[i],
            unit=UNITS[unit],
            rare=bool(share_after[i] < RARE_SHARE / len(tasks)),
        )
        for i, (name, fields) in enumerate(tasks.items())
    ]
    return sorted(rows, key=lambda r: (-r.share_after if math.isfinite(r.share_after) else 0.0, r.name))


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Return the centred moving mean over at most `window` points, fewer at the ends; NaN counts as absent."""
    if window <= 1 or not len(values):
        return values
    known = np.isfinite(values)
    kernel = np.ones(window)
    totals = np.convolve(np.where(known, values, 0.0), kernel, mode="full")
    counts = np.convolve(known.astype(float), kernel, mode="full")
    start = (window - 1) // 2
    inside = slice(start, start + len(values))
    with np.errstate(invalid="ignore"):
        return np.asarray(totals[inside] / counts[inside], dtype=np.float64)


def thin(
    x: NDArray[np.float64], y: NDArray[np.float64], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return at most `points` points: means of equal runs of the finite ones."""
    known = np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff([*edges, len(x)])
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def status_of(run: RunFiles) -> tuple[str, str]:
    """Return the state of a run in one word, and what is known about it."""
    state, reason = str(run.status.get("state", "")), str(run.status.get("reason", ""))
    if state == "running" and run.silent_s > SILENT_S:
        return "silent", f"recorded as running, but without a sign of life for {duration(run.silent_s)}"
    if state:
        return state, reason or (who_stalls(run.path) if state == "running" else "")
    if not len(run.training):
        return "not started", "no step was recorded"
    return "unknown", f"no status.json; the last recorded step is {run.training['step'][-1]:.0f}"


def _total(values: NDArray[np.float64]) -> float:
    return float(np.nansum(values)) if np.isfinite(values).any() else math.nan


def _mean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _median(values: NDArray[np.float64]) -> float:
    return float(np.nanmedian(values)) if np.isfinite(values).any() else math.nan
