"""Lines of metrics.jsonl and results of an evaluation -> Weights & Biases, TensorBoard, both or nothing, on rank 0.

A board that fails never ends training: what it would have got stands in the run folder.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sft_dist.core.files import iterate_jsonl
from sft_dist.core.process import logger

SKIPPED = {"kind", "time", "step", "task_loss", "source_loss", "set_loss", "router_load"}
SERIES = ("task_loss", "source_loss", "set_loss")
"""Fields of a line that hold several figures: `task_loss` becomes `train_task/NAME`."""


class Board(Protocol):
    """Where figures go."""

    title: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take figures of a step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table."""

    def close(self) -> None:
        """Write what is left."""


class WandbBoard:
    """A run of Weights & Biases."""

    title = "W&B"

    def __init__(
        self,
        folder: Path,
        *,
        mode: str,
        name: str,
        project: str,
        entity: str | None,
        group: str | None,
        tags: Sequence[str],
        config: Mapping[str, Any],
        job: str,
    ) -> None:
        """Start or continue the run; raises whatever the client raises (network, key, quota)."""
        import wandb

        identity = folder / "wandb_id"
        if not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            mode=mode,  # type: ignore[arg-type]
            dir=folder,
            project=project,
            entity=entity,
            name=name,
            group=group,
            job_type=job,
            tags=list(tags),
            config=dict(config),
            id=identity.read_text().strip(),
            resume="allow"
            if mode == "online"
            else None,  # offline nothing is known of what is there: see `Tracker.start`
        )
        self._step = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take figures of a step."""
        self._step = step
        self._run.log(dict(values), step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table."""
        import wandb

        self._run.log(
            {name: wandb.Table(columns=list(columns), data=[list(r) for r in rows])}, step=self._step
        )

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class TensorboardBoard:
    """Event files of TensorBoard in tensorboard/ of the run folder; a later attempt writes a file of its own there."""

    title = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        """Open the folder.

        Raises:
            ImportError: The package tensorboard is not installed.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))  # type: ignore[no-untyped-call]
        self._step = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take figures of a step."""
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table, as Markdown."""
        cells = [[" ".join(str(v).split()).replace("|", "\\|") for v in row] for row in rows]
        lines = [list(columns), ["---"] * len(columns), *cells]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        self._writer.add_text(name, text, self._step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()  # type: ignore[no-untyped-call]


def resolve_mode(mode: str) -> str:
    """Return online, offline or disabled; auto is what WANDB_MODE says, else online where there is an API key."""
    if mode != "auto":
        return mode
    # offline needs no key, and jobs on nodes without internet seldom have one
    return os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "disabled")


class Tracker:
    """Sends lines of metrics.jsonl and results to the boards of a run. Without one it does nothing."""

    def __init__(self, boards: Sequence[Board] = ()) -> None:
        self._boards = list(boards)

    @classmethod
    @contextmanager
    def start(
        cls,
        folder: Path,
        *,
        mode: str,
        tensorboard: bool,
        done: int,
        log_every: int = 1,
        job: str = "train",
        **wandb: Any,
    ) -> Iterator[Tracker]:
        """Yield a tracker; its boards are closed when the block ends.

        W&B cannot continue a record that it wrote offline. A later attempt therefore writes one with the same run id that begins with
        everything before it, so the newest record is the whole run, and uploading it replaces what was uploaded of earlier ones.

        Args:
            folder: The run folder.
            mode: `wandb.mode`.
            tensorboard: Whether to write event files of TensorBoard.
            done: Steps of the run that stand in metrics.jsonl and are not repeated.
            log_every: Steps between lines that boards get.
            job: "train" or "evaluate".
            wandb: The other arguments of `WandbBoard`.
        """
        tracker = cls()
        mode = resolve_mode(mode)
        if mode != "disabled":
            tracker._open(WandbBoard.title, lambda: WandbBoard(folder, mode=mode, job=job, **wandb))
        if mode == "offline":
            for line in _lines_until(folder / "metrics.jsonl", done, log_every):
                tracker.log(line)
        if tensorboard:
            tracker._open(TensorboardBoard.title, lambda: TensorboardBoard(folder))
        try:
            yield tracker
        finally:
            tracker._each(lambda board: board.close())

    def __bool__(self) -> bool:
        """Return whether anything is tracked."""
        return bool(self._boards)

    def log(self, line: Mapping[str, Any]) -> None:
        """Send one line of metrics.jsonl."""
        prefix = line["kind"]
        values = {f"{prefix}/{k}": v for k, v in line.items() if k not in SKIPPED and v is not None}
        for field in SERIES:
            kind = field.removesuffix("_loss")
            values |= {f"{prefix}_{kind}/{name}": v for name, v in (line.get(field) or {}).items()}
        self._each(lambda board: board.log(values, line["step"]))

    def results(self, step: int, values: Mapping[str, float], tables: Mapping[str, Table]) -> None:
        """Send the results of an evaluation: figures by name, tables as (columns, rows)."""
        self._each(lambda board: board.log(values, step))
        for name, (columns, rows) in tables.items():
            self._each(lambda board, n=name, c=columns, r=rows: board.table(n, c, r))  # type: ignore[misc]

    def _open(self, title: str, make: Callable[[], Board]) -> None:
        try:
            self._boards.append(make())
        except Exception as error:  # noqa: BLE001  whatever a board raises, training goes on
            logger().warning(
                "%s could not start (%s); training goes on without it, metrics.jsonl has everything",
                title,
                error,
            )

    def _each(self, call: Callable[[Board], None]) -> None:
        for board in list(self._boards):
            try:
                call(board)
            except Exception as error:  # noqa: BLE001  as above
                logger().warning(
                    "%s failed (%s); it goes on without it, metrics.jsonl has everything", board.title, error
                )
                self._boards.remove(board)


def _lines_until(metrics: Path, done: int, log_every: int) -> list[dict[str, Any]]:
    """Return the lines of the first steps that boards get, by step, repeated ones as they were last."""
    last: dict[tuple[int, bool], dict[str, Any]] = {}
    for line in iterate_jsonl(metrics, {"kind": str, "step": int}) if metrics.exists() else ():
        evaluated = line["kind"] == "eval"
        if line["step"] <= done and (evaluated or line["step"] % log_every == 0):
            last[line["step"], evaluated] = line
    return [last[key] for key in sorted(last)]


Table = tuple[Sequence[str], Sequence[Sequence[Any]]]
"""Names of columns, and rows."""
