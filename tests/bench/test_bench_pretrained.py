"""bench/pretrained.py makes a pretrained model without a hub: whole, with the tokenizer that it had, and it answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.core.process import resource


@pytest.mark.slow
def test_the_weights_of_a_package_become_a_model_that_answers(tmp_path: Path) -> None:
    tool = resource("bench") / "pretrained.py"
    done = subprocess.run(
        [sys.executable, tool, tmp_path / "model"], capture_output=True, text=True, check=False
    )
    if "cannot be had" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["parameters"] == 134_515_008
    assert said["digits"] == ["2", "0", "2", "4"]
    assert said["answer"] == "The capital of France is Paris.<|im_end|>"
