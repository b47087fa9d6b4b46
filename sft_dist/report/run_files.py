"""The files of a run folder, read forgivingly: what is missing or torn is named, never an error.

What is read of plan.json (every key may be absent):
    examples, tokens, target_tokens, rows, fill (of the first epoch), steps (of the run), epochs, seq_len,
        tokens_per_step, world_size, parameters
    truncated, duplicates, drops: reason -> count, when the epoch was planned
    sources: name -> kind, read, unreadable, evaluation, kept, dropped: reason -> count, examples, tokens, target_tokens
    tasks: name -> source, examples, tokens, target_tokens (in the stores), drawn_examples, drawn_tokens,
        drawn_target_tokens (by the mixture, in one epoch)
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.errors import UserError
from sft_dist.core.files import CHECKSUM, fingerprint
from sft_dist.core.heartbeat import silent_s
from sft_dist.core.records import StepMetrics

MARKS = (
    "config.json",
    "status.json",
    "metrics.jsonl",
    "plan.json",
    "eval/scores.json",
)  # one of them makes a run folder
MADE_BY = {
    "config.json": "sft-dist train",
    "env.json": "sft-dist train",
    "plan.json": "sft-dist train",
    "metrics.jsonl": "sft-dist train",
    "events.jsonl": "sft-dist train",
    "eval/scores.json": "sft-dist evaluate",
    "eval/generations.jsonl": "sft-dist evaluate",
}
"""What the report reads -> the command that makes it."""

STEP_FIELDS = tuple(
    f.name for f in fields(StepMetrics) if not f.name.endswith("_loss")
)  # these hold several figures


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The optimizer steps of a run, in order, each once (of repeated steps after a resume, the last one counts).

    Attributes:
        columns: Field of StepMetrics -> float64 [steps]; NaN where a line has no finite value.
        task_loss: Task -> (steps, losses), the steps in which it occurred.
        source_loss: Source -> likewise.
        evals: (steps, losses) of the evaluations during training.
        curves: Curve (validation, seen, heldout_near, heldout_far) -> (steps, losses) of the evaluations during training.
        eval_task_loss: Task -> (steps, losses) of the evaluations during training.
    """

    columns: Mapping[str, NDArray[np.float64]]
    task_loss: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    source_loss: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    evals: tuple[NDArray[np.float64], NDArray[np.float64]]
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    eval_task_loss: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]

    def __getitem__(self, field: str) -> NDArray[np.float64]:
        """Return one column."""
        return self.columns[field]

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.columns["step"])


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """Everything a report shows. Absent files leave empty containers and stand in `problems`.

    `silent_s` is the time without progress, NaN without a heartbeat.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    plan: dict[str, Any]
    status: dict[str, Any]
    training: Training
    events: tuple[dict[str, Any], ...]
    scores: dict[str, Any]
    generations: tuple[dict[str, Any], ...]
    others: tuple[dict[str, Any], ...]
    harness: tuple[dict[str, Any], ...]
    problems: Mapping[str, str]
    silent_s: float

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.config.get("name") or self.path.resolve().name)

    def option(self, path: str, default: Any = None) -> Any:
        """Return a value of the config by its dotted path."""
        value: Any = self.config
        for part in path.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    @property
    def metric(self) -> str:
        """The metric that was asked for: a name of `evals.metrics.METRICS`, or auto."""
        return str(self.scores.get("metric") or self.option("eval.metric", "rouge_l"))

    @property
    def sets(self) -> dict[str, dict[str, Any]]:
        """The scores of each evaluated set; empty before an evaluation. What lacks a part of an evaluation is left out."""
        found = self.scores.get("sets")
        return {n: s for n, s in found.items() if _is_whole(s)} if isinstance(found, dict) else {}

    @property
    def unit(self) -> str:
        """What intervals are drawn over: families of tasks where tasks share one, else tasks."""
        shared = any(s["macro"].get("units") != s["macro"].get("tasks") for s in self.sets.values())
        return "families of tasks" if shared else "tasks"


def _is_whole(scores: Any) -> bool:
    return isinstance(scores, dict) and all(
        isinstance(scores.get(p), dict) for p in ("macro", "tasks", "contrasts")
    )


def read_run_files(run_dir: Path) -> RunFiles:
    """Read a run folder.

    Raises:
        UserError: When the folder does not exist, or is no run folder.
    """
    if not run_dir.is_dir():
        raise UserError(
            f"{run_dir} is not a folder, so there is no run to report on; name a folder under run_root, such as runs/demo"
        )
    if not any((run_dir / name).is_file() for name in MARKS):
        raise UserError(
            f"{run_dir} is no run folder (it has none of {', '.join(MARKS)}), so nothing is read from it or written into it; "
            "name a folder under run_root, such as runs/demo"
        )
    problems: dict[str, str] = {}
    lines = _lines(run_dir, "metrics.jsonl", problems)
    return RunFiles(
        path=run_dir,
        config=_object(run_dir, "config.json", problems),
        env=_object(run_dir, "env.json", problems),
        plan=_object(run_dir, "plan.json", problems),
        status=_object(run_dir, "status.json", {}),
        training=read_training(lines),
        events=tuple(_lines(run_dir, "events.jsonl", problems)),
        scores=_object(run_dir, "eval/scores.json", problems),
        generations=tuple(_lines(run_dir, "eval/generations.jsonl", problems)),
        others=tuple(_others(run_dir)),
        harness=tuple(_harness(run_dir)),
        problems=problems,
        silent_s=math.nan if (silent := silent_s(run_dir)) is None else silent,
    )


def read_training(lines: Iterable[Mapping[str, Any]]) -> Training:
    """Turn lines of metrics.jsonl into columns."""
    steps: dict[int, Mapping[str, Any]] = {}
    evals: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        if isinstance(line.get("step"), int):
            (evals if line.get("kind") == "eval" else steps)[line["step"]] = line
    ordered = [steps[s] for s in sorted(steps)]
    columns = {f: np.array([number(line.get(f)) for line in ordered], dtype=np.float64) for f in STEP_FIELDS}
    evaluations = [evals[s] for s in sorted(evals)]
    points = [(float(s), number(evals[s].get("loss"))) for s in sorted(evals)]
    finite = [p for p in points if math.isfinite(p[1])]
    return Training(
        columns=columns,
        task_loss=_series(ordered, "task_loss"),
        source_loss=_series(ordered, "source_loss"),
        evals=(np.array([p[0] for p in finite]), np.array([p[1] for p in finite])),
        curves=_series(evaluations, "set_loss"),
        eval_task_loss=_series(evaluations, "task_loss"),
    )


def _series(
    lines: Iterable[Mapping[str, Any]], field: str
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return name -> (steps, values) of a field that maps names to values; values that are not finite are left out."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for line in lines:
        values = line.get(field)
        for name, raw in values.items() if isinstance(values, Mapping) else ():
            if math.isfinite(value := number(raw)):
                xs, ys = found.setdefault(name, ([], []))
                xs.append(float(line["step"]))
                ys.append(value)
    return {name: (np.array(xs), np.array(ys)) for name, (xs, ys) in sorted(found.items())}


def number(value: Any) -> float:
    """Return a finite float; NaN for anything else (a missing field, null, text)."""
    if isinstance(value, bool | int | float) and math.isfinite(value):
        return float(value)
    return math.nan


def _others(run_dir: Path) -> Iterable[dict[str, Any]]:
    """Yield the scores of other checkpoints, models and settings; what is torn is left out."""
    for path in sorted(run_dir.glob("eval/others/*/scores.json")):
        found = _object(run_dir, str(path.relative_to(run_dir)), {})
        if isinstance(found.get("sets"), dict):
            yield {"name": path.parent.name, **found}


def _harness(run_dir: Path) -> Iterable[dict[str, Any]]:
    """Yield what lm-evaluation-harness found of the run's model, then of others; what is torn is left out."""
    for path in (run_dir / "eval" / "harness.json", *sorted(run_dir.glob("eval/others/*/harness.json"))):
        found = _object(run_dir, str(path.relative_to(run_dir)), {})
        if isinstance(found.get("tasks"), dict):
            yield found


def _object(run_dir: Path, name: str, problems: dict[str, str]) -> dict[str, Any]:
    path = run_dir / name
    if not path.is_file():
        problems[name] = "missing"
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        problems[name] = f"unreadable ({error})"
        return {}
    if not isinstance(value, dict):
        problems[name] = f"unreadable (holds a {type(value).__name__}, not an object)"
        return {}
    said = value.pop(CHECKSUM, None)
    if said is not None and said != fingerprint(value):
        problems[name] = "unreadable (it does not match its checksum)"
        return {}
    return value


def _lines(run_dir: Path, name: str, problems: dict[str, str]) -> list[dict[str, Any]]:
    """Read a JSON-lines file; lines that a crash tore are left out and counted."""
    path = run_dir / name
    if not path.is_file():
        problems[name] = "missing"
        return []
    out, torn = [], 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            torn += 1
            continue
        if isinstance(value, dict):
            out.append(value)
        else:
            torn += 1
    if torn:
        problems[name] = f"read except for {torn} torn line{'s' * (torn > 1)}"
    elif not out:
        problems[name] = "empty"
    return out
