"""The one exception that reaches a user as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us: a config value, a file, a record, a command.

    The message states cause, consequence and remedy. `sft_dist.cli` prints it without a traceback and exits
    with code 2; a relaunch of the same command would fail in the same way, so no launcher retries it.
    """


class BusyError(UserError):
    """Another live process holds what this one wants; what it writes there must not be touched."""


NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)  # whatever the disk, no file can be called so
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def disk_error(error: OSError) -> str:
    """Return what a user is told of a file that could not be read or written, with a remedy where the disk is full or read-only."""
    remedy = "; check the path" if error.errno in NO_NAME else ""
    if error.errno in NO_ROOM:
        act = "name a place that can be written" if error.errno == errno.EROFS else "make room"
        remedy = f"; what is whole is kept: {act} and run the same command again"
    return f"{error.filename or 'a file'}: {error.strerror or error}{remedy}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `choices`, or an empty string when none is close."""
    hits = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {hits[0]!r}?" if hits else ""
