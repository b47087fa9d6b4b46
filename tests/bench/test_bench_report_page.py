"""The page and the metrics of a run of 800 tasks and 3,000 steps stay small; bench/report_page.py says how long the page takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "report_page.py"


@pytest.mark.slow
def test_a_large_run_has_a_small_page() -> None:
    done = subprocess.run([sys.executable, str(BENCH)], check=True, capture_output=True, text=True)
    took = json.loads(done.stdout[done.stdout.index("{") :])
    assert took["metrics_bytes"] < 20_000_000, took
    assert took["page_bytes"] < 1_000_000, took
