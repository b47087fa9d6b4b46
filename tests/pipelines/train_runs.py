"""Train run folders one after the other in one process group: `python train_runs.py RUN ...`, started by torchrun (test_families.py)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from sft_dist.config.load import load_run_config
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.train.worker import train
from sft_dist.train import zero
from sft_dist.train.guard import Heartbeat

if __name__ == "__main__":
    torch.set_num_threads(1)
    zero.init_distributed(timeout_minutes=2)
    for path in sys.argv[1:]:
        folder = RunFolder(Path(path))
        with Heartbeat(folder) as heartbeat:
            state = train(load_run_config(folder.path), folder, heartbeat)
        assert state == "finished", f"{path}: {state}"
    dist.destroy_process_group()
