"""What holds a request back: how many the server bears, rates a minute, a pause that it asks for, the token budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sft_dist.client.errors import BudgetSpentError

SECONDS_A_MINUTE = 60.0


class AdaptiveConcurrency:
    """How many requests may be under way: more while the server is well, half when it is overloaded.

    TCP's congestion window (RFC 5681; Chiu and Jain, 1989, on why it settles at what there is and shares fairly), a request
    for a segment: slow start adds one an answer, up to the first overload; from then on one is added for each windowful of
    answers. Requests that were under way together and fail together halve it once.

    Attributes:
        limit: Requests that may be under way now, from 1 to `most`.
    """

    def __init__(self, most: int) -> None:
        self.limit = 1
        self._most = self._slow_start_until = most
        self._running = 0
        self._answers = 0  # since the limit changed
        self._halvings = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Hold one of the places; gives what `overloaded` wants to hear of a request that was sent from it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._running < self.limit)
            self._running += 1
        try:
            yield self._halvings
        finally:
            self._running -= 1
            async with self._changed:
                self._changed.notify_all()

    def answered(self) -> None:
        """Take an answer into account, within its slot. While places are free it says nothing about more of them."""
        if self._running < self.limit or self.limit == self._most:
            return
        self._answers += 1
        if self.limit < self._slow_start_until or self._answers >= self.limit:
            self.limit += 1
            self._answers = 0

    def overloaded(self, sent: int) -> None:
        """Halve the limit, unless that was done after the request was sent."""
        if sent == self._halvings:
            self.limit = self._slow_start_until = max(1, self.limit // 2)
            self._answers = 0
            self._halvings += 1


class RateLimiter:
    """Spaces requests so that no more than a number of them, or of their tokens, start in a minute."""

    def __init__(self, requests_per_minute: float | None, tokens_per_minute: float | None) -> None:
        self._a_request = SECONDS_A_MINUTE / requests_per_minute if requests_per_minute else 0.0
        self._a_token = SECONDS_A_MINUTE / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = self._paused_until = 0.0

    async def wait(self, tokens: int) -> None:
        """Wait until a request of this many tokens may start; it is then taken to have started."""
        loop = asyncio.get_running_loop()
        # each sleep ends at a known time, which a pause or a correction may meanwhile have moved
        while (start := max(self._next_request, self._next_token, self._paused_until)) > loop.time():  # noqa: ASYNC110  not an event
            await asyncio.sleep(start - loop.time())
        now = loop.time()
        self._next_request = now + self._a_request
        self._next_token = now + tokens * self._a_token

    def correct(self, tokens: int) -> None:
        """Account for tokens (or fewer, if negative) that a request cost beyond what was said before it."""
        self._next_token += tokens * self._a_token

    def pause(self, seconds: float) -> None:
        """Start nothing for some seconds."""
        self._paused_until = max(self._paused_until, asyncio.get_running_loop().time() + seconds)


class TokenBudget:
    """Tokens that may still be spent. A request reserves its most before it starts, so that the limit is kept."""

    def __init__(self, limit: int | None, spent: int) -> None:
        self.limit = limit
        self.spent = spent
        self._reserved = 0
        self._changed = asyncio.Condition()

    async def reserve(self, tokens: int) -> None:
        """Wait until running requests leave room for `tokens`.

        Raises:
            BudgetSpentError: When they cannot.
        """
        async with self._changed:
            while self.limit is not None and self.spent + self._reserved + tokens > self.limit:
                if not self._reserved:
                    raise BudgetSpentError(
                        f"{self.spent:,} of {self.limit:,} tokens are spent, and the next request may need {tokens:,}"
                    )
                await self._changed.wait()
            self._reserved += tokens

    async def settle(self, reserved: int) -> None:
        """Give back what a request had reserved; what it cost has been added to `spent`."""
        async with self._changed:
            self._reserved -= reserved
            self._changed.notify_all()
