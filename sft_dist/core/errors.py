"""The one exception that reaches a user as a sentence instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us: a config value, a file, a record, a command.

    The message states cause, consequence and remedy. `sft_dist.cli` prints it without a traceback and exits
    with code 2; a relaunch of the same command would fail in the same way, so no launcher retries it.
    """


class BusyError(UserError):
    """Another live process holds what this one wants; what it writes there must not be touched."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the closest of `choices`, or an empty string when none is close."""
    hits = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" Did you mean {hits[0]!r}?" if hits else ""
