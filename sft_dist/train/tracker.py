"""Weights & Biases on rank 0, or nothing: one interface for both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sft_dist.config import RunConfig
from sft_dist.core.process import logger
from sft_dist.core.runfolder import RunFolder

SKIPPED = {"kind", "time", "step", "task_loss"}


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled; auto is online where there is an API key and the hub of W&B is not switched off."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE", "online") if os.environ.get("WANDB_API_KEY") else "disabled"


class Tracker:
    """Sends lines of metrics.jsonl to W&B. Without a run it does nothing."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    @contextmanager
    def start(cls, config: RunConfig, folder: RunFolder, *, is_main: bool) -> Iterator[Tracker]:
        """Yield the tracker of this rank; the run is finished when the block ends.

        A failing W&B never ends training: what it would have got stands in metrics.jsonl.
        """
        mode = resolve_mode(config.wandb.mode)
        if not is_main or mode == "disabled":
            yield cls(None)
            return
        import wandb

        identity = folder.path / "wandb_id"
        if not identity.exists():
            identity.write_text(wandb.util.generate_id())
        run_id = identity.read_text().strip()
        try:
            run = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                dir=folder.path,
                project=config.wandb.project,
                entity=config.wandb.entity,
                name=config.name,
                group=config.wandb.group or (config.name if mode == "offline" else None),
                tags=list(config.wandb.tags),
                config=config.model_dump(mode="json"),
                # an offline segment cannot be resumed: each attempt is a run of its own in the group
                id=run_id if mode == "online" else None,
                resume="allow" if mode == "online" else None,
            )
        except Exception as error:  # noqa: BLE001  whatever W&B raises (network, key, quota), training goes on
            logger().warning("W&B could not start (%s); training goes on without it, metrics.jsonl has everything", error)
            yield cls(None)
            return
        try:
            yield cls(run)
        finally:
            run.finish()

    def log(self, line: Mapping[str, Any]) -> None:
        """Send one line of metrics.jsonl."""
        if self._run is None:
            return
        prefix = line["kind"]
        values = {f"{prefix}/{k}": v for k, v in line.items() if k not in SKIPPED and v is not None}
        values |= {f"{prefix}_task/{task}": loss for task, loss in line.get("task_loss", {}).items()}
        self._run.log(values, step=line["step"])
