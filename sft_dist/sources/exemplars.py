"""Exemplars of few-shot prompts: the first distinct records of each task, which are only ever shown.

They are never examples themselves, nor is any later record with the same question. So nothing that is evaluated can be shown
in a training prompt; and as an example names its exemplars in `origin`, it is refused where their dataset or task is held out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from sft_dist.core.errors import UserError
from sft_dist.core.process import logger

Exemplar = TypeVar("Exemplar")


class ExemplarPools(Generic[Exemplar]):
    """The exemplars of each task, filled while records are read in order."""

    def __init__(self, size: int) -> None:
        """Begin with none.

        Args:
            size: Exemplars of a task, at most; 0: there are none.
        """
        self._size = size
        self._pools: dict[str, dict[str, Exemplar]] = {}
        self._asked: set[str] = set()

    def takes(self, task: str, question: str, make: Callable[[], Exemplar]) -> bool:
        """Return whether a record serves as an exemplar of its task, or repeats one; `question` tells records apart."""
        pool = self._pools.setdefault(task, {})
        if question not in pool and len(pool) < self._size:
            pool[question] = make()
        if question in pool:
            return True
        self._asked.add(task)
        return False

    def of(self, task: str) -> tuple[Exemplar, ...]:
        """Return the exemplars of a task so far."""
        return tuple(self._pools[task].values())

    def check_left(self, source: str, off: str) -> None:
        """Complain when exemplars took every record of a task; `off` says how to do without any.

        Raises:
            UserError: When no record of any task is left.
        """
        gone = sorted(set(self._pools) - self._asked)
        if gone and not self._asked:
            raise UserError(
                f"data.sources.{source}: all records serve as exemplars (exemplar_pool={self._size}), so none is left "
                f"to train on; lower exemplar_pool, or {off}"
            )
        if gone:
            logger().warning(
                "data.sources.%s: all records of %d tasks, such as %s, serve as exemplars; a smaller exemplar_pool than %d keeps some",
                source, len(gone), gone[0], self._size,
            )  # fmt: skip


def check_pool(source: str, size: int, shots: int) -> None:
    """Raise `UserError` when a pool holds less than the exemplars of one prompt."""
    if 0 < size < shots:
        raise UserError(
            f"data.sources.{source}: exemplar_pool={size} holds less than the {shots} exemplars (shots) of one prompt; "
            "raise it or lower shots"
        )
