"""A sweep folder written by hand: figures that one checks by eye, no training."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sft_dist.cluster.sweep.folder import Definition, SweepFolder, Trial

BASE = {"name": "run", "eval": {"metric": "exact_match"}, "launch": {"nproc": 1}}


def definition(**changed) -> Definition:
    """Two learning rates by three warm-ups, ranked by validation loss."""
    values = {
        "method": "grid",
        "metric": "eval_loss",
        "space": {"optim.lr": "1e-4,1e-3", "optim.schedule": "cosine,linear,constant"},
        "overrides": [],
        "cwd": "/",
        "base": BASE,
        "trials": 6,
        "pruning": "none",
        "prune_after": 0.2,
        "retries": 1,
        "max_parallel": 1,
        "seed": 0,
    }
    return Definition(**values | changed)


def add(
    folder: SweepFolder,
    number: int,
    state: str,
    *,
    value: float | None = None,
    curve: list[tuple[int, float]] | None = None,
    settings: dict[str, str] | None = None,
    **facts,
) -> Path:
    """Write one trial and its run folder; `curve` holds validation losses by step."""
    run = folder.run(number).path
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.json").write_text(json.dumps(BASE))
    lines = [{"kind": "eval", "step": s, "loss": v, "task_loss": {}} for s, v in curve or []]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    trial = Trial(number=number, settings=settings or {}, state=state, value=value, **facts)
    folder.write(trial)
    return run


def sweep_of_six(path: Path) -> SweepFolder:
    """trial-004 is the best (0.5); trial-002 was pruned at step 20, trial-003 failed; trial-005 has not begun."""
    folder = SweepFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    folder.define(definition())
    points = [(lr, s) for lr in ("0.0001", "0.001") for s in ("cosine", "linear", "constant")]
    settings = [{"optim.lr": lr, "optim.schedule": s} for lr, s in points]
    falls = [
        [(s, end + 2 * math.exp(-s / 20)) for s in (10, 20, 30, 40, 50)] for end in (0.9, 0.7, 1.5, 9, 0.4)
    ]
    for i, end in ((0, 1.0), (1, 0.8), (4, 0.5)):
        add(folder, i, "finished", value=end, curve=falls[i], settings=settings[i], step=50, attempts=1)
    add(folder, 2, "pruned", curve=falls[2][:2], settings=settings[2], step=20, attempts=1)
    reason = "the loss was not finite 10 steps in a row <&>\nsecond line"
    add(folder, 3, "failed", curve=falls[3][:1], settings=settings[3], reason=reason, attempts=2, failures=2)
    folder.write(Trial(number=5, settings=settings[5]))
    return folder
