"""Kills one command just before a call that renames, links or removes a file, then runs it again: `python kill_renames.py FOLDER OUT.json COMMAND`.

At the last call of each kind: from one place in our code, on files whose names differ in numbers only (with SFT_EVERY_KILL=1 at every
call). COMMAND is the place in COMMANDS. Everything runs in children of one warm process, one rank.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"
sys.path.append(str(Path(__file__).resolve().parents[1] / "construct"))

import deepspeed  # noqa: F401  here, once, and not in every child
import torch
import victims
from kill_prepare import tree
from scripted_server import ScriptedServer
from scripted_teacher import teach
from test_construct_runs import outputs, write_config
from transformers import AutoModelForCausalLM  # noqa: F401  the same

from sft_dist.cli import main
from sft_dist.core.files import read_json, read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.evaluate import command as evaluation
from sft_dist.pipelines.train import worker

STEPS = 3
CONFIG = """
name: crash
run_root: {work}/runs
data:
  dir: {data}
  processes: 1
  shard_examples: 30
  sources: {{mine: {{kind: alpaca, path: {work}/mine.jsonl, task: "{{task}}"}}}}
  holdout: {{number: 1, examples_per_task: 1}}
render: {{template: chatml, train_vocab_size: 300}}
model:
  shape: {{hidden_size: 32, intermediate_size: 64, layers: 1, heads: 2, max_position_embeddings: 128}}
  dtype: float32
pack: {{seq_len: 128}}
train: {{max_steps: {steps}, tokens_per_step: 512, threads_per_rank: 1, eval_tokens: 256}}
checkpoint: {{save_every_steps: 1, keep_last: 1}}
eval: {{max_examples_per_task: 1, max_new_tokens: 4, probes: [], base: false}}
launch: {{nproc: 1}}
"""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that is killed.

    Attributes:
        before: Make the folder that it works in, from nothing.
        work: The command, in a child.
        result: What must be the same however often it was killed.
    """

    before: Callable[[Path], object]
    work: Callable[[Path], int]
    result: Callable[[Path], Any]


def _config(folder: Path) -> str:
    records = [
        {"instruction": "Say it twice.", "input": f"{w}{i}", "output": f"{w}{i} {w}{i}", "task": w}
        for w in ("a", "b", "c")
        for i in range(20)
    ]
    records.append({"instruction": "", "input": "", "output": "x", "task": "a"})  # no example: it is rejected
    (folder / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    file = folder / "crash.yaml"
    file.write_text(CONFIG.format(work=folder, data=folder / "data", steps=STEPS))
    return str(file)


def _sft(folder: Path, *words: str) -> int:
    return victims.codes([victims.start(partial(main, list(words)), folder / "log.txt")])[0]


def _rank(folder: Path) -> int:
    """Do what the one rank of the run does."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    sys.argv = ["rank", "--run-dir", str(folder / "runs" / "crash")]
    return worker.main()


def _ready_to_train(folder: Path) -> None:
    config = _config(folder)
    assert _sft(folder, "prepare", config) == 0
    assert _sft(folder, "write-run", config, "--run-dir", str(folder / "runs" / "crash")) == 0


def _trained(folder: Path) -> None:
    _ready_to_train(folder)
    assert victims.codes([victims.start(partial(_rank, folder), folder / "log.txt")]) == [0]


def _evaluate(folder: Path) -> int:
    def one_rank(run: RunFolder, module: str, **_: Any) -> int:
        sys.argv = [module, "--run-dir", str(run.path)]
        return evaluation.main()

    evaluation.run_ranks = one_rank
    return main(["evaluate", str(folder / "runs" / "crash")])


def _of_training(folder: Path) -> Any:
    run = RunFolder(folder / "runs" / "crash")
    index = read_json(run.checkpoints / f"step-{STEPS:08d}" / "index.json")
    losses = {m["step"]: m["loss"] for m in read_jsonl(run.metrics) if m["kind"] == "train"}
    export = {n: c for n, c in tree(run.export).items() if n.endswith((".safetensors", "tokenizer.json"))}
    return [{n: f["checksum"] for n, f in index["files"].items()}, losses, run.status()["state"], export]


def _of_evaluation(folder: Path) -> Any:
    scores = read_json(folder / "runs" / "crash" / "eval" / "scores.json")
    return [scores["sets"], sorted(p.name for p in (folder / "runs" / "crash" / "eval").iterdir())]


SERVER = ScriptedServer(teach)
COMMANDS = {
    "prepare": Command(
        before=_config,
        work=lambda folder: main(["prepare", str(folder / "crash.yaml")]),
        result=lambda folder: tree(folder / "data"),
    ),
    "construct": Command(
        before=lambda folder: write_config(
            folder, SERVER, "{answered: {method: answer, seeds: [seeds], count: 6}}"
        ),
        work=lambda folder: main(["construct", str(folder / "data.yaml")]),
        result=lambda folder: {
            n: d.decode() for n, d in outputs(folder / "data" / "construct" / "answered").items()
        },
    ),
    "train": Command(before=_ready_to_train, work=_rank, result=_of_training),
    "export": Command(
        before=_trained,
        work=lambda folder: main(["export", str(folder / "runs" / "crash")]),
        result=lambda folder: tree(folder / "runs" / "crash" / "export"),
    ),
    "evaluate": Command(before=_trained, work=_evaluate, result=_of_evaluation),
}


def run(work: Path, command: Command) -> dict[str, Any]:
    """Kill at each change in turn, run again, and compare with a run that nothing disturbed."""
    start, place = work / "start", work / "place"
    # all in one and the same folder: paths go into what is written
    place.mkdir(parents=True)
    command.before(place)
    shutil.copytree(place, start)

    def again(work: Callable[[], int]) -> int:
        return victims.codes([victims.start(work, place / "log.txt")])[0]

    def undisturbed() -> int:
        return again(partial(command.work, place))

    assert undisturbed() == 0  # it also fills caches of compiled code, by renames of their own
    reference = command.result(place)
    shutil.rmtree(place)
    shutil.copytree(start, place)
    assert again(partial(victims.note_changes, work / "kinds.json", partial(command.work, place))) == 0
    kinds = read_json(work / "kinds.json")
    last = {kind: at for at, kind in enumerate(kinds)}
    chosen = range(len(kinds)) if os.environ.get("SFT_EVERY_KILL") == "1" else sorted(last.values())
    alive, failed, unequal, left = [], [], [], []
    for change in chosen:
        shutil.rmtree(place)
        shutil.copytree(start, place)
        killed = again(partial(victims.die_at, change, partial(command.work, place))) < 0
        if not killed:
            alive.append(change)  # its threads made fewer changes this time
        if killed and undisturbed() != 0:
            failed.append(change)
        elif command.result(place) != reference:
            unequal.append(change)
        left += [f"{change}: {p.name}" for p in place.rglob(".*.partial*")]
    return {
        "changes": len(kinds),
        "kills": len(chosen),
        "alive": alive,
        "failed": failed,
        "unequal": unequal,
        "left": left,
    }


if __name__ == "__main__":
    name = list(COMMANDS)[int(sys.argv[3])]
    with SERVER:
        Path(sys.argv[2]).write_text(json.dumps(run(Path(sys.argv[1]), COMMANDS[name])))
