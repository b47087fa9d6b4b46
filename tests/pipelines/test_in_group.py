"""A script of the caller's, two ranks under torchrun: `api.train` and `api.evaluate` use its own process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sft_dist.core.files import read_json
from sft_dist.core.runfolder import RunFolder

SCRIPT = """
import os
import torch.distributed as dist
from sft_dist import api

dist.init_process_group("gloo")
config = api.load("my.yaml", ["train.max_steps=3"])
run = api.train(config, in_group=True)
scores = api.evaluate(run, in_group=True)
open(f"rank-{dist.get_rank()}", "w").write(str(sorted(scores["sets"])))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_the_callers_ranks_train_and_evaluate(project: Path) -> None:
    (project / "mine.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "mine.py"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (project / "rank-0").read_text() == (project / "rank-1").read_text() != "[]"
    folder = RunFolder(project / "runs" / "mine")
    assert folder.status()["step"] == 3
    assert read_json(folder.path / "eval" / "scores.json")["sets"]
