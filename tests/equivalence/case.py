"""What a launch runs: the base of all cases. No torch, so that collecting tests stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of training that every rank of a launch runs; the fields are its options.

    Attributes:
        group: Cases of one group, world size and phase share a launch.
    """

    group: ClassVar[str] = "numerics"

    def run(self, model: str, scratch: Path) -> Any:
        """Run on this rank; what rank 0 returns (ready for JSON) is what tests see.

        Args:
            model: Folder of the tiny base model.
            scratch: Folder that all launches share.
        """
        raise NotImplementedError

    @property
    def needs(self) -> tuple[tuple[int, Case], ...]:
        """(world size, case) whose files this case reads: they run in earlier launches, so in other processes."""
        return ()
