"""The embedded default, whole: what README.md promises. Minutes long."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.core.files import read_json

README = Path(__file__).resolve().parents[2] / "README.md"


HEADER = README.parent / "conf" / "experiment" / "demo.yaml"
SETS = ("seen", "heldout_near", "heldout_far")
ANSWERERS = ("model", "base", "nearest", "format_guess")


def promised() -> list[list[float]]:
    """The means of README.md: a row a set, a column an answerer."""
    table = README.read_text().split("<!-- demo-figures -->")[1].split("<!-- /demo-figures -->")[0]
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    return [[float(re.match("[0-9.]+", c)[0]) for c in row[2:6]] for row in rows]


def test_the_header_of_the_config_says_what_the_readme_says() -> None:
    head = HEADER.read_text().split("name: demo")[0]
    for row in promised():
        assert f"{row[0]:.1f} %" in head


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.takes(1500)
def test_the_demo_learns_what_the_readme_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sft_dist", "run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_json(tmp_path / "runs/demo/eval/scores.json")
    seen = found["sets"]["seen"]
    assert seen["macro"]["tasks"] >= 20
    assert seen["macro"]["score"]["model"]["low"] >= 0.50
    assert min(c["low"] for c in seen["contrasts"].values()) >= 0.20
    assert [found["sets"][s]["macro"]["tasks"] for s in SETS[1:]] == [12, 10]
    contrast = found["probes"]["contrast"]["model"]
    assert contrast["memory"]["low"] > contrast["compliance"]["high"]  # it plays back the trained sibling
    # floating-point sums differ between processors, and 700 steps amplify that: a few answers may flip
    for row, name in zip(promised(), SETS, strict=True):
        measured = [100 * found["sets"][name]["macro"]["score"][who]["mean"] for who in ANSWERERS]
        assert measured == pytest.approx(row, abs=5.0)
    assert (tmp_path / "runs/demo/report.html").is_file()
