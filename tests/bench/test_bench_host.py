"""What the host spends on a micro-step beside a bare loop: a bound on the ratio, in CPU time, so that a busy machine moves both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "host.py"


@pytest.mark.slow
def test_zero_3_costs_the_host_a_bounded_multiple_of_a_bare_loop() -> None:
    command = [sys.executable, str(BENCH), "--layers", "4", "--rounds", "4"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = json.loads(done.stdout[done.stdout.index("{") :])["ms"]
    assert took["stage 3"] < 4 * took["bare"], took
    assert took["stage 3, compiled"] < 4 * took["bare, compiled"], took
    assert took["stage 1"] < 2 * took["bare"], took
