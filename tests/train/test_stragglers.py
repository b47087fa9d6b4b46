"""Which rank the others wait for: in every step, and when it does not come back."""

from __future__ import annotations

import os
from pathlib import Path

from ranks import on_ranks

from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.train.guard import STALL_S, START_S, Heartbeat
from sft_dist.train.pace import AHEAD, Own, Pace
from sft_dist.train.stall_report import PHASE_NAMES


def test_a_slow_and_a_hung_rank_are_named(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    on_ranks(2, Path(__file__).with_name("slow_and_hung_rank.py"), str(tmp_path))
    events = {e["kind"]: e for e in read_jsonl(tmp_path / "events.jsonl")}
    slow = events["straggler"]
    assert (slow["rank"], slow["host"]) == (1, os.uname().nodename)
    assert slow["share"] > slow["others"] + AHEAD
    assert f"rank 1 on {os.uname().nodename} is slower than the others" in slow["reason"]
    hung = events["stalled"]["reason"]
    assert f"rank 1 on {os.uname().nodename} stands in" in hung
    assert "> slow_and_hung_rank.py:" in hung
    assert "waste" in hung
    assert "1 ranks waits" not in hung
    assert "1 rank waits for others in the reduction of a step's sums" in hung
    assert not list((tmp_path / "logs").iterdir())  # it went on


def test_minutes_pass_by_default_before_a_rank_says_where_it_stands(tmp_path: Path) -> None:
    heartbeat = Heartbeat(RunFolder(tmp_path))
    assert heartbeat.patience_s == START_S <= 300
    for _ in range(3):
        heartbeat.progress()
    assert heartbeat.patience_s == STALL_S <= 120
    heartbeat._moves.append(200.0)  # a step that is always long is no hang
    assert heartbeat.patience_s == 600
    heartbeat._moves.append(5000.0)
    assert heartbeat.patience_s == 900  # half of HEARTBEAT_MAX


def test_a_rank_is_named_once_and_only_if_it_lasts() -> None:
    work = PHASE_NAMES.index("forward and backward")
    slow, fast = Own(0.9, work), Own(0.5, 0)
    pace = Pace(lasting_s=0.0)
    assert pace.compare([slow]) is None  # alone
    assert pace.compare([fast, slow, fast]) is None  # seen for the first time
    found = pace.compare([fast, slow, fast])
    assert found is not None
    assert (found.rank, found.phase) == (1, "forward and backward")
    assert pace.compare([fast, slow, fast]) is None
    assert pace.compare([fast, fast, fast]) is None
    assert [pace.compare([slow, fast, fast]) is None for _ in range(2)] == [True, False]
    patient = Pace(lasting_s=60.0)
    assert not any(patient.compare([fast, slow]) for _ in range(50))
