"""Kills a stage before each of its renames, then runs it again: `python kill_renames.py FOLDER OUT.json`.

A child dies right before its n-th os.rename, os.replace or os.link, for every n that there is. What the same command then makes of what was
left must be what an undisturbed one makes, byte for byte.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import victims

from sft_dist.checkpoint.background import Saver
from sft_dist.cli import main
from sft_dist.config.load import load_config, load_run_config
from sft_dist.config.train import CheckpointConfig
from sft_dist.core.files import checksum
from sft_dist.core.records import Position
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.evaluate import command
from sft_dist.pipelines.train.run_folder import set_up

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("client", "construct", "checkpoint")]
from plain_engine import PlainEngine  # noqa: E402
from scripted_server import ScriptedServer  # noqa: E402
from scripted_teacher import teach  # noqa: E402

DIED = 86
CONFIG = """
name: run
run_root: {place}/runs
data:
  dir: {place}/data
  processes: 1
  shard_examples: 100
  sources: {{demo: {{kind: demo, examples_per_task: 6}}}}
  holdout: {{number: 2, examples_per_task: 2}}
render: {{template: chatml, train_vocab_size: 400}}
model: {{shape: {{hidden_size: 16, intermediate_size: 32, layers: 1, heads: 2, max_position_embeddings: 256}}, dtype: float32}}
pack: {{seq_len: 128}}
train: {{tokens_per_step: 1024}}
eval: {{base: false, probes: [], max_new_tokens: 2, max_examples_per_task: 1}}
launch: {{nproc: 1}}
"""
SEEDS = """
construct:
  teacher: {{model: m, url: "{url}", backoff_s: 0.01, timeout_s: 10, concurrency: 1}}
  sets: {{answered: {{method: answer, seeds: [demo], count: 6}}}}
"""


def tree(folder: Path) -> dict[str, str]:
    """Content of every file that is no lock, log or leftover; the order of lines of records does not count."""
    skipped = ("lock", "log.txt", "report.html")  # the page says when it was written
    return {
        str(p.relative_to(folder)): "".join(sorted(p.read_text().splitlines()))
        if p.suffix == ".jsonl"
        else checksum(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in skipped and not p.name.startswith(".")
    }


def dying_at(n: int, work: Callable[[], int]) -> int:
    """Run something; die right before its n-th rename."""
    left = n

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os._exit(DIED)
            return real(*arguments, **options)

        return call

    os.rename, os.replace, os.link = (counted(f) for f in (os.rename, os.replace, os.link))
    return work()


def kill_everywhere(place: Path, whole: Path, work: Callable[[], int]) -> dict[str, Any]:
    """Kill a stage before each rename; return how often, and what differed afterwards."""

    def start(n: int) -> int:
        (code,) = victims.codes([victims.start(partial(dying_at, n, work), place.parent / "log.txt")])
        return code

    def begin() -> None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place, symlinks=True)

    begin()
    assert start(0) == 0, "undisturbed, it fails"
    reference, n, unequal, failed = tree(place), 0, [], []
    while True:
        n += 1
        begin()
        code = start(n)
        if code == 0:
            break
        if code != DIED or start(0):
            failed.append(n)
            continue
        found = tree(place)
        unequal += [f"{n}: {name}" for name in {*found, *reference} if found.get(name) != reference.get(name)]
    return {"kills": n - 1, "unequal": sorted(unequal), "failed": failed}


def checkpoint(run: RunFolder) -> None:
    """Write the checkpoint of a model of the run's shape that was never trained."""
    from transformers import AutoModelForCausalLM

    from sft_dist.pipelines.train.engine import _initial_model
    from sft_dist.render.tokenizer import TextTokenizer

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{run.path.parent}/.group", rank=0, world_size=1
    )
    config = load_run_config(run.path)
    tokenizer = TextTokenizer.load(run.read_stores()["tokenizer"])
    model = AutoModelForCausalLM.from_pretrained(_initial_model(config, run, tokenizer))
    engine = PlainEngine()
    engine.module.hf = model
    engine.optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()
    saver = Saver(
        engine,
        run.checkpoints,
        facts={"plan_hash": 1, "base": None},
        keep=CheckpointConfig(),
        report=lambda _: None,
    )
    saver.begin(Position(step=2, epoch=0, epoch_step=2), {"losses": []})
    saver.finish()
    torch.distributed.destroy_process_group()


def evaluate(run: RunFolder) -> int:
    """Evaluate with the rank in this process."""
    command.run_ranks = lambda *_, **__: command.run_rank(run)
    return main(["evaluate", str(run.path)])


def run(work: Path) -> dict[str, Any]:
    """Take every stage."""
    place, stages = work / "place", {}
    place.mkdir(parents=True)
    file = work / "my.yaml"
    with ScriptedServer(answer=teach) as server:
        file.write_text(CONFIG.format(place=place) + SEEDS.format(url=server.url))
        folder = RunFolder(place / "runs" / "run")

        def then(name: str, stage: Callable[[], int]) -> None:
            whole = work / f"before-{name}"
            shutil.copytree(place, whole, symlinks=True)
            stages[name] = kill_everywhere(place, whole, stage)

        then("prepare", partial(main, ["prepare", str(file)]))
        then("construct", partial(main, ["construct", str(file)]))
        config = load_config([], file)
        set_up(config, prepare(config), folder)
        plan = {
            "world_size": 1,
            "steps": 2,
            "examples": 1,
            "tokens": 1,
            "target_tokens": 1,
            "tasks": {},
            "sources": {},
        }
        (folder.path / "plan.json").write_text(json.dumps(plan))
        checkpoint(folder)
        folder.set_status("finished", step=2, steps=2)
        then("export", partial(main, ["export", str(folder.path)]))
        then("evaluate", partial(evaluate, folder))
    return stages


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]))))
