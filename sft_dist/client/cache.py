"""Answers on disk under the key of their request: append-only segments, flushed before an answer is used.

<folder>/segment-<time>-<process>.jsonl    {"key": 32 hex, "tokens": N, "value": {...}}; key "" for tokens paid in vain

Each process writes a segment of its own, so that several may share a folder, on a network file system too. A line that a
crash tore is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

from sft_dist.core.errors import UserError
from sft_dist.core.files import fsync_path

_HEAD = re.compile(rb'\{"key":"([0-9a-f]*)","tokens":(\d+),')


class _Place(NamedTuple):
    file: Path
    offset: int
    length: int


class _Waiting(NamedTuple):
    line: bytes
    key: str
    tokens: int
    done: asyncio.Future[None]


class Cache:
    """Answers by key. Reads what all segments hold when it opens.

    Attributes:
        tokens: Tokens that everything in the folder cost.
    """

    def __init__(self, folder: Path) -> None:
        self.tokens = 0
        self._folder = folder
        self._places: dict[str, _Place] = {}
        self._waiting: list[_Waiting] = []
        self._writer: asyncio.Task[None] | None = None
        self._fd: int | None = None
        self._segment = folder
        self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file in sorted(folder.glob("segment-*.jsonl")):
                self._read(file)
        except OSError as error:
            raise UserError(
                f"the cache {folder} cannot be read ({error.strerror}), so answers would be bought twice; "
                "check the path and its permissions"
            ) from None

    def __len__(self) -> int:
        return len(self._places)

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the value under a key, or None."""
        place = self._places.get(key)
        if place is None:
            return None
        with place.file.open("rb") as f:
            f.seek(place.offset)
            try:
                return dict(json.loads(f.read(place.length))["value"])
            except ValueError:  # damaged on disk
                del self._places[key]
                return None

    async def put(self, key: str, value: dict[str, Any], tokens: int) -> None:
        """Keep a value; return when it is on disk. Values that arrive together are flushed together.

        Args:
            key: Its key, or "" for tokens that were paid without an answer.
            value: JSON-ready.
            tokens: What it cost.

        Raises:
            UserError: When it cannot be written.
        """
        line = json.dumps({"key": key, "tokens": tokens, "value": value}, separators=(",", ":")) + "\n"
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(line.encode(), key, tokens, done))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._drain())
        await done

    def close(self) -> None:
        """Close the segment."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(self._append, b"".join(w.line for w in batch))
            except OSError as error:
                self.close()  # its last line may be torn: the next goes into another segment
                wrong = UserError(
                    f"the cache {self._folder} cannot be written ({error.strerror}), so nothing more is bought; "
                    "make room and run the same command again"
                )
                for waiting in batch:
                    if not waiting.done.cancelled():
                        waiting.done.set_exception(wrong)
                continue
            for waiting in batch:
                if waiting.key:
                    self._places[waiting.key] = _Place(self._segment, self._size, len(waiting.line))
                self._size += len(waiting.line)
                self.tokens += waiting.tokens
                if not waiting.done.cancelled():
                    waiting.done.set_result(None)

    def _append(self, data: bytes) -> None:
        if self._fd is None:
            self._segment = self._folder / f"segment-{time.time_ns():020d}-{os.getpid()}.jsonl"
            self._fd = os.open(self._segment, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
            self._size = 0
            fsync_path(self._folder)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        os.fsync(self._fd)

    def _read(self, file: Path) -> None:
        offset = 0
        with file.open("rb") as f:
            for line in f:
                head = _HEAD.match(line)
                if head and line.endswith(b"}\n"):
                    self.tokens += int(head[2])
                    if head[1]:
                        self._places[head[1].decode()] = _Place(file, offset, len(line))
                offset += len(line)
