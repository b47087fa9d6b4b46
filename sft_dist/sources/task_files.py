"""Natural Instructions on disk: one JSON file a task, and official splits as lists of task names."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded
from sft_dist.core.process import logger
from sft_dist.core.records import BadRecord
from sft_dist.sources.files.data_files import TEXT_CHARS, file_kind, open_data
from sft_dist.sources.files.json_record import parse_object


def task_name(path: Path) -> str:
    """Return the task of a file: its name without endings."""
    return path.name.split(".json")[0]


def task_files(path: str) -> list[Path]:
    """Return the task files at `path`: one file, or a folder that holds them (or holds a folder `tasks`)."""
    place = expanded(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{path} does not exist, so there are no tasks to read; check the path")
    for folder in (place, place / "tasks"):
        files = [
            p for p in folder.glob("*") if p.is_file() and "task" in p.name and file_kind(p)[0] == ".json"
        ]
        if files:
            return sorted(files, key=lambda p: p.name)
    raise UserError(
        f"{path} holds no task*.json file, so there are no tasks to read; name the folder of the task files"
    )


def read_task_list(path: str) -> list[str]:
    """Return the task names of an official split file: one a line, `.json` endings and empty lines left out."""
    file = expanded(path)
    if not file.is_file():
        raise UserError(f"{path} does not exist, so its tasks are unknown; check the path")
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not text ({error}), so its tasks are unknown; write one task name a line"
        ) from None
    names = [line.strip().removesuffix(".json") for line in lines if line.strip()]
    if not names:
        raise UserError(f"{path} is empty, so it chooses no task; write one task name a line or leave it out")
    return names


def load_task(path: Path) -> dict[str, Any] | BadRecord:
    """Return the content of a task file."""
    with open_data(path) as stream:
        data = stream.read().removeprefix(b"\xef\xbb\xbf")
    found = parse_object(data)
    if isinstance(found, str):
        text = data[:TEXT_CHARS].decode("utf-8", "replace")
        return BadRecord(
            file=str(path), line=_line_of_error(data), reason=f"the whole task file: {found}", text=text
        )
    return found


def chosen_files(files: list[Path], tasks: tuple[str, ...], task_file: str | None, name: str) -> list[Path]:
    """Return the files whose tasks match one of the globs `tasks` and, if given, stand in `task_file`.

    Raises:
        UserError: When a glob matches no file, or no task of `task_file` has one; the nearest name is given.
    """
    names = [task_name(f) for f in files]
    for pattern in tasks:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise UserError(
                f"data.sources.{name}.tasks names {pattern!r}, which matches none of {len(names)} task files, "
                f"so it would read nothing.{nearest(pattern, names)}"
            )
    listed = None if task_file is None else set(read_task_list(task_file))
    if listed is not None:
        absent = sorted(listed - set(names))
        if len(absent) == len(listed):
            raise UserError(
                f"none of the {len(listed)} tasks in {task_file} has a file, so nothing would be read; "
                f"{absent[0]!r} is the first.{nearest(absent[0], names)}"
            )
        if absent:
            logger().warning(
                "%s: %d of %d tasks in %s have no file, such as %s",
                name,
                len(absent),
                len(listed),
                task_file,
                absent[0],
            )
    chosen = [
        f
        for f, n in zip(files, names, strict=True)
        if any(fnmatchcase(n, p) for p in tasks) and (listed is None or n in listed)
    ]
    if not chosen:
        raise UserError(
            f"data.sources.{name}: no task is both in {task_file} and in tasks={list(tasks)}, so nothing would be read"
        )
    return chosen


def _line_of_error(data: bytes) -> int | None:
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        return error.lineno
    except (ValueError, RecursionError):
        return None
    return None
