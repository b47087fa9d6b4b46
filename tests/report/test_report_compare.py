from __future__ import annotations

import json

import pytest
from run_fixture import write_run
from test_report_run import check

from sft_dist.core.errors import UserError
from sft_dist.report.compare import compare, comparison
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
    macro = json.loads((runs[0] / "eval" / "scores.json").read_text())["seen"]["macro"]
    assert table[0]["exact match, trained tasks"] == f"{100 * macro['exact_match']:.1f}"
    assert table[2]["exact match, trained tasks"] == "–"
    assert "MFU %" not in found.heads  # no run knows it
    assert found.differences == {"optim.lr": ("0.001", "0.005", "0.003")}


def test_markdown(runs):
    lines = compare(runs).splitlines()
    assert lines[0].startswith("| run | state | steps | final loss |")
    assert lines[1].startswith("|---|---:|")
    assert lines[2].startswith("| low-rate | finished | 120 |")
    assert lines[-1] == "| optim.lr | 0.001 | 0.005 | 0.003 |"
    assert len({line.count("|") for line in lines[:5]}) == 1


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
