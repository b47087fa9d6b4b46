"""Locks on files, between the processes of one machine and, where the file system has them, of several."""

from __future__ import annotations

import errno
import fcntl
from typing import IO

from sft_dist.core.process import logger

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


def take_lock(held: IO[str], how: int) -> None:
    """Lock a file; where the file system knows no locks (Lustre mounted without `flock`), warn and go on.

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
