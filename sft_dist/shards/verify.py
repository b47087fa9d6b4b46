"""Token stores -> compared with their checksums while training begins, once a node."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

from sft_dist.core.errors import UserError
from sft_dist.shards.reader import Store

SMALL_BYTES = 4 << 30  # read within seconds from any disk, so the first step waits for them


class StoreCheck:
    """Reads stores in a thread and compares every file with its checksum.

    Args:
        folders: The stores. None: another process of this node looks at them, and here all is well.
    """

    def __init__(self, folders: Iterable[Path] | None) -> None:
        self._stores = [Store.open(folder) for folder in folders or ()]
        self._problems: list[str] = []
        self._thread = threading.Thread(target=self._verify, name="verify-stores", daemon=True)
        self._thread.start()

    @property
    def small(self) -> bool:
        """Whether all of it is read within seconds."""
        return sum(store.n_bytes for store in self._stores) <= SMALL_BYTES

    def look(self) -> None:
        """Return at once.

        Raises:
            UserError: When damage was found by now.
        """
        if self._problems:
            more = f" (and {len(self._problems) - 1} more files)" if len(self._problems) > 1 else ""
            raise UserError(
                f"{self._problems[0]}{more}, so the run would train on other data than was prepared; restore the file, or make "
                "the store anew: sft-dist prepare with the arguments of this run and --rebuild"
            )

    def wait(self) -> None:
        """Wait until everything was read: before anything that was trained on it is kept.

        Raises:
            UserError: When damage was found.
        """
        self._thread.join()
        self.look()

    def _verify(self) -> None:
        for store in self._stores:
            try:
                self._problems += store.verify()
            except OSError as error:
                self._problems.append(f"{store.folder} cannot be read ({error})")
