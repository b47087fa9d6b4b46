"""Two ranks reduce sums; the second is slow in every step, and then hangs: `slow_and_hung_rank.py RUN` (test_stragglers.py)."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from sft_dist.core.collectives import gather
from sft_dist.core.files import write_json
from sft_dist.core.runfolder import RunFolder
from sft_dist.train.environment import environment
from sft_dist.train.guard import Heartbeat
from sft_dist.train.metrics import Meter
from sft_dist.train.pace import Pace

SLOW_STEPS, SLOW_S, LIMIT_S = 40, 0.1, 3.0


def waste(seconds: float) -> None:
    """What the others wait for."""
    time.sleep(seconds)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank, folder = dist.get_rank(), RunFolder(Path(sys.argv[1]))
    hosts = gather(socket.gethostname())
    if rank == 0:
        write_json(folder.path / "env.json", environment(hosts))
    meter = Meter(["t"], torch.device("cpu"), (), (rank, 2))
    with Heartbeat(folder, LIMIT_S, Pace(window_s=0.5, lasting_s=0.5)) as heartbeat:
        for step in range(SLOW_STEPS):
            if rank == 1:
                waste(SLOW_S)
            sums = meter.reduce(heartbeat.pace.own())
            heartbeat.progress()
            found = heartbeat.slowest(sums.pace)
            if found and rank == 0:
                folder.event("straggler", step=step, **found)
        if rank == 1:
            waste(3 * LIMIT_S)
        meter.reduce()
        heartbeat.progress()
        time.sleep(LIMIT_S / 4)
    dist.destroy_process_group()
