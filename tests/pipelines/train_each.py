"""Train run folders one after the other in this process, and write why one failed into it: `python train_each.py RUN ...` (test_every_family.py)."""

from __future__ import annotations

import gc
import sys
import traceback
from pathlib import Path

import torch

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
        try:
            with Heartbeat(folder) as heartbeat:
                train(load_run_config(folder.path), folder, heartbeat)
        except Exception:  # noqa: BLE001  the test says which
            (folder.path / "failed.txt").write_text(traceback.format_exc())
        gc.collect()
