"""Scores and their thresholds."""

from __future__ import annotations

import json

import pytest

from sft_dist.core.errors import UserError
from sft_dist.core.records import single_turn
from sft_dist.filters.quality import Quality, read_scores


def example(i, task="t"):
    return single_turn(task=task, source="s", instruction=f"question {i}", output="answer")


def score_file(path, scores, task="t"):
    lines = [{"id": example(i, task).id, "task": task, "ifd": v} for i, v in enumerate(scores)]
    path.write_text(path.read_text() if path.exists() else "")
    with path.open("a") as f:
        f.writelines(json.dumps(x) + "\n" for x in lines)
    return path


def reasons(path, n, task="t", **options):
    rule = Quality(read_scores(path), **({"max_ifd": 1.0, "keep_top": None} | options), source="s")
    return [d and d.reason for d in (rule(example(i, task)) for i in range(n))]


def test_scores_of_one_and_more_are_dropped(tmp_path):
    path = score_file(tmp_path / "s.jsonl", [0.5, 0.999, 1.0, 1.7])
    assert reasons(path, 4) == [None, None, "ifd_too_high", "ifd_too_high"]
    assert reasons(path, 4, max_ifd=None) == [None] * 4


def test_the_hardest_of_what_remains_are_kept(tmp_path):
    path = score_file(tmp_path / "s.jsonl", [0.1, 0.2, 0.3, 0.4, 0.5, 1.5])
    # five are below 1; the hardest 40 % are two
    assert reasons(path, 6, keep_top=0.4) == ["ifd_low", "ifd_low", "ifd_low", None, None, "ifd_too_high"]
    assert reasons(path, 6, keep_top=0.41)[2] is None  # rounded up
    assert reasons(path, 6, keep_top=1.0) == [None] * 5 + ["ifd_too_high"]


def test_each_task_has_its_own_threshold(tmp_path):
    path = score_file(tmp_path / "s.jsonl", [0.1, 0.2])
    score_file(path, [0.8, 0.9], task="hard")
    assert reasons(path, 2, keep_top=0.5) == ["ifd_low", None]
    assert reasons(path, 2, "hard", keep_top=0.5) == ["ifd_low", None]


def test_a_task_of_one_keeps_it_and_ties_stay_together(tmp_path):
    assert reasons(score_file(tmp_path / "a.jsonl", [0.3]), 1, keep_top=0.1) == [None]
    assert reasons(score_file(tmp_path / "b.jsonl", [0.3, 0.3, 0.3, 0.1]), 4, keep_top=0.5) == [
        None,
        None,
        None,
        "ifd_low",
    ]


def test_what_has_no_loss_is_kept(tmp_path):
    path = score_file(tmp_path / "s.jsonl", [None, 0.5, 0.6])
    assert reasons(path, 3, keep_top=0.5) == [None, "ifd_low", None]


def test_details_say_what_was_measured(tmp_path):
    rule = Quality(
        read_scores(score_file(tmp_path / "s.jsonl", [0.1, 0.9, 1.25])), max_ifd=1.0, keep_top=0.5, source="s"
    )
    assert rule(example(2)).detail == "IFD 1.250 >= 1.0: the prompt does not help the answer"
    assert rule(example(0)).detail == "IFD 0.100 < 0.900, of the task's hardest 50% the lowest"


def test_missing_scores_name_the_command(tmp_path):
    with pytest.raises(UserError, match="sft-dist score"):
        read_scores(tmp_path / "none.jsonl")
    path = score_file(tmp_path / "s.jsonl", [0.1])
    with pytest.raises(UserError, match=r"has no score.*sft-dist score"):
        reasons(path, 2)
    path.write_text(path.read_text() + '{"id": 5}\n')
    with pytest.raises(UserError, match=r"s\.jsonl:2 is no score"):
        read_scores(path)
