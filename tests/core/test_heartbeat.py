"""A step of the wall clock neither ends a run nor excuses one; who hangs is named from what the ranks say."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from sft_dist.cluster.sweep.run_metric import first_error
from sft_dist.core import heartbeat
from sft_dist.core.files import write_json
from sft_dist.core.heartbeat import GONE_S, Pulse, begin_beat, silent_s, stall_file, who_stalls, write_beat
from sft_dist.core.runfolder import RunFolder
from sft_dist.report.watch import watch

DAY_S = 86_400.0


class Clock:
    """The monotonic clock, which tests move forward; the wall clock, which they set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.later_s = 0.0
        own, wall = time.monotonic, time.time
        monkeypatch.setattr(heartbeat.time, "monotonic", lambda: own() + self.later_s)
        self.set = lambda by_s: monkeypatch.setattr(heartbeat.time, "time", lambda: wall() + by_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("jump_s", [DAY_S, -3600.0])
@pytest.mark.parametrize("boot", ["", "of another machine"])
def test_the_wall_clock_tells_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, jump_s: float, boot: str
) -> None:
    write_beat(tmp_path, moved=1, silent_s=2.0)
    if boot:
        monkeypatch.setattr(heartbeat, "BOOT", boot)
    pulse = Pulse(tmp_path)
    clock.set(jump_s)
    os.utime(tmp_path / "heartbeat", (time.time(), time.time() - jump_s))
    live = pulse.look()
    assert live is not None
    assert 2.0 <= live.still_s < 10  # not ended
    clock.later_s = 500
    dead = pulse.look()
    assert dead is not None
    assert 500 <= dead.gone_s < 510  # not excused
    assert 502 <= dead.still_s < 512


def test_who_looks_once_on_the_machine_of_the_run_is_not_fooled(tmp_path: Path, clock: Clock) -> None:
    assert silent_s(tmp_path) is None
    write_beat(tmp_path, moved=1, silent_s=2.0)
    clock.set(DAY_S)
    assert 2.0 <= (silent_s(tmp_path) or 0) < 10
    clock.later_s = 1000
    assert (silent_s(tmp_path) or 0) >= 1002


def test_an_attempt_that_begins_is_not_silent_by_the_heartbeat_of_the_one_before(
    tmp_path: Path, clock: Clock
) -> None:
    write_beat(tmp_path, moved=9, silent_s=5000.0)
    begin_beat(tmp_path)
    assert (silent_s(tmp_path) or 0) < 10


@pytest.mark.parametrize(
    "text", ["", "[", "[1]", '{"up_s": "x", "silent_s": true}', '{"silent_s": 1}', "\x00"]
)
def test_a_damaged_heartbeat_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "heartbeat").write_text(text)
    found = Pulse(tmp_path).look()
    assert found is not None
    assert found.still_s < 10


def say(run: Path, rank: int, phase: str, *, waits: bool) -> None:
    facts = {"rank": rank, "host": f"n{rank // 2}", "phase": phase, "at": "train/loop.py:9 run > x.py:8 f"}
    write_json(stall_file(run, rank), {**facts, "waits": waits, "silent_s": 130.0})


def test_who_hangs_is_named(tmp_path: Path) -> None:
    assert who_stalls(tmp_path) == ""
    write_json(tmp_path / "env.json", {"world_size": 4, "hosts": ["n0", "n1"]})
    for rank in (0, 1, 2):
        say(tmp_path, rank, "the reduction of a step's sums", waits=True)
    said = who_stalls(tmp_path)
    assert said.startswith(
        "no progress for 2 min or more: rank 3 on n1 says nothing: it is frozen, or its node is; 3 ranks wait"
    )
    say(tmp_path, 3, "waiting for data", waits=False)
    said = who_stalls(tmp_path)
    assert (
        "rank 3 on n1 stands in waiting for data (train/loop.py:9 run > x.py:8 f); 3 ranks wait for others"
        in said
    )
    say(tmp_path, 3, "forward and backward", waits=True)
    assert "all ranks wait for others in the reduction" in who_stalls(tmp_path)
    stall_file(tmp_path, 3).write_text('{"rank": "3"')  # torn
    assert "rank 3 on n1 says nothing" in who_stalls(tmp_path)


def test_watch_names_a_run_whose_process_is_gone(tmp_path: Path, clock: Clock) -> None:
    run = RunFolder(tmp_path)
    run.set_status("running", step=3, steps=9)
    write_json(tmp_path / "env.json", {"world_size": 2, "hosts": ["n0"]})
    write_beat(tmp_path, moved=3, silent_s=1.0)
    say(tmp_path, 1, "the reduction of a step's sums", waits=True)
    clock.later_s = GONE_S + 60
    out = io.StringIO()
    assert watch(tmp_path, Console(file=out, width=200)) == "silent"
    shown = " ".join(out.getvalue().split())
    assert "nothing has written its heartbeat for 3 min" in shown
    assert "rank 0 on n0 says nothing" in shown


def test_the_newest_attempt_is_told_by_its_name(tmp_path: Path) -> None:
    for name, age_s in (("attempt-2.1", DAY_S), ("attempt-10.2", 2 * DAY_S), ("attempt-10.1", 0.0)):
        file = tmp_path / "logs" / name / "node-0" / "error.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"message": {"message": name, "extraInfo": {"timestamp": 1}}}))
        os.utime(file.parents[1], (time.time() - age_s,) * 2)
    assert first_error(tmp_path) == "attempt-10.2"
