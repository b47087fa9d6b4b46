"""The next step is made ready beside this one, and waiting for it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from sft_dist.train import loop


def test_planning_runs_beside_the_step_and_waiting_for_it_is_counted() -> None:
    where: list[int] = []

    def work() -> Iterator[Any]:
        for i in range(3):
            where.append(threading.get_ident())
            time.sleep(0.05)
            yield i, f"plan {i}", lambda i=i: [i]

    seen = list(loop.prefetched(work(), str))
    assert [s[:3] for s in seen] == [(i, f"plan {i}", [str(i)]) for i in range(3)]
    assert threading.get_ident() not in where
    assert sum(waited for *_, waited in seen) >= 0.14

    waits = []
    for *_, waited in loop.prefetched(work(), str):
        waits.append(waited)
        time.sleep(0.2)
    assert max(waits[1:]) < 0.04  # they were made meanwhile
