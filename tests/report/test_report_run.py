from __future__ import annotations

import html.parser
import io
import json
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from run_fixture import STEPS, TASKS, write_run

from sft_dist.config.changes import flatten
from sft_dist.core.errors import UserError
from sft_dist.core.heartbeat import write_beat
from sft_dist.report.formatting import clip, duration, esc, percent, points, short
from sft_dist.report.run import summary_table, write_report
from sft_dist.report.run_files import MADE_BY, number, read_run_files, read_training
from sft_dist.report.run_summary import (
    best_baseline,
    edge_mean,
    interval,
    score,
    smooth,
    status_of,
    summarize_run,
    task_mix,
    thin,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    path = write_run(tmp_path_factory.mktemp("runs") / "demo")
    write_report(path)
    return path


def copy(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


VOID = {"meta", "br", "wbr"}


class Checker(html.parser.HTMLParser):
    """Every element closed in order; collects ids, links and visible text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self._note(attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._note(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in {"script", "style"}:
            self.text.append(data)

    def _note(self, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            if key in {"href", "src", "xlink:href", "action", "data", "srcset"}:
                self.links.append(value)


def check(path: Path) -> str:
    """Assert that a page is well-formed and needs nothing from outside; return its text."""
    page = path.read_text(encoding="utf-8")
    ET.fromstring(page.removeprefix("<!doctype html>\n"))
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert all(link.startswith("#") and link[1:] in checker.ids for link in checker.links)
    assert not re.search(r"url\((?!#)|@import|https?://", page)
    assert "default-src 'none'" in page
    return " ".join(" ".join(checker.text).split())


def test_a_finished_run(finished):
    text = check(finished / "report.html")
    scores = json.loads((finished / "eval" / "scores.json").read_text())
    for name in ("seen", "heldout_near", "heldout_far"):
        found = scores["sets"][name]
        model = found["macro"]["score"]["model"]
        assert f"{percent(model['mean'])} %" in text
        assert f"[{percent(model['low'])}, {percent(model['high'])}]" in text
        base = found["contrasts"]["base"]
        assert f"{points(base['difference'])} [{points(base['low'])}, {points(base['high'])}]" in text
        assert f"{base['win']} / {base['tie']} / {base['loss']}" in text
    for section in (
        "Results",
        "Task by task",
        "Training",
        "Sample answers",
        "Data",
        "Events",
        "Config and environment",
    ):
        assert section in text
    for words in (
        "What was learnt",
        "Instruction or memory",
        "Too few tasks for a general claim",
        "on 2 ranks (x86_64 CPU, 2 cores)",
        "eval_input 214",
        "resumed",
        "skipped_step",
        "optim.lr 0.003",
        "versions.torch",
        "opposite rare",
        "2 of 14 tasks are under-represented",
        "examples 91c0…, 7ad2…",
    ):
        assert words in text
    assert "missing" not in text
    assert "writes it" not in text
    page = (finished / "report.html").read_text()
    # loss three times (wide, narrow, tail), rate, norm, throughput, step time, data wait, memory, fill, imbalance; ranks under the base
    assert page.count('<svg class="chart hover"') == 12
    assert page.count('data-title="held-out, far"') == 3
    assert page.count('<svg class="spark"') == 3 * len(TASKS)  # in the table; of training; of the evaluations
    assert "prefers-color-scheme: dark" in page


def test_the_page_is_small_whatever_the_length_of_the_run(tmp_path):
    path = write_run(tmp_path / "run", evaluated=False)
    lines = (path / "metrics.jsonl").read_text().splitlines()
    with (path / "metrics.jsonl").open("w") as f:
        for i in range(3_000):
            f.write(json.dumps({**json.loads(lines[i % 600]), "step": i + 1}) + "\n")
    assert write_report(path).stat().st_size < 400_000


def test_nothing_but_a_status(tmp_path):
    (tmp_path / "status.json").write_text("{}")
    text = check(write_report(tmp_path))
    assert "not started" in text
    assert "No step of training and no evaluation is recorded" in text
    for name, command in MADE_BY.items():
        assert f"{name} is missing. {command}" in text


@pytest.mark.parametrize("name", sorted(MADE_BY))
def test_every_file_may_be_absent_alone(finished, tmp_path, name):
    run = copy(finished, tmp_path)
    (run / name).unlink()
    text = check(write_report(run))
    assert f"{name} is missing. {MADE_BY[name]}" in text
    assert text.count("is missing.") == 1


def test_a_crashed_run_with_torn_files(tmp_path):
    path = write_run(tmp_path / "run", steps=70, evaluated=False)
    with (path / "metrics.jsonl").open("a") as f:
        # A crash in the middle of a line, inside a character; the resumed run appended to it and went on.
        f.buffer.write('{"kind": "train", "step": 71, "task_loss": {"ä'.encode()[:-1])
        f.buffer.write(
            b'{"kind": "train", "step": 70, "loss": 9.75}\n{"kind": "train", "step": 71, "loss": 9.5}\n'
        )
    (path / "plan.json").write_text('{"steps": 64')
    text = check(write_report(path))
    assert "fatal rank 1 ended with signal 9" in text
    assert "metrics.jsonl is read except for 1 torn line" in text
    assert "plan.json is unreadable" in text
    assert "eval/scores.json is missing. sft-dist evaluate" in text
    assert read_run_files(path).training["loss"][-1] == 9.5


def test_a_run_that_stands_still_is_called_silent(finished, tmp_path):
    run = copy(finished, tmp_path)
    (run / "status.json").write_text('{"state": "running", "step": 3}')
    write_beat(run, moved=3, silent_s=1.0)
    assert status_of(read_run_files(run)) == ("running", "")
    write_beat(run, moved=3, silent_s=7200.0)
    assert status_of(read_run_files(run)) == (
        "silent",
        "recorded as running, but without a sign of life for 2 h 0 min",
    )


def test_hostile_text_stays_text(finished, tmp_path):
    run = copy(finished, tmp_path)
    nasty = '</script><script>alert(1)</script> & "quotes" \x00\x1b[31m \ud800 https://example.org <img src="http://x/y">'
    line = {
        "set": "seen",
        "task": "<b>t_1</b>",
        "id": "1",
        "prompt": nasty,
        "references": [nasty, "b"],
        "answers": {"model": ""},
        "metric": "exact_match",
        "scores": {"model": {"exact_match": 0.0}},
        "stopped": False,
    }
    (run / "eval" / "generations.jsonl").write_text(json.dumps(line) + "\n")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "name": nasty}))
    page = write_report(run).read_text(encoding="utf-8")
    ET.fromstring(page.removeprefix("<!doctype html>\n"))
    assert page.count("<script>") == 1
    assert "<img" not in page
    assert "cut at the token limit" in page


def test_no_such_folder():
    with pytest.raises(UserError, match="is not a folder"):
        write_report(Path("does/not/exist"))


def test_repeated_steps_count_once_and_nothing_infinite_passes():
    t = read_training(
        [
            {"kind": "train", "step": 1, "loss": 3.0, "task_loss": {"a": 3.0}},
            {"kind": "train", "step": 2, "loss": 2.0},
            {"kind": "eval", "step": 2, "loss": 2.5, "task_loss": {"a": 2.5, "b": None}},
            {"kind": "train", "step": 2, "loss": math.nan, "mfu": None},
            {"kind": "train", "step": 3, "loss": 1.0, "task_loss": {"a": 1.0, "b": math.inf}},
        ]
    )
    np.testing.assert_equal(t["loss"], [3.0, np.nan, 1.0])
    np.testing.assert_equal(t.task_loss["a"], ([1, 3], [3.0, 1.0]))
    assert list(t.task_loss) == ["a"]
    assert {task: ys.tolist() for task, (_, ys) in t.eval_task_loss.items()} == {"a": [2.5]}
    assert t.evals[0].tolist() == [2.0]


def test_headline_figures(finished):
    run = read_run_files(finished)
    f = summarize_run(run)
    lines = [json.loads(x) for x in (finished / "metrics.jsonl").read_text().splitlines()]
    steps = [x for x in lines if x["kind"] == "train"]
    assert (f.steps, f.skipped, f.planned_steps) == (STEPS, 1, STEPS)
    losses = [x["loss"] for x in steps if x["loss"] is not None]
    assert f.final_loss == pytest.approx(np.mean(losses[-32:]))
    assert f.first_loss == pytest.approx(np.mean(losses[:32]))
    assert f.tokens == sum(x["tokens"] for x in steps)
    assert f.fill == pytest.approx(f.tokens / sum(x["tokens"] / x["fill"] for x in steps))
    assert math.isnan(f.mfu)
    (finished.parent / "status.json").write_text("{}")
    assert math.isnan(summarize_run(read_run_files(finished.parent)).final_loss)


def test_the_best_baseline_comes_nearest_to_the_model():
    contrasts = {
        "base": {"difference": 0.1},
        "nearest": {"difference": 0.4},
        "format_guess": {"difference": 0.2},
    }
    assert best_baseline(contrasts) == "format_guess"
    assert best_baseline({"base": {"difference": 0.1}}) is None
    assert score({"score": {"model": 0.5}}) == score({"score": {"model": {"mean": 0.5}}}) == 0.5
    assert math.isnan(score({}))


def test_mixture_marks_what_is_under_represented():
    plan = {
        "tasks": {
            "big": {"examples": 100, "drawn_examples": 50, "target_tokens": 900, "drawn_target_tokens": 450},
            "mid": {"examples": 100, "drawn_examples": 100, "target_tokens": 80, "drawn_target_tokens": 80},
            "rare": {"examples": 2, "drawn_examples": 10, "target_tokens": 20, "drawn_target_tokens": 20},
        }
    }
    big, mid, rare = task_mix(plan)
    assert [t.name for t in (big, mid, rare)] == ["big", "mid", "rare"]
    assert (big.share_before, round(big.share_after, 4)) == (0.9, round(450 / 550, 4))
    assert [t.rare for t in (big, mid, rare)] == [
        False,
        False,
        True,
    ]  # a quarter of a third is 0.083; 20/550 is less
    assert rare.epochs == 5.0
    del plan["tasks"]["mid"]["target_tokens"]  # not known of all tasks: both shares count examples then
    assert [round(t.share_before, 2) for t in sorted(task_mix(plan), key=lambda t: t.name)] == [
        0.5,
        0.5,
        0.01,
    ]
    assert task_mix({}) == []


def test_curves_are_smoothed_and_thinned_without_losing_the_mean():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    assert smooth(values, 3).tolist() == [1.5, 1.5, 3.0, 4.5, 4.5]
    assert smooth(values, 1) is values
    x, y = thin(np.arange(5.0), values, 2)
    assert (x.tolist(), y.tolist()) == ([0.5, 3.5], [1.5, 4.5])
    assert thin(np.arange(2.0), np.array([1.0, 3.0]), 2)[1].tolist() == [1.0, 3.0]
    assert edge_mean(np.arange(100.0), last=True) == 97.0
    assert math.isnan(edge_mean(np.array([]), last=True))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (short(1_234_567), "1.23 M"), (short(999.6), "1 k"), (short(0.0123), "0.0123"), (short(math.nan), "–"),
        (duration(3.2), "3.2 s"), (duration(312), "5 min 12 s"), (duration(3725), "1 h 2 min"), (duration(200_000), "2 d 7 h"),
        (percent(0.8317), "83.2"), (points(-0.214), "−21.4"), (points(0.5), "+50.0"),
        (clip("abcdefghij", 6), "abcd […] ij"), (clip("abc", 6), "abc"), (esc("<a&'\x00"), "&lt;a&amp;&#x27;\ufffd"),
        (number("3"), pytest.approx(math.nan, nan_ok=True)), (flatten({"a": {"b": 1, "c": {}}, "d": [2]}), {"a.b": 1, "a.c": {}, "d": [2]}),
    ],
)  # fmt: skip
def test_how_things_are_written(shown, expected):
    assert shown == expected


def printed(table) -> str:
    out = io.StringIO()
    Console(width=260, file=out).print(table)
    return out.getvalue()


def test_summary_table(finished, tmp_path):
    text = printed(summary_table(finished))
    found = json.loads((finished / "eval" / "scores.json").read_text())["sets"]["seen"]
    row = next(line for line in text.splitlines() if "Trained tasks" in line)
    mean, low, high = interval(found["macro"])
    assert f"{percent(mean)} [{percent(low)}, {percent(high)}]" in row
    difference = found["contrasts"]["base"]
    assert (
        f"{points(difference['difference'])} [{points(difference['low'])}, {points(difference['high'])}]"
        in row
    )
    assert "too few tasks" in next(line for line in text.splitlines() if "far" in line)
    assert "640 steps" in text
    (tmp_path / "status.json").write_text("{}")
    empty = printed(summary_table(tmp_path))
    assert "sft-dist evaluate" in empty


def test_reports_never_reach_torch():
    code = "import sys, sft_dist.report.run, sft_dist.report.compare; print(sorted({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
