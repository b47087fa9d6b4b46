"""The GPU benchmark in its reduced form: every part runs to its end on a CPU, too."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.mark.slow
def test_every_part_of_the_reduced_form_runs_to_its_end(tmp_path):
    out = tmp_path / "gpu.json"
    subprocess.run(
        [sys.executable, str(BENCH), "--reduced", "--minutes", "9", "--out", str(out)],
        check=True,
        cwd=tmp_path,
    )
    result = json.loads(out.read_text())
    assert result["failed"] == {}
    assert result["left_out"] == []
    assert len(result["speed"]) == 8  # 2 row lengths x 2 mixes x with and without recomputation
    assert all(case["tokens_per_s"] > 0 and case["fill"] > 0.99 for case in result["speed"])
    backends = result["attention"]["backends"]
    errors = [e for case in backends["sdpa_per_doc"]["relative_errors"] for e in case]
    assert max(errors) < 1e-5
    assert max(result["loss"]["ours"]["relative_errors"]) < 1e-5
    assert result["resume"]["largest_difference"] < 1e-6
    assert result["resume"]["last_loss"] < result["resume"]["first_loss"]
