"""Callbacks of plugins: told what happens in a run, on rank 0. They only look, and a fault of theirs ends them, not the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sft_dist.core.process import logger

log = logger(__name__)

MOMENTS = ("on_step", "on_evaluation", "on_save", "on_end")


class Callbacks:
    """The callbacks of one run.

    Args:
        makers: Name -> what makes one from the run folder.
        run: The run folder.
        is_main: False: nothing is made, and nothing is told.
    """

    def __init__(self, makers: Mapping[str, Callable[[Path], Any]], run: Path, *, is_main: bool) -> None:
        self._live: dict[str, Any] = {}
        for name, make in makers.items() if is_main else ():
            if (made := self._guarded(name, make, run)) is not None:
                self._live[name] = made

    def tell(self, moment: str, *facts: Any) -> None:
        """Call the method of this name (MOMENTS) of every callback that has it."""
        assert moment in MOMENTS
        for name, callback in list(self._live.items()):
            if method := getattr(callback, moment, None):
                self._guarded(name, method, *facts)

    def _guarded(self, name: str, call: Callable[..., Any], *facts: Any) -> Any:
        try:
            return call(*facts)
        except Exception as error:  # noqa: BLE001  whatever the user's code raises: the ranks go on alike
            self._live.pop(name, None)
            log.warning(
                "the callback %s ends here (%s: %s); training goes on", name, type(error).__name__, error
            )
            return None
