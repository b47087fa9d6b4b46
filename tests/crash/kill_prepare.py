"""Kills real preparations at random moments: `python kill_prepare.py FOLDER OUT.json KILLS`."""

from __future__ import annotations

import json
import random
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import victims

from sft_dist.cli import main
from sft_dist.core.errors import UserError
from sft_dist.core.files import checksum
from sft_dist.shards import Store

CONFIG = """
name: crash
data:
  dir: {data}
  processes: 2
  shard_examples: 200
  sources: {{demo: {{kind: demo, examples_per_task: 160}}}}
  holdout: {{number: 2, examples_per_task: 5}}
render: {{template: chatml, train_vocab_size: 1024}}
model: {{shape: {{hidden_size: 32, intermediate_size: 64, layers: 1, heads: 2}}, dtype: float32}}
"""


def tree(folder: Path) -> dict[str, str]:
    """Checksum of every file of a data folder."""
    return {
        str(p.relative_to(folder)): checksum(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def finished(data: Path) -> dict[str, int]:
    """The shards that have their completion record, with the inode of the file: a shard made again has another."""
    return {
        str(r): r.with_suffix(".arrow").stat().st_ino
        for r in data.glob("stores/*/shard-*.json")
        if r.with_suffix(".arrow").exists()
    }


def opens_half_built(data: Path) -> str:
    """What opens as whole and is not."""
    for folder in data.glob("stores/*"):
        try:
            problems = Store.open(folder).verify()
        except UserError:
            continue
        if problems:
            return problems[0]
    return ""


def prepare(work: Path, name: str) -> int:
    """Start one preparation."""
    config = work / f"{name}.yaml"
    config.write_text(CONFIG.format(data=work / name))
    return victims.start(
        partial(main, ["prepare", str(config)]), work / "log.txt", TOKENIZERS_PARALLELISM="false"
    )


def run(work: Path, kills: int) -> dict[str, Any]:
    """Prepare undisturbed, then kill until it was done `kills` times."""
    work.mkdir(parents=True)
    whole_s = victims.finish([prepare(work, "reference")])
    reference = tree(work / "reference")
    data, rng = work / "killed", random.Random(20)
    killed, again, halves, unequal, left = 0, [], [], [], []
    safe: dict[str, int] = {}
    while True:
        last = killed >= kills
        died = victims.end([prepare(work, "killed")], 300.0 if last else rng.uniform(0.0, whole_s))
        now = finished(data)
        again += [name for name, inode in safe.items() if now.get(name) != inode]
        safe = now
        if half := opens_half_built(data):
            halves.append(half)
        killed += died
        if not died:
            found = tree(data)
            unequal += [n for n in {*found, *reference} if found.get(n) != reference.get(n)]
            left += [str(p) for p in data.glob("stores/**/.*")]
            if last:
                break
            shutil.rmtree(data)
            safe = {}
    return {
        "killed": killed,
        "whole_s": whole_s,
        "shards": len(finished(work / "reference")),
        "made_again": again,
        "half_built": halves,
        "unequal": sorted(set(unequal)),
        "left": sorted(set(left)),
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]), int(sys.argv[3]))))
