"""Which rank is slower than the others: each samples whether it works or waits for others, and the reduction of a step compares.

What every rank does takes equally long in a step, because all wait for the slowest: only the share of the time in which a rank
waits tells which one that is. A device that computes slowly is not seen so, where the host runs ahead of it; `sft-dist doctor`
measures devices.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple, Self

from sft_dist.train.stall_report import PHASE_NAMES, main_thread, place_of

EVERY_S = 0.1
WINDOW_S = 30.0  # of the moving mean
LASTING_S = 120.0  # before a rank is named
AHEAD = 0.25  # of the time that it works more than the median of the others


class Own(NamedTuple):
    """Of one rank: the share of the time in which it works, and the phase (of PHASE_NAMES) that it works in most."""

    share: float
    phase: int


IDLE = Own(0.0, 0)


class Straggler(NamedTuple):
    """A rank that the others wait for."""

    rank: int
    share: float
    others: float
    phase: str


class Pace:
    """Samples the main thread of this rank, and compares the shares of all.

    Args:
        window_s: Of the moving mean.
        lasting_s: For how long a rank must be ahead of the others in work before it is named.
    """

    def __init__(self, window_s: float = WINDOW_S, lasting_s: float = LASTING_S) -> None:
        self._window_s, self._lasting_s = window_s, lasting_s
        self._weights = [0.0] * (len(PHASE_NAMES) + 1)  # the last: waiting for others
        self._slowest, self._since, self._told = -1, 0.0, False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="pace", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._thread.ident:  # it was started: one rank alone waits for nobody
            self._thread.join()

    def own(self) -> Own:
        """Return what the reduction of a step carries of this rank."""
        *work, waiting = self._weights
        return Own(sum(work) / max(sum(work) + waiting, 1e-9), work.index(max(work)))

    def compare(self, shares: Sequence[Own]) -> Straggler | None:
        """Return the slowest rank once it has been so for long, and once only until that ends. By rank, after every step."""
        if len(shares) == 1:
            return None
        slowest = max(range(len(shares)), key=lambda r: shares[r].share)
        others = statistics.median(s.share for r, s in enumerate(shares) if r != slowest)
        if shares[slowest].share - others < AHEAD:
            self._slowest, self._told = -1, False
        elif slowest != self._slowest:
            self._slowest, self._since, self._told = slowest, time.monotonic(), False
        elif not self._told and time.monotonic() - self._since >= self._lasting_s:
            self._told = True
            own = shares[slowest]
            return Straggler(slowest, own.share, others, PHASE_NAMES[int(own.phase)])
        return None

    def _sample(self) -> None:
        before = time.monotonic()
        while not self._done.wait(EVERY_S):
            now = time.monotonic()
            kept, before = math.exp((before - now) / self._window_s), now
            place = place_of(main_thread())
            weights = [w * kept for w in self._weights]
            weights[-1 if place.waits else PHASE_NAMES.index(place.phase)] += 1 - kept
            self._weights = weights
