"""One rank of a run whose model is a count of steps: real collectives, checkpoint, resume, stop, status, heartbeat.

Overrides: steps, step_s (seconds a step), and mishaps `raise_at`, `kill_at`, `hang_at` (a step; rank 1; once a run).
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


def write(path: Path, text: str) -> None:
    """Write a file that is whole or absent."""
    aside = path.with_suffix(".aside")
    aside.write_text(text)
    aside.replace(path)


def mishap(config: dict[str, str], step: int, run: Path) -> None:
    """Do what the config planted for this step, the first time that it is reached."""
    for name in ("raise_at", "kill_at", "hang_at"):
        done = run / f"{name}.done"
        if int(config.get(name, -1)) == step and not done.exists():
            done.touch()
            if name == "raise_at":
                raise RuntimeError(f"planted at step {step}")
            if name == "kill_at":
                os.kill(os.getpid(), signal.SIGKILL)
            while True:
                time.sleep(1)


@record
def main() -> None:
    """Count to `steps`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    run = parser.parse_args().run_dir
    config = json.loads((run / "config.json").read_text())
    rank = int(os.environ["RANK"])
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    print(f"rank {rank} on {os.uname().nodename} by {sys.executable}", flush=True)
    checkpoint = run / "checkpoint"
    step = int(checkpoint.read_text()) if checkpoint.exists() else 0

    def status(state: str) -> None:
        if rank == 0:
            write(run / "status.json", json.dumps({"state": state, "step": step}, indent=1) + "\n")

    status("running")
    dist.init_process_group("gloo")
    if config.get("fatal"):
        status("fatal")
        raise SystemExit(2)
    while step < int(config["steps"]):
        step += 1
        if rank == 1:
            mishap(config, step, run)
        stop = torch.tensor([float(bool(asked) or (rank == 0 and (run / "control" / "stop").exists())), 1.0])
        dist.all_reduce(stop)
        if rank == 0:
            with (run / "trace").open("a") as trace:
                trace.write(f"{step} {int(stop[1])}\n")
            write(run / "heartbeat", json.dumps({"moved": step}, indent=1) + "\n")
        if rank == 0 and (stop[0] or step % 10 == 0 or step == int(config["steps"])):
            write(checkpoint, str(step))
        status("stopped" if stop[0] else "running")
        if stop[0]:
            return
        time.sleep(float(config.get("step_s", 0.05)))
    status("finished")


if __name__ == "__main__":
    main()
