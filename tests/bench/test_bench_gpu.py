"""The GPU benchmark in its reduced form: every case runs to its end on a CPU, too, and a second call goes on."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sft_dist.pipelines.cluster.prove import verdict

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench():
    spec = importlib.util.spec_from_file_location("bench_gpu", BENCH / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("micro_steps", "micro_rows"), [(4, 1), (7, 4)])
def test_rows_of_usual_lengths_are_no_selection_of_the_longest(bench, micro_steps, micro_rows):
    batches = bench.make_rows(8192, True, micro_steps, micro_rows, 1000)
    lengths = np.concatenate([np.diff(b.cu_seqlens) for b in batches]).astype(float)
    expected = 149 * np.exp(1.5 * 0.733**2)  # sum of squares over sum, of all documents: what attention costs
    assert 0.85 < (lengths**2).sum() / lengths.sum() / expected < 1.15
    assert all(len(b.input_ids) > 0.99 * 8192 * micro_rows for b in batches)


def test_a_second_call_passes_over_what_is_done_and_not_over_what_failed(bench, tmp_path):
    out = tmp_path / "found.jsonl"
    for line in ({"case": "machine"}, {"case": "loss", "failed": "odd"}, {"left_out": ["resume"]}):
        bench.tell(line, out)
    with out.open("a") as file:
        file.write('{"case": "attention", "torn')
    assert bench.done_before(out) == {"machine"}


def test_most_valuable_first_and_nothing_twice(bench):
    names = list(bench.cases(False, Path("work")))
    assert names[:4] == ["machine", "attention", "loss", "state"]
    assert len(names) == len(set(names)) == 5 + len(bench.speed_cases(False)) + 1
    assert {case[-1] for case in bench.speed_cases(False)} == set(bench.VARIANTS)


def test_every_case_of_the_reduced_form_runs_to_its_end(tmp_path):
    out = tmp_path / "found.jsonl"
    command = [sys.executable, str(BENCH / "gpu.py"), "--reduced", "--out", str(out)]
    done = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True)
    *lines, last = [json.loads(line) for line in out.read_text().splitlines()]
    assert last == {"left_out": []}
    assert [verdict(line) for line in lines if verdict(line)] == []  # as `sft-dist doctor --prove` says it
    found = {line["case"]: line for line in lines}
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')] == lines
    speeds = [line for name, line in found.items() if name.startswith("tiny")]
    assert len(speeds) == 2
    assert all(s["tokens_per_s"] > 0 and s["fill"] > 0.99 and s["host_ms"] > 0 for s in speeds)
    errors = [e for case in found["attention"]["backends"]["sdpa_per_doc"]["relative_errors"] for e in case]
    assert max(errors) < 1e-5
    assert max(found["loss"]["ours"]["relative_errors"]) < 1e-5
    assert found["state"]["lfm2"]["state"].startswith("per_document (")
    assert found["state"]["lfm2"]["per_document_ms"] > 0
    resumed = found["resume"]
    assert resumed["losses"][-1] < resumed["losses"][0]
    assert max(v for k, v in resumed.items() if k.startswith(("loss_", "weights_"))) == 0.0
    assert found["checkpoint"]["bytes"] > 0
