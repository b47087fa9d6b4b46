"""What a stage has done, a line a step, under a key that says from what. A line that a crash tore is cut off.

Lines are not flushed one by one: whatever a power failure takes is made again from the client's cache, which is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.files import write_text


class Journal:
    """An append-only file of JSON lines, the first of which is the key.

    Attributes:
        path: The file.
        done: Lines after the key.
    """

    def __init__(self, path: Path, key: Mapping[str, Any]) -> None:
        """Open or begin a journal.

        Args:
            path: The file.
            key: Everything that decides its lines, by name, JSON-ready.

        Raises:
            UserError: When it was begun with another key; what changed is named.
        """
        self.path = path
        self.done = 0
        if not path.is_file():
            write_text(path, json.dumps(key, sort_keys=True) + "\n")
            return
        size = 0
        with path.open("rb") as f:
            self._check(f.readline(), key)
            size = f.tell()
            for line in f:
                if not _is_whole(line):
                    break
                size += len(line)
                self.done += 1
        with path.open("r+b") as f:
            f.truncate(size)

    def append(self, value: Any) -> None:
        """Add a line, in a single write."""
        with self.path.open("ab", buffering=0) as f:
            f.write(json.dumps(value, separators=(",", ":")).encode() + b"\n")
        self.done += 1

    def __iter__(self) -> Iterator[Any]:
        """Yield the lines after the key."""
        with self.path.open("rb") as f:
            f.readline()
            for line in f:
                yield json.loads(line)

    def _check(self, head: bytes, key: Mapping[str, Any]) -> None:
        try:
            found = dict(json.loads(head))
        except (ValueError, TypeError, RecursionError):
            found = {}
        wanted = json.loads(json.dumps(key))
        changed = sorted(k for k in {*found, *wanted} if found.get(k) != wanted.get(k))
        if changed:
            raise UserError(
                f"{self.path} was begun with another {', '.join(changed)}, and what it holds would be mixed with something else; "
                f"restore that, use another name, or delete {self.path.parent} (answers stay in the cache)"
            )


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return line.endswith(b"\n")
