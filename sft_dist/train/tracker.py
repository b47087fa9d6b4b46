"""Weights & Biases on rank 0, or nothing: one interface for both."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft_dist.core.process import logger

SKIPPED = {"kind", "time", "step", "task_loss", "source_loss", "router_load"}


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled; auto is what WANDB_MODE says, else online where there is an API key."""
    if mode != "auto":
        return mode
    # offline needs no key, and jobs on nodes without internet seldom have one
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "disabled")


class Tracker:
    """Sends lines of metrics.jsonl to W&B. Without a run it does nothing."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path,
        *,
        mode: str,
        name: str,
        project: str,
        entity: str | None,
        group: str | None,
        tags: Sequence[str],
        config: Mapping[str, Any],
    ) -> Iterator[Tracker]:
        """Yield a tracker; its run is finished when the block ends.

        A failing W&B never ends training: what it would have got stands in metrics.jsonl.
        """
        mode = resolve_mode(mode)
        if mode == "disabled":
            yield cls(None)
            return
        identity = folder / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        run_id = identity.read_text().strip()
        try:
            import wandb

            run = wandb.init(
                mode=mode,  # type: ignore[arg-type]
                dir=folder,
                project=project,
                entity=entity,
                name=name,
                group=group or (name if mode == "offline" else None),
                tags=list(tags),
                config=dict(config),
                # an offline segment cannot be resumed: each attempt is a run of its own in the group
                id=run_id if mode == "online" else None,
                resume="allow" if mode == "online" else None,
            )
        except Exception as error:  # noqa: BLE001  whatever W&B raises (network, key, quota), training goes on
            logger().warning(
                "W&B could not start (%s); training goes on without it, metrics.jsonl has everything", error
            )
            yield cls(None)
            return
        tracker = cls(run)
        try:
            yield tracker
        finally:
            tracker._safely(run.finish)

    def log(self, line: Mapping[str, Any]) -> None:
        """Send one line of metrics.jsonl."""
        if self._run is None:
            return
        prefix = line["kind"]
        values = {f"{prefix}/{k}": v for k, v in line.items() if k not in SKIPPED and v is not None}
        for part in ("task", "source"):
            values |= {f"{prefix}_{part}/{name}": v for name, v in line.get(f"{part}_loss", {}).items()}
        self._safely(self._run.log, values, step=line["step"])

    def _safely(self, call: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            call(*args, **options)
        except Exception as error:  # noqa: BLE001  as above
            logger().warning(
                "W&B failed (%s); training goes on without it, metrics.jsonl has everything", error
            )
            self._run = None
