"""Locks on files, between the processes of one machine and, where the file system has them, of several."""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from sft_dist.core.process import logger

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def take_lock(held: IO[str], how: int) -> bool:
    """Lock a file; where the file system knows no locks (Lustre mounted without `flock`), warn, go on and return False.

    Raises:
        BlockingIOError: When another process holds it and `how` says not to wait.
    """
    try:
        fcntl.flock(held, how)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger().warning(
            "%s cannot be locked (%s), so two commands on one folder would not notice one another; see that there is one only",
            held.name,
            error.strerror,
        )
        return False
    return True


_READ: dict[Path, IO[str]] = {}


def begin_reading(folder: Path) -> None:
    """Say that this process reads the files of a folder, until it ends: meanwhile `without_readers` is false for others."""
    if folder.resolve() not in _READ:
        with suppress(OSError):  # where it cannot be written, nobody removes anything from it
            held = (folder / ".readers").open("a")
            take_lock(held, fcntl.LOCK_SH)
            _READ[folder.resolve()] = held


@contextmanager
def without_readers(folder: Path) -> Iterator[bool]:
    """Yield whether no other process reads the files of a folder, as far as locks can tell; none begins to until the end."""
    held, alone = _READ.get(folder.resolve()), False
    if held is not None:
        with suppress(BlockingIOError):
            alone = take_lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield alone
    finally:
        if held is not None:
            take_lock(held, fcntl.LOCK_SH)  # a conversion that failed may have lost it (flock(2))
