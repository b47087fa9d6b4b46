from __future__ import annotations

import json
from statistics import mean

import pytest
from run_fixture import write_run
from test_report_run import check

from sft_dist.core.errors import UserError
from sft_dist.report.compare import compare, comparison
from sft_dist.report.formatting import percent, points
from sft_dist.report.run_files import read_run_files


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return [
        write_run(root / "a", name="low-rate", steps=120, planned=120, lr=1e-3),
        write_run(root / "b", name="high-rate", steps=120, planned=120, lr=5e-3, seed=1),
        write_run(root / "c", name="crashed", steps=40, planned=120, evaluated=False),
    ]


def test_figures_and_differing_settings(runs):
    found = comparison([read_run_files(r) for r in runs])
    table = [dict(zip(found.heads, row, strict=True)) for row in found.rows]
    assert [row["run"] for row in table] == ["low-rate", "high-rate", "crashed"]
    assert [row["state"] for row in table] == ["finished", "finished", "fatal"]
    model = json.loads((runs[0] / "eval" / "scores.json").read_text())["sets"]["seen"]["macro"]["score"][
        "model"
    ]
    head = "exact match, Trained tasks, unseen inputs"
    assert (
        table[0][head]
        == f"{percent(model['mean'])} [{percent(model['low'], 0)}, {percent(model['high'], 0)}]"
    )
    assert table[2][head] == "–"
    assert "MFU %" not in found.heads  # no run knows it
    assert found.differences == {"optim.lr": ("0.001", "0.005", "0.003")}


def test_differences_are_paired_on_shared_examples(tmp_path):
    """Recomputed from generations.jsonl by other means: a mean over tasks of differences on the same ids."""
    first = write_run(tmp_path / "a", name="a", steps=20, planned=20)
    second = write_run(tmp_path / "b", name="b", steps=20, planned=20)
    lines = [json.loads(x) for x in (second / "eval" / "generations.jsonl").read_text().splitlines()]
    for g in lines[::3]:
        g["scores"]["model"]["exact_match"] = 1.0 - g["scores"]["model"]["exact_match"]
    (second / "eval" / "generations.jsonl").write_text("".join(json.dumps(g) + "\n" for g in lines[5:]))
    found = comparison([read_run_files(first), read_run_files(second)])
    shown = dict(zip(found.heads, found.rows[1], strict=True))["less a, Trained tasks, unseen inputs"]
    before = {}
    for x in (first / "eval" / "generations.jsonl").read_text().splitlines():
        g = json.loads(x)
        before[g["id"]] = g["scores"]["model"]["exact_match"]
    by_task = {}
    for g in lines[5:]:
        if g["set"] == "seen":
            by_task.setdefault(g["task"], []).append(g["scores"]["model"]["exact_match"] - before[g["id"]])
    assert shown.startswith(points(mean(map(mean, by_task.values()))) + " [")
    assert any("only 415 examples are shared" in n for n in found.notes)


def test_tasks_of_one_family_are_one_unit(tmp_path):
    """As in the scores of each run: four tasks of two families leave two units, and a wider interval."""
    widths = {}
    for families in (None, ("x", "x", "y", "y")):
        runs = [write_run(tmp_path / f"{n}-{bool(families)}", name=n, steps=20, planned=20) for n in "ab"]
        lines = [json.loads(x) for x in (runs[1] / "eval" / "generations.jsonl").read_text().splitlines()]
        tasks = sorted({g["task"] for g in lines if g["set"] == "seen"})
        for g in lines:  # tasks of the first half get better, the others do not
            g["scores"]["model"]["exact_match"] = float(g["task"] in tasks[: len(tasks) // 2])
        (runs[1] / "eval" / "generations.jsonl").write_text("".join(json.dumps(g) + "\n" for g in lines))
        for run in runs:
            file = run / "eval" / "scores.json"
            scores = json.loads(file.read_text())
            for i, t in enumerate(tasks):
                if families:
                    scores["sets"]["seen"]["tasks"][t]["family"] = families[i * 4 // len(tasks)]
            scores.pop("checksum", None)
            file.write_text(json.dumps(scores))
        found = comparison([read_run_files(r) for r in runs])
        shown = dict(zip(found.heads, found.rows[1], strict=True))["less a, Trained tasks, unseen inputs"]
        low, high = shown.split("[")[1].split("]")[0].replace("\u2212", "-").split(", ")
        widths[bool(families)] = float(high) - float(low)
    assert widths[True] > widths[False]


def test_markdown(runs):
    lines = compare(runs).splitlines()
    assert lines[0].startswith("| run | state | steps | final loss |")
    assert lines[1].startswith("|---|---:|")
    assert lines[2].startswith("| low-rate | finished | 120 |")
    assert lines[-1] == "| optim.lr | 0.001 | 0.005 | 0.003 |"
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert any("too few for a general claim" in line for line in lines)


def test_page(runs, tmp_path):
    (tmp_path / "compare.html").write_text(compare(runs, "html"), encoding="utf-8")
    text = check(tmp_path / "compare.html")
    assert "3 runs" in text
    assert "optim.lr 0.001 0.005 0.003" in text


def test_runs_of_one_name_are_told_apart_by_path(runs):
    rows = comparison([read_run_files(runs[0]), read_run_files(runs[0])]).rows
    assert rows[0][0] == str(runs[0])
    assert "None: the configs are equal." in compare([runs[0], runs[0]], "html")


def test_one_run_is_no_comparison(runs):
    with pytest.raises(UserError, match="at least two"):
        compare(runs[:1])
