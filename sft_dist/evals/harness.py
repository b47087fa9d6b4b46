"""Output of lm-evaluation-harness -> scores of its tasks with intervals over items, model beside base. Neither torch nor the harness.

The unit is the item of a benchmark: its claim is about further items of the same benchmark, not about further tasks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sft_dist.evals.score import BASE, MODEL
from sft_dist.evals.statistics import contrast, holm, mean_interval, wilson

FORMAT = 1
"""Of harness.json; raised when its fields change their meaning."""
CHARACTERS = 2000  # of an answer that is kept


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What one model said to one item of a task under one filter.

    Attributes:
        task: Of the harness.
        filter: Of the harness: how the answer was cut out of what was generated.
        id: Number of the item in the task.
        scores: Metric -> value; only those that are one number an item.
        answer: What was said, filtered.
        target: What is right.
    """

    task: str
    filter: str
    id: int
    scores: Mapping[str, float]
    answer: str
    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Total:
    """A figure of the harness for a whole task: `stderr` is the harness's own, NaN where it gives none."""

    task: str
    filter: str
    metric: str
    value: float
    stderr: float
    higher_is_better: bool


def read_output(found: Mapping[str, Any]) -> tuple[list[Total], list[Item]]:
    """Return the figures and items of what `lm_eval.simple_evaluate` returned; groups of tasks are left out, their tasks stand there."""
    totals = []
    for task in found["samples"]:
        higher = found.get("higher_is_better", {}).get(task, {})
        for key, value in found["results"][task].items():
            metric, comma, cut = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _number(value):
                continue
            totals.append(
                Total(
                    task=task,
                    filter=cut,
                    metric=metric,
                    value=float(value),
                    stderr=_float(found["results"][task].get(f"{metric}_stderr,{cut}")),
                    higher_is_better=bool(higher.get(metric, True)),
                )
            )
    items = [
        Item(
            task=task,
            filter=str(s.get("filter", "none")),
            id=int(s["doc_id"]),
            scores={m: float(s[m]) for m in s.get("metrics", ()) if _number(s.get(m))},
            answer=str(s.get("filtered_resps"))[:CHARACTERS],
            target=str(s.get("target"))[:CHARACTERS],
        )
        for task, members in found["samples"].items()
        for s in members
    ]
    return totals, items


def harness_scores(
    totals: Mapping[str, Sequence[Total]], items: Mapping[str, Sequence[Item]], *, seed: int = 0
) -> dict[str, Any]:
    """Return task -> what was found: each metric with its interval over items, and the paired difference to the base.

    A metric that is no mean over items (a corpus BLEU) has the harness's standard error alone.

    Args:
        totals: "model" and, where it was asked, "base" -> figures.
        items: Likewise -> items.
        seed: Of the resampling.
    """
    values: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for who, members in items.items():
        for i in members:
            for metric, value in i.scores.items():
                values.setdefault((who, i.task, i.filter, metric), {})[i.id] = value
    out: dict[str, Any] = {}
    p: dict[str, float] = {}
    for total in totals[MODEL]:
        key = (total.task, total.filter, total.metric)
        figures: dict[str, Any] = {
            "metric": total.metric,
            "filter": total.filter,
            "higher_is_better": total.higher_is_better,
            "score": {},
        }
        for who, found in totals.items():
            own = next((t for t in found if (t.task, t.filter, t.metric) == key), None)
            if own is not None:
                figures["score"][who] = _score(own, values.get((who, *key)), seed)
        first, second = (values.get((who, *key)) for who in (MODEL, BASE))
        if first and second and first.keys() == second.keys() and "low" in figures["score"][MODEL]:
            pair = contrast([[v] for v in first.values()], [[second[i]] for i in first], seed=seed)
            figures["difference"] = asdict(pair)
            p[" ".join(key)] = pair.p
        task = out.setdefault(
            total.task, {"n": len({i.id for i in items[MODEL] if i.task == total.task}), "metrics": []}
        )
        task["metrics"].append(figures)
    corrected = holm(p)
    for task, f in out.items():
        for m in f["metrics"]:
            if "difference" in m:
                m["difference"]["p_holm"] = corrected[f"{task} {m['filter']} {m['metric']}"]
    return out


def _score(total: Total, by_item: Mapping[int, float] | None, seed: int) -> dict[str, float]:
    out = {"mean": total.value, "stderr": total.stderr}
    values = list((by_item or {}).values())
    if not values or not math.isclose(sum(values) / len(values), total.value, rel_tol=1e-6, abs_tol=1e-9):
        return out
    if set(values) <= {0.0, 1.0}:
        low, high = wilson(sum(values), len(values))
    else:
        found = mean_interval([[v] for v in values], seed=seed)
        low, high = found.low, found.high
    return {**out, "low": low, "high": high, "n": len(values)}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _float(value: Any) -> float:
    return float(value) if _number(value) else math.nan
