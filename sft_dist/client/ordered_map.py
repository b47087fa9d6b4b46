"""Work on many items side by side, its results in the order of the items: what follows never depends on timing."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def map_in_order(
    items: Iterable[Item], work: Callable[[Item], Awaitable[Result]], *, ahead: int
) -> AsyncIterator[tuple[Item, Result]]:
    """Yield (item, its result) in the order of `items`, at most `ahead` of them under way.

    The first failure, in that order, is raised after everything under way has ended. Who is cancelled cancels the rest: a
    client keeps what is paid for.
    """
    running: deque[tuple[Item, asyncio.Task[Result]]] = deque()

    async def run(item: Item) -> Result:
        return await work(item)

    source = iter(items)
    failed = False
    try:
        while True:
            failed = failed or any(t.done() and t.exception() is not None for _, t in running)
            while not failed and len(running) < ahead:
                try:
                    item = next(source)
                except StopIteration:
                    break
                running.append((item, asyncio.create_task(run(item))))
            if not running:
                return
            item, task = running[0]
            result = await task
            running.popleft()
            yield item, result
    except asyncio.CancelledError:
        for _, task in running:
            task.cancel()
        raise
    finally:
        if running:
            await asyncio.wait([t for _, t in running])
            for _, task in running:
                if not task.cancelled():
                    task.exception()  # seen: the first in order is the one that is raised
