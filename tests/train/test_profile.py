"""The trace holds the steps of its window and no others."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch
from torch.profiler import record_function

from sft_dist.train.profile import Profiler


def train(profiler: Profiler, steps: range) -> None:
    for step in steps:
        with record_function(f"step {step}"):
            torch.ones(3).sum()
        profiler.after(step)
    profiler.close()


def steps_in(folder: Path) -> dict[str, list[str]]:
    found = {}
    for file in folder.glob("*"):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        found[file.name] = sorted({e["name"] for e in events if str(e.get("name")).startswith("step ")})
    return found


def test_a_window_of_steps(tmp_path: Path) -> None:
    train(Profiler((3, 4), tmp_path, done=0), range(1, 7))
    assert steps_in(tmp_path) == {"steps-3-4.json.gz": ["step 3", "step 4"]}


def test_the_first_step_and_a_run_that_ends_early(tmp_path: Path) -> None:
    train(Profiler((1, 9), tmp_path, done=0), range(1, 3))
    assert steps_in(tmp_path) == {"steps-1-2.json.gz": ["step 1", "step 2"]}


def test_nothing_is_recorded_outside_the_window_or_without_one(tmp_path: Path) -> None:
    train(Profiler((3, 4), tmp_path / "a", done=10), range(11, 13))
    train(Profiler(None, tmp_path / "b", done=0), range(1, 3))
    assert not list(tmp_path.iterdir())
