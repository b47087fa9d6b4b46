"""A rank without progress says where it stands; the heartbeat's age is the time without progress."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

from sft_dist.core.heartbeat import stall_file
from sft_dist.core.runfolder import RunFolder
from sft_dist.train import loop, metrics
from sft_dist.train.guard import Heartbeat
from sft_dist.train.stall_report import REDUCTION, UNKNOWN, place_of


def frame_inside(module, function: str):
    """Return the frame of a call that stands in a function of `module` with this name."""
    namespace: dict = {"grab": lambda: sys._getframe(1)}
    code = compile(f"def {function}():\n return grab()", module.__file__, "exec")
    exec(code, namespace)
    return namespace[function]()


@pytest.mark.parametrize(
    ("module", "function", "phase"),
    [
        (metrics, "reduce", "the reduction of a step's sums"),
        (loop, "prefetched", "waiting for data"),
        (loop, "run", "forward and backward"),
    ],
)
def test_phases_are_read_from_the_stack(module, function, phase):
    assert hasattr(module, function) or hasattr(metrics.Meter, function)
    found, at, waits = place_of(frame_inside(module, function))
    assert (found, waits) == (phase, phase == REDUCTION)
    assert at == f"train/{module.__name__.rsplit('.', 1)[1]}.py:2 {function}"


def test_a_stack_that_is_not_ours():
    assert place_of(None) == (UNKNOWN, "outside of sft_dist", False)


def moved(run):
    return json.loads((run / "heartbeat").read_text())["moved"]


def test_the_heartbeat_ages_without_progress_and_the_rank_speaks(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "logs").mkdir()
    with Heartbeat(folder, limit_s=0.8) as heartbeat:
        time.sleep(0.3)
        beaten = moved(tmp_path)
        time.sleep(0.6)
        assert moved(tmp_path) == beaten
        said = json.loads(stall_file(tmp_path, 0).read_text())
        assert (said["rank"], said["host"], said["phase"]) == (0, os.uname().nodename, UNKNOWN)
        heartbeat.progress()
        time.sleep(0.3)
        assert moved(tmp_path) > beaten
        assert not stall_file(tmp_path, 0).exists()


def test_half_of_heartbeat_max_is_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("HEARTBEAT_MAX", "0.4")
    (tmp_path / "logs").mkdir()
    with Heartbeat(RunFolder(tmp_path)):
        time.sleep(0.5)
    assert stall_file(tmp_path, 0).exists()
