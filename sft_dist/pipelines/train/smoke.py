"""Two steps on the heaviest global batches, saved and exported: what would break a long run breaks here first."""

from __future__ import annotations

import shutil
from typing import Any

from rich.console import Console

from sft_dist.config import RunConfig
from sft_dist.core.files import read_jsonl
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.train.command import train
from sft_dist.pipelines.train.run_folder import run_folder

STEPS = 2
GIB = 1 << 30


def smoke(config: RunConfig, console: Console, *, command: str) -> RunFolder:
    """Train, save and export a run of two steps beside the real one, and say what it took.

    The folder is `<name>-smoke`; an earlier one is replaced. Nothing is sent to wandb or to checkpoint.remote.

    Raises:
        UserError: For anything wrong with config, data or model, or when such a run is going on.
        RuntimeError: When the ranks failed.
    """
    config = small(config)
    folder = run_folder(config)
    if folder.path.exists():
        with folder.lock():
            shutil.rmtree(folder.path)
    train(config, console, command=command)
    lines: list[dict[str, Any]] = [
        m for m in read_jsonl(folder.metrics, {"kind": str}) if m["kind"] == "train"
    ]
    saved = next(e for e in read_jsonl(folder.events, {"kind": str}) if e["kind"] == "saved")
    heaviest = max(lines, key=lambda m: m["memory_bytes"])
    console.print(
        f"smoke test passed: {len(lines)} steps on the heaviest batches ({max(m['tokens'] for m in lines):,} tokens), "
        f"{heaviest['memory_bytes'] / GIB:.2f} GiB a rank at most, {min(m['step_s'] for m in lines):.1f} s a step, "
        f"{lines[-1]['tokens_per_s']:,.0f} tokens/s; saved in {saved['seconds']} s; exported to {folder.export}"
    )
    return folder


def small(config: RunConfig) -> RunConfig:
    """Return the config of the smoke test of a run."""

    def section(name: str, **values: Any) -> Any:
        return getattr(config, name).model_copy(update=values)

    return config.model_copy(
        update={
            "name": f"{config.name}-smoke",
            "train": section(
                "train",
                smoke=True,
                max_steps=STEPS,
                export=True,
                eval_every_steps=None,
                evals_per_epoch=None,
                patience_evaluations=None,
                export_best=False,
            ),
            "checkpoint": section(
                "checkpoint", resume="auto", remote=None, keep_best=0, optimizer_keep_last=None
            ),
            "wandb": section("wandb", mode="disabled"),
        }
    )
