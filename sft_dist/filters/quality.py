"""Score file -> which examples are kept. The scores are made by `sft-dist score`; here they meet their thresholds.

IFD (instruction-following difficulty) is the base model's loss on the answer given the prompt, over its loss on the
answer alone. At 1 or more the prompt does not help: it does not belong to the answer. Near 0 the prompt gives the answer
away, and there is little to learn. Kept are the hardest of those that the prompt helps.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop

COMMAND = "sft-dist score"


class Identified(Protocol):
    """Anything that has the id and the task of an example."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def task(self) -> str:
        """Its task."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """The scores of one source, 12 bytes an example.

    Attributes:
        ids: uint64 [n] the half of each id that covers content and task, sorted.
        ifd: float32 [n] its score, NaN where it has none (it cannot be rendered, or its answer is empty).
        tasks: Task -> scores of its examples, sorted.
    """

    ids: NDArray[np.uint64]
    ifd: NDArray[np.float32]
    tasks: dict[str, NDArray[np.float32]]

    def of(self, example: Identified) -> float | None:
        """Return the score of an example, None when it was never scored."""
        key = np.uint64(int(example.id[16:], 16))
        at = int(np.searchsorted(self.ids, key))
        return float(self.ifd[at]) if at < len(self.ids) and self.ids[at] == key else None


def read_scores(path: Path) -> Scores:
    """Read a score file.

    Raises:
        UserError: It is absent, or a line of it is no score.
    """
    if not path.is_file():
        raise UserError(
            f"data.filters.quality needs {path}, which does not exist, so no example can be judged; "
            f"score the examples first: {COMMAND} CONFIG"
        )
    ids: list[int] = []
    values: list[float] = []
    by_task: dict[str, list[float]] = defaultdict(list)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                fields = json.loads(line)
                ids.append(int(np.uint64(int(fields["id"][16:], 16))))
                values.append(math.nan if fields["ifd"] is None else float(fields["ifd"]))
                if fields["ifd"] is not None:
                    by_task[fields["task"]].append(values[-1])
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                raise UserError(
                    f"{path}:{number} is no score ({error!r}), so what is kept would be wrong; remove the line, and "
                    f"score what it named again: {COMMAND} CONFIG"
                ) from None
    keys, first = np.unique(np.array(ids, np.uint64), return_index=True)
    return Scores(
        ids=keys,
        ifd=np.array(values, np.float32)[first],
        tasks={t: np.sort(np.array(v, np.float32)) for t, v in by_task.items()},
    )


class Quality:
    """Thresholds on the scores of one source.

    Args:
        scores: The scores.
        max_ifd: Scores of this or more are dropped; None keeps them.
        keep_top: Share of each task's remaining examples that is kept, the hardest first; None keeps all.
        source: Named in errors.
    """

    def __init__(self, scores: Scores, *, max_ifd: float | None, keep_top: float | None, source: str) -> None:
        self._scores, self._max_ifd, self._keep_top, self._source = scores, max_ifd, keep_top, source
        self._least: dict[str, float] = {}
        for task, found in scores.tasks.items():
            if keep_top is None:
                break
            below = found if max_ifd is None else found[found < np.float32(max_ifd)]
            if len(below):
                # The lowest score that is kept. Rounded up, so that a task of one example keeps it; ties are all kept.
                self._least[task] = float(below[len(below) - math.ceil(round(keep_top * len(below), 9))])

    def __call__(self, example: Identified) -> Drop | None:
        """Return `ifd_too_high`, `ifd_low` or None.

        Raises:
            UserError: The example was never scored.
        """
        value = self._scores.of(example)
        if value is None:
            raise UserError(
                f"data.sources.{self._source}: example {example.id} has no score, so it cannot be judged; data or other "
                f"filters changed since the scoring. Score what is missing: {COMMAND} CONFIG"
            )
        if math.isnan(value):
            return None
        if self._max_ifd is not None and value >= self._max_ifd:
            return Drop(
                "ifd_too_high", f"IFD {value:.3f} >= {self._max_ifd}: the prompt does not help the answer"
            )
        least = self._least.get(example.task, 0.0)
        if value < least:
            return Drop(
                "ifd_low",
                f"IFD {value:.3f} < {least:.3f}, of the task's hardest {self._keep_top:.0%} the lowest",
            )
        return None
