"""The novelty benchmark runs to its end, decides as rouge-score does, and is far faster at a small size already."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench" / "novelty.py"


def test_runs_and_holds_what_its_header_says():
    command = [sys.executable, str(BENCH), "--size", "2000", "--pairs", "500"]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert report["same_decisions"]
    assert report["ratio"] >= 20
    assert report["ratio_tokenised_before"] >= 20
    assert 0 < report["kept"] < report["asked"] == 2000
