"""Count the files of sft_dist that a config and a record pass through: `python bench/walk.py [FOLDER OF THE CODE]`.

A value visits a file when a function defined there is called with the value, or with what the value has become, as an
argument. The config is followed from the command line (`write-run`) into a rank (one step of the demo's model); a record of
a JSON-lines file is followed through `prepare` to its shard. Prints one JSON line for each walk: the files, how many, and
how often the value enters another file. Needs a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

CODE = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()
CARRIERS = {
    "config": ("RunConfig",),
    "record": ("Example", "RecordError", "Conversation", "Draft", "Rendering", "Tokens", "BadRecord"),
}


def _follow(walk: str, module: str, argv: list[str]) -> None:
    """Run a module's main() and print which files were called with a carrier of the walk."""
    import importlib

    visits: list[str] = []

    def seen(frame: FrameType, event: str, _: Any) -> None:
        name = frame.f_code.co_filename
        if event != "call" or "/sft_dist/" not in name or (visits and visits[-1] == name):
            return
        names = frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
        values = [frame.f_locals.get(n) for n in names]
        values += [v[0] for v in values if isinstance(v, (list, tuple)) and v]
        if any(type(v).__name__ in CARRIERS[walk] for v in values):
            visits.append(name)

    main = importlib.import_module(module).main
    sys.argv = [module, *argv]
    sys.setprofile(seen)
    try:
        main(argv) if module.endswith("cli") else main()
    except SystemExit:
        pass
    finally:
        sys.setprofile(None)
    files = sorted({name.split("/sft_dist/")[1] for name in visits})
    print(
        json.dumps(
            {"walk": walk, "module": module, "files": len(files), "entries": len(visits), "names": files}
        )
    )


def _main() -> None:
    if len(sys.argv) > 2:
        _follow(sys.argv[2], sys.argv[3], sys.argv[4:])
        return
    moved = (CODE / "sft_dist/pipelines/train/worker.py").exists()
    worker = "sft_dist.pipelines.train.worker" if moved else "sft_dist.pipelines.rank"
    write = "write-run" if moved else "freeze"
    steps = "log_every_steps" if moved else "log_every"
    with tempfile.TemporaryDirectory() as folder:
        chats = Path(folder) / "chats.jsonl"
        chats.write_text(
            json.dumps(
                {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
            )
            + "\n"
        )
        base = [f"data.dir={folder}/data", f"run_root={folder}/runs", "data.processes=1", f"train.{steps}=1"]
        demo = ["experiment=demo", "data.sources.demo.examples_per_task=40", "train.max_steps=1", *base]
        one = [
            "~data.sources.demo",
            f"data.sources.chats={{kind: chat, path: {chats}}}",
            "render.train_vocab_size=300",
        ]
        run = f"{folder}/runs/demo"
        environment = {
            **os.environ,
            "PYTHONPATH": str(CODE),
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
        }
        environment |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29611",
            "LOCAL_WORLD_SIZE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        subprocess.run(
            [sys.executable, "-m", "sft_dist", "prepare", *demo], env=environment, cwd=folder, check=True
        )
        for argv in (
            ["config", "sft_dist.cli", write, *demo, "--run-dir", run],
            ["config", worker, "--run-dir", run],
            [
                "record",
                "sft_dist.cli",
                "prepare",
                "experiment=demo",
                *base,
                *one,
                "data.holdout.tasks=[]",
                "data.holdout.examples_per_task=0",
                f"data.dir={folder}/one",
            ],
        ):
            subprocess.run(
                [sys.executable, __file__, str(CODE), *argv], env=environment, cwd=folder, check=False
            )


if __name__ == "__main__":
    _main()
