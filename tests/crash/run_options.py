"""Runs with options whose effect shows in the run folder only: `python run_options.py FOLDER OUT.json`."""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import victims
from kill_training import CONFIG, STEPS, launch, warm

from sft_dist.cli import main
from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder

# a learning rate that rises beyond all measure, so that the validation loss does too and the best step is not the last
KEPT = (
    "optim.lr=1.0 optim.warmup_share=0.9 train.eval_every_steps=4 checkpoint.keep_last=1 checkpoint.keep_best=1 "
    "checkpoint.optimizer_keep_last=1 checkpoint.save_every_steps=null checkpoint.save_every_minutes=null"
)
# hardly any update: the losses differ by their batches alone, and about half of them lie above the median
SPIKE = "optim.lr=1e-9 train.on_spike=skip train.spike_deviations=1e-6 train.max_skipped_steps=24"
NONFINITE = "optim.lr=1e30 train.on_nonfinite=stop"


def run(work: Path) -> dict[str, Any]:
    """Prepare with a remote place, then train each variant."""
    work.mkdir(parents=True)
    config, log = work / "crash.yaml", work / "log.txt"
    config.write_text(CONFIG.format(work=work, steps=STEPS))
    bucket, disk = work / "bucket", work / "disk"
    os.environ["NODE_DISK"] = str(disk)
    places = [f"data.remote=file://{bucket}/stores", "launch.stage_dir=$NODE_DISK/stores"]

    def cli(*words: str) -> None:
        victims.finish([victims.start(partial(main, [words[0], str(config), *words[1:]]), log)])

    cli("prepare", *places)
    warm()
    runs = work / "runs"
    variants = {"kept": KEPT, "again": KEPT, "spike": SPIKE, "nonfinite": NONFINITE}
    for name, options in variants.items():
        remote = [f"checkpoint.remote=file://{bucket}/run"] if options is KEPT else []
        cli("write-run", *places, *remote, *options.split(), "--run-dir", str(runs / name))
    variants["unwritable"] = "checkpoint.remote=file:///dev/null/run"
    cli("write-run", *places, variants["unwritable"], "--run-dir", str(runs / "unwritable"))
    shutil.move(
        work / "data" / "stores", work / "data" / "stores-away"
    )  # ranks read the copy on their node's disk
    codes = {name: victims.codes(launch(work, name, log=name)) for name in variants}
    folders = {name: RunFolder(runs / name) for name in variants}
    files = {
        str(p.relative_to(work))
        for p in (*runs.glob("*/checkpoints/**/*"), *bucket.rglob("*"), *disk.rglob("*"))
    }
    return {
        "codes": codes,
        "status": {n: f.status() for n, f in folders.items()},
        "events": {n: read_jsonl(f.events) for n, f in folders.items()},
        "evals": {
            n: {str(m["step"]): m["loss"] for m in read_jsonl(f.metrics) if m["kind"] == "eval"}
            for n, f in folders.items()
        },
        "best": (folders["kept"].checkpoints / "BEST").read_text().strip(),
        "files": sorted(files),
    }


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]))))
