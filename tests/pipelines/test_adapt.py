"""experiment=adapt at reduced size: a real pretrained model, a few steps on Natural Instructions, base beside tuned on every set.

What is held: the losses of seen and held-out tasks fall, with an interval over families; the scores of both models are there over as many
families as docs/results.md says. Few steps on few examples say nothing of the size of a gain, so none is held here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sft_dist.core.files import read_json, read_jsonl
from sft_dist.core.process import resource
from sft_dist.evals.statistics import contrast

REDUCED = (
    "data.holdout.examples_per_task=1", "data.holdout.max_eval_per_task=1", "train.max_steps=6", "train.tokens_per_step=2048",
    "train.evals_per_epoch=null", "eval.max_new_tokens=8",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.takes(900)
def test_a_pretrained_model_adapts_to_tasks_that_it_was_not_trained_on(
    tmp_path: Path, shared_data: Path
) -> None:
    if not (shared_data / "natural-instructions" / "tasks").is_dir():
        pytest.skip("the collection has no Natural Instructions")
    model, run = tmp_path / "model", tmp_path / "runs" / "adapt"
    made = subprocess.run(
        [sys.executable, resource("bench") / "pretrained.py", model],
        capture_output=True,
        text=True,
        check=False,
    )
    if "cannot be had" in made.stderr:
        pytest.skip(made.stderr.strip().splitlines()[-1])
    assert made.returncode == 0, made.stderr
    places = (
        f"data.root={shared_data}",
        f"data.dir={tmp_path / 'data'}",
        f"run_root={tmp_path / 'runs'}",
        f"model.path={model}",
    )
    done = subprocess.run(
        [sys.executable, "-m", "sft_dist.cli", "run", "experiment=adapt", *places, *REDUCED],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr

    declared = read_json(run / "config.json")["data"]["holdout"]["families"]
    losses = {
        line["step"]: line["task_loss"]
        for line in read_jsonl(run / "metrics.jsonl")
        if line["kind"] == "eval"
    }
    before, after = losses[0], losses[6]
    sets = read_json(run / "eval" / "scores.json")["sets"]
    assert {name: s["macro"]["tasks"] for name, s in sets.items()} == {
        "seen": 43,
        "heldout_near": 36,
        "heldout_far": 24,
    }
    for name, found in sets.items():
        assert found["macro"]["units"] >= 10, name
        assert set(found["macro"]["score"]) >= {"model", "base", "nearest"}, name
        tasks = sorted(found["tasks"])
        units = [
            next((f for f, ps in declared.items() if any(fnmatchcase(t, p) for p in ps)), t) for t in tasks
        ]
        fall = contrast([[after[t]] for t in tasks], [[before[t]] for t in tasks], families=units)
        assert fall.units == found["macro"]["units"]
        assert fall.high < 0, (name, fall)
    check = json.loads((run / "export" / "export_check.json").read_text())
    assert check["template"] is True
