"""Kills whole training runs at random moments: `python kill_training.py FOLDER OUT.json KILLS`."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401  here, once, and not in every child
import torch
import victims
from transformers import LlamaForCausalLM  # noqa: F401  the same

from sft_dist.cli import main
from sft_dist.core.files import read_json, read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.train import worker

RANKS, STEPS = 2, 24
CONFIG = """
name: crash
run_root: {work}/runs
data:
  dir: {work}/data
  processes: 1
  sources: {{demo: {{kind: demo, examples_per_task: 40}}}}
  holdout: {{number: 2, examples_per_task: 5}}
  validation: {{examples_per_task: 5}}
render: {{template: chatml, train_vocab_size: 512}}
model:
  shape: {{hidden_size: 32, intermediate_size: 64, layers: 2, heads: 2, max_position_embeddings: 128, tie_word_embeddings: false}}
  dtype: float32
  gradient_checkpointing: false
pack: {{seq_len: 128}}
optim: {{lr: 1.0e-3}}
train: {{max_steps: {steps}, tokens_per_step: 1024, micro_rows: 2, threads_per_rank: 1, export: false, eval_tokens: 256, on_spike: skip}}
checkpoint: {{save_every_steps: 2, keep_last: 2}}
launch: {{nproc: 2}}
"""


def warm() -> None:
    """Take what torch imports at an optimizer's first step."""
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()


def launch(work: Path, name: str, log: str = "log") -> list[int]:
    """Start the ranks of a run, each as launch/node.sh would have it."""
    folder = work / "runs" / name
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["LOCAL_WORLD_SIZE"] = str(RANKS)

    def one() -> int:
        torch.set_num_threads(1)
        sys.argv = ["rank", "--run-dir", str(folder)]
        return worker.main()

    return [
        victims.start(one, work / f"{log}-{r}.txt", RANK=str(r), LOCAL_RANK=str(r), **shared)
        for r in range(RANKS)
    ]


def set_up(work: Path, *names: str) -> Path:
    """Prepare the data and make run folders that are ready to start; return the folder that they are copies of."""
    work.mkdir(parents=True)
    config, frozen, log = work / "crash.yaml", work / "frozen", work / "log.txt"
    config.write_text(CONFIG.format(work=work, steps=STEPS))
    victims.finish([victims.start(partial(main, ["prepare", str(config)]), log)])
    victims.finish([victims.start(partial(main, ["write-run", str(config), "--run-dir", str(frozen)]), log)])
    for name in names:
        shutil.copytree(frozen, work / "runs" / name)
    warm()
    return frozen


def ended(folder: RunFolder) -> dict[str, Any]:
    """What must not depend on how often a run was killed: final state, loss of every step."""
    final = folder.checkpoints / f"step-{STEPS:08d}"
    losses = {m["step"]: m["loss"] for m in read_jsonl(folder.metrics) if m["kind"] == "train"}
    return {
        "files": {n: f["checksum"] for n, f in read_json(final / "index.json")["files"].items()},
        "losses": [losses.get(s) for s in range(1, STEPS + 1)],
        "state": folder.status()["state"],
    }


def run(work: Path, kills: int) -> dict[str, Any]:
    """Train undisturbed, then kill until it was done `kills` times."""
    frozen = set_up(work, "reference", "killed")
    whole_s = victims.finish(launch(work, "reference"))
    reference = ended(RunFolder(work / "runs" / "reference"))
    folder, rng = RunFolder(work / "runs" / "killed"), random.Random(10)
    killed, ends, resumed, bad = 0, [], 0, []
    while True:
        last = killed >= kills
        died = victims.end(launch(work, "killed"), 300.0 if last else rng.uniform(0.3, 1.0) * whole_s)
        killed += died
        if not died:
            ends.append(ended(folder))
            events = read_jsonl(folder.events)
            resumed += sum(e["kind"] == "resumed" for e in events)
            bad += [e for e in events if e["kind"] in ("bad_checkpoint", "save_failed")]
            if last:
                break
            shutil.rmtree(folder.path)
            shutil.copytree(frozen, folder.path)
    return {
        "killed": killed,
        "whole_s": whole_s,
        "reference": reference,
        "ends": ends,
        "resumed": resumed,
        "bad": bad,
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]), int(sys.argv[3]))))
