"""2,000 steps of a tiny model in one process, then three more: `python long_run.py FOLDER OUT.json`, by torchrun (test_long_run.py)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from sft_dist import api
from sft_dist.config import plugins
from sft_dist.config.load import load_run_config
from sft_dist.core.records import StepMetrics
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.train.run_folder import set_up
from sft_dist.pipelines.train.worker import train
from sft_dist.train import zero
from sft_dist.train.guard import Heartbeat

STEPS, MORE, EVERY = 2000, 3, 50


def settings(work: Path, steps: int) -> dict[str, Any]:
    """The config of a run with epochs, checkpoints and evaluations."""
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "layers": 1,
        "heads": 1,
        "max_position_embeddings": 128,
    }
    return {
        "run_root": str(work / "runs"),
        "data": {
            "dir": str(work / "data"),
            "processes": 1,
            "sources": {"demo": {"kind": "demo", "examples_per_task": 40}},
            "holdout": {"number": 2, "examples_per_task": 5},
            "validation": {"examples_per_task": 5},
        },
        "render": {"template": "chatml", "train_vocab_size": 300},
        "model": {"shape": shape, "dtype": "float32", "gradient_checkpointing": False},
        "pack": {"seq_len": 128},
        "train": {"epochs": 1000, "max_steps": steps, "tokens_per_step": 256, "export": False, "eval_tokens": 256, "eval_every_steps": 200},
        "checkpoint": {"save_every_steps": 100, "keep_last": 1},
    }  # fmt: skip


class Look:
    """Notes memory and open files every few steps."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_step(self, metrics: StepMetrics) -> None:
        """Note."""
        if metrics.step % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.seen.append(
                (metrics.step, pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path("/proc/self/fd").iterdir())))
            )


def part(work: Path, steps: int) -> None:
    """Train until so many steps."""
    config, folder = api.load(settings(work, steps)), RunFolder(work / "runs" / "long")
    set_up(config, prepare(config), folder)
    with Heartbeat(folder) as heartbeat:
        assert train(load_run_config(folder.path), folder, heartbeat) == "finished"


if __name__ == "__main__":
    torch.set_num_threads(1)
    zero.init_distributed(timeout_minutes=2)
    work, look, opened = Path(sys.argv[1]), Look(), []
    plugins.CALLBACKS["look"] = lambda _: look
    part(work, STEPS)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and str(arguments[0]).endswith("metrics.jsonl"):
            opened.append(str(arguments[1]))

    sys.addaudithook(hear)
    part(work, STEPS + MORE)
    Path(sys.argv[2]).write_text(json.dumps({"seen": look.seen, "opened": opened}))
