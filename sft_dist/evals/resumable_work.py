"""One piece of work over all examples, split over processes, each writing its part; resumable. No torch.

A part grows as `.part-R-of-W.jsonl` and is renamed to `part-R-of-W.jsonl` when its slice is complete, so the
process that collects needs no process group: it waits for the names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from sft_dist.core.errors import UserError
from sft_dist.core.files import append_jsonl, fsync_path, read_jsonl, sealed, unsealed, write_text


class HasId(Protocol):
    """Anything with the id of an example."""

    @property
    def id(self) -> str:
        """Unique among the examples."""


T = TypeVar("T", bound=HasId)


def run_part(
    folder: Path,
    examples: Sequence[T],
    work: Callable[[Sequence[T]], Iterable[Mapping[str, Any]]],
    *,
    rank: int,
    world_size: int,
    batch_size: int,
    length: Callable[[T], int],
    label: str,
) -> int:
    """Do the work of one process and write its part.

    Args:
        folder: Where the parts lie; one folder holds one piece of work (model, examples, options).
        examples: All examples, equal on every process; this one takes `examples[rank::world_size]`.
        work: One batch -> a JSON-ready record with the key `id` for each example of it.
        rank: Of this process.
        world_size: Number of processes. An earlier try may have had another number.
        batch_size: Examples a batch at most.
        length: Cost of an example. Long ones come first: too large a batch fails at once, not after an hour.
        label: Of the progress bar, which rank 0 shows.

    Returns:
        How many examples were computed now; the others were found done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    growing, final = _names(folder, rank, world_size)
    mine = examples[rank::world_size]
    done = _read_all(folder)
    if final.exists() and all(e.id in done for e in mine):
        return 0
    final.unlink(missing_ok=True)  # a line of it is damaged: that example is asked again
    kept = [done[e.id] for e in mine if e.id in done]
    write_text(growing, "".join(json.dumps(sealed(r), ensure_ascii=False) + "\n" for r in kept))
    todo = sorted((e for e in mine if e.id not in done), key=length, reverse=True)
    with _progress(visible=rank == 0 and bool(todo)) as progress:
        bar = progress.add_task(label, total=len(mine), completed=len(kept))
        for batch in _batches(todo, length, batch_size):
            for record in work(batch):
                append_jsonl(growing, sealed(record))
            progress.update(bar, advance=len(batch))
    fsync_path(growing)
    growing.rename(final)
    fsync_path(folder)
    return len(todo)


def collect(
    folder: Path, ids: Iterable[str], *, world_size: int, timeout_s: float
) -> dict[str, dict[str, Any]]:
    """Wait until all parts are complete and return the records of `ids`, in that order.

    Raises:
        UserError: When parts are still missing after `timeout_s` seconds.
    """
    deadline = time.monotonic() + timeout_s
    finals = [_names(folder, r, world_size)[1] for r in range(world_size)]
    while missing := [p.name for p in finals if not p.exists()]:
        if time.monotonic() >= deadline:
            raise UserError(
                f"{', '.join(missing)} did not appear in {folder} within {timeout_s:.0f} s, so a process stopped early; "
                "see its log and start the same command again, what is done is kept"
            )
        time.sleep(0.2)
    records, wanted = _read_all(folder), list(ids)
    if lost := [i for i in wanted if i not in records]:
        raise UserError(
            f"{folder} is damaged ({len(lost)} of {len(wanted)} answers cannot be read); the same command again asks them anew"
        )
    return {i: records[i] for i in wanted}


def is_done(folder: Path, examples: Sequence[HasId], *, world_size: int) -> bool:
    """Return whether every process of `world_size` has completed its part, and every line can be read."""
    if not all(_names(folder, r, world_size)[1].exists() for r in range(world_size)):
        return False
    done = _read_all(folder)
    return all(e.id in done for e in examples)


def _batches(examples: Sequence[T], length: Callable[[T], int], batch_size: int) -> Iterator[list[T]]:
    """Yield batches of neighbours none of which is shorter than half the first, so that less than half of a batch is padding.

    One prompt of 1,300 tokens among ones of 400 made its batch cost three times what they cost apart.
    """
    batch: list[T] = []
    for e in examples:
        if batch and (len(batch) == batch_size or 2 * length(e) < length(batch[0])):
            yield batch
            batch = []
        batch.append(e)
    if batch:
        yield batch


def _names(folder: Path, rank: int, world_size: int) -> tuple[Path, Path]:
    name = f"part-{rank:05d}-of-{world_size:05d}.jsonl"
    return folder / f".{name}", folder / name


def _read_all(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every record of every part, growing ones too, whatever number of processes wrote them."""
    records: dict[str, dict[str, Any]] = {}
    for name in ("part-*.jsonl", ".part-*.jsonl"):
        for path in sorted(folder.glob(name)):
            with suppress(FileNotFoundError):  # another process has just completed and renamed it
                lines = (unsealed(line) for line in read_jsonl(path, {"id": str}))
                records |= {r["id"]: r for r in lines if r is not None}
    return records


def _progress(*, visible: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not visible,
    )
