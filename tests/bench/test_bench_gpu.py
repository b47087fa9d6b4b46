"""The GPU benchmark in its reduced form: every part runs to its end on a CPU, too."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench" / "gpu.py"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("ending", "failure"), [("raise ValueError('odd')", "odd"), ("time.sleep(60)", "not done"), ("", "")]
)
def test_what_a_part_found_before_it_failed_is_kept(bench, monkeypatch, tmp_path, ending, failure):
    script = tmp_path / "part.py"
    script.write_text(
        f"import time\nprint('[INFO] of a library')\nprint({bench.FOUND!r} + '{{\"a\": 1}}', flush=True)\n{ending}\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    found, why = bench.part(tmp_path, True, ("speed",), seconds=2)
    assert found == [{"a": 1}]
    assert failure in why
    assert bool(why) == bool(failure)


@pytest.mark.parametrize("n", [4, 28])
def test_rows_of_usual_lengths_are_no_selection_of_the_longest(bench, n):
    rows = bench.make_rows(8192, True, n, 1000)
    lengths = np.concatenate([np.diff(b.cu_seqlens) for b in rows]).astype(float)
    expected = 149 * np.exp(1.5 * 0.733**2)  # sum of squares over sum, of all documents: what attention costs
    assert 0.85 < (lengths**2).sum() / lengths.sum() / expected < 1.15
    assert all(len(b.input_ids) > 0.99 * 8192 for b in rows)


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
