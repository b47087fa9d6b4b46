"""Two commits, the same initial weights and data: are their losses equal, or where do they part?

    python bench/compare_losses.py A B [--steps 20] [--set model.dtype=bfloat16 ...]
    python bench/compare_losses.py HEAD~1 .         # `.` is the working tree as it is

Each commit trains the demo by its own code in a process of its own: the tokenizer and the weights are made by the first and
given to the second, so that a change of how they are made is no difference. A minute on a CPU. Prints one JSON object: for each
step both losses and both gradient norms, the first step at which they differ, and the largest difference. Exit code 1 where
they differ: a change that is not meant to move a number is shown to move none, one that is, by how much (docs/numerics.md).
Options that only one of the two knows are given by --set-a and --set-b.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIXED = (
    "experiment=demo", "data.sources.demo.examples_per_task=60", "optim.schedule=constant", "launch.nproc=1", "train.export=false",
    "checkpoint.save_every_minutes=null", "wandb.mode=disabled",
)  # fmt: skip


def tree_of(commit, folder):
    """Check the commit out into a folder; `.` is the working tree."""
    if commit == ".":
        return ROOT
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def train(tree, work, name, options, model):
    """Train by the code of a tree; return [(loss, gradient norm)] and the run's folder."""
    start = [f"model.path={model}", "model.shape=null", "render.train_vocab_size=null"] if model else []
    words = [
        *FIXED,
        f"name={name}",
        f"run_root={work}",
        f"data.dir={work / ('data-' + name)}",
        *start,
        *options,
    ]
    env = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sft_dist", "train", *words], cwd=tree, env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name} did not train:\n{done.stderr[-3000:]}")
    lines = map(json.loads, (work / name / "metrics.jsonl").read_text().splitlines())
    return [(m["loss"], m["grad_norm"]) for m in lines if m["kind"] == "train"], work / name


def initial_model(run, folder):
    """Return a model folder of the run's initial weights and its tokenizer."""
    shutil.copytree(run / "init", folder)
    tokenizer = Path(json.loads((run / "stores.json").read_text())["tokenizer"])
    for file in [tokenizer] if tokenizer.is_file() else tokenizer.iterdir():
        if file.name != "config.json":
            shutil.copy(file, folder)
    return folder


def compare(ours, theirs):
    """Return the JSON object of two lists of (loss, norm)."""
    apart = [max(abs(x - y) for x, y in zip(a, b, strict=True)) for a, b in zip(ours, theirs, strict=True)]
    first = next((i + 1 for i, d in enumerate(apart) if d), None)
    return {
        "equal": first is None,
        "first_step_apart": first,
        "largest_difference": max(apart),
        "steps": [
            {"step": i + 1, "loss": [a[0], b[0]], "grad_norm": [a[1], b[1]]}
            for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
        ],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", nargs="+", default=[])
    parser.add_argument("--set-a", nargs="+", default=[])
    parser.add_argument("--set-b", nargs="+", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        both = [f"train.max_steps={options.steps}", *options.set]
        first = tree_of(options.a, work / "tree-a")
        _, run = train(first, work, "made", [*both[1:], "train.max_steps=1", *options.set_a], None)
        model = initial_model(run, work / "model")
        a, _ = train(first, work, "a", [*both, *options.set_a], model)
        b, _ = train(tree_of(options.b, work / "tree-b"), work, "b", [*both, *options.set_b], model)
    found = compare(a, b)
    print(json.dumps(found, indent=1))
    return 0 if found["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
