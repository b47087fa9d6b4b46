"""What holds a request back: rates a minute, a pause that the server asks for, the token budget."""

from __future__ import annotations

import asyncio

from sft_dist.client.errors import BudgetSpentError

SECONDS_A_MINUTE = 60.0


class Pace:
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


class Budget:
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
