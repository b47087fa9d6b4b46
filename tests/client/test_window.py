"""Adaptive concurrency: what one checks by eye, and a server that bears four requests at a time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from scripted_server import Fault, ScriptedServer, status

from sft_dist.client import Cache, Client, CompletionRequest
from sft_dist.client.limits import AdaptiveConcurrency


def limits_of(most: int, events: str) -> list[int]:
    """Return the limit after each event while all places are taken: "." an answer, "x" an overload of a request sent just before."""

    async def work() -> list[int]:
        window, limits = AdaptiveConcurrency(most), []
        for event in events:
            slots = [window.slot() for _ in range(window.limit)]
            sent = [await s.__aenter__() for s in slots]
            window.answered() if event == "." else window.overloaded(sent[0])
            limits.append(window.limit)
            for slot in slots:
                await slot.__aexit__(None, None, None)
        return limits

    return asyncio.run(work())


def test_it_doubles_until_the_first_overload_then_adds_one_a_windowful():
    assert limits_of(6, "......") == [2, 3, 4, 5, 6, 6]
    assert limits_of(16, "....x" + "." * 9) == [2, 3, 4, 5, 2, 2, 3, 3, 3, 4, 4, 4, 4, 5]
    assert limits_of(16, ".xxx.") == [2, 1, 1, 1, 2]


def test_what_fails_together_halves_it_once_and_free_places_say_nothing():
    async def work() -> None:
        window = AdaptiveConcurrency(8)
        for _ in range(7):
            async with window.slot():
                window.answered()
        assert window.limit == 2  # one at a time never filled two places
        window.limit = 8
        slots = [window.slot() for _ in range(8)]
        sent = [await s.__aenter__() for s in slots]
        for number in sent:
            window.overloaded(number)
        assert window.limit == 4
        waiting = asyncio.create_task(window.slot().__aenter__())
        for free, slot in enumerate(slots, 1):
            await asyncio.sleep(0)
            assert not waiting.done()
            await slot.__aexit__(None, None, None)
            if free == 5:  # three are under way, of four
                break
        window.overloaded(await waiting)
        assert window.limit == 2

    asyncio.run(work())


def fetch(server: ScriptedServer, folder, count: int, **options):
    async def work():
        async with Client(url=server.url, cache=Cache(folder), backoff_s=0.01, **options) as client:
            requests = (
                CompletionRequest(model="m", prompt=({"role": "user", "content": str(i)},), max_tokens=8)
                for i in range(count)
            )
            done = await asyncio.gather(*(client.complete(r) for r in requests))
            return done, client.stats

    return asyncio.run(work())


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_bears_four_at_a_time_refuses_few(tmp_path, code):
    count, bears = 150, 4
    with ScriptedServer(
        answer=lambda body: body["messages"][0]["content"] * 2,
        faults=lambda *_: status(code) if server.running > bears else None,
        delay_s=0.02,
    ) as server:
        done, stats = fetch(server, tmp_path, count, concurrency=64)
    assert [c.choices[0].text for c in done] == [str(i) * 2 for i in range(count)]
    assert set(server.served.values()) == {1}
    assert len(server.served) == stats.answered == count
    refused = stats.retries.total()
    assert stats.sent == len(server.seen) == count + refused
    # Four are passed once by slow start, then at limit 5 only: halved to 2, it comes there again after 2 + 3 + 4 answers, some
    # 17 times. A fixed 64 is refused 60 times by its first volley alone.
    assert 1 <= refused < 60


@pytest.mark.parametrize(
    ("fault", "halves"), [(Fault("slow", seconds=1), True), (status(503), True), (status(500), False)]
)
def test_what_counts_as_overload(tmp_path, fault, halves):
    """After an overload slow start is over, even where there is nothing to halve."""

    async def work():
        async with Client(
            url=server.url, cache=Cache(tmp_path), concurrency=4, backoff_s=0.01, timeout_s=0.3
        ) as client:
            await client.complete(CompletionRequest(model="m", prompt="x", max_tokens=8))
            return client.stats, client._window

    with ScriptedServer(faults=lambda n, _: fault if n == 0 else None) as server:
        stats, window = asyncio.run(work())
    assert (stats.answered, stats.retries.total(), window.limit) == (1, 1, 2)
    assert window._slow_start_until == (1 if halves else 4)


@pytest.mark.parametrize("code", [429, 503])
def test_every_request_waits_for_retry_after(tmp_path, code):
    with ScriptedServer(faults=lambda n, _: status(code, Retry_After="0.6") if n == 3 else None) as server:
        came: list[float] = []
        server.answer = lambda _: came.append(asyncio.get_running_loop().time()) or "fine"
        _, stats = fetch(server, tmp_path, 12, concurrency=4)
    assert stats.sent == 13
    gaps = [b - a for a, b in pairwise(came)]
    assert sum(g >= 0.5 for g in gaps) == 1  # one pause, which all kept


def test_what_was_not_sent_is_not_bought_after_an_interruption(tmp_path):
    async def work(server: ScriptedServer):
        async with Client(url=server.url, cache=Cache(tmp_path), concurrency=1) as client:
            tasks = [
                asyncio.create_task(
                    client.complete(
                        CompletionRequest(
                            model="m", prompt=({"role": "user", "content": str(i)},), max_tokens=8
                        )
                    )
                )
                for i in range(5)
            ]
            while not server.seen:  # noqa: ASYNC110  another thread's list
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()

    with ScriptedServer(delay_s=0.2) as server:
        asyncio.run(work(server))
        assert len(server.seen) == 1
        done, stats = fetch(server, tmp_path, 5)
    assert (stats.cached, stats.answered, len(done)) == (1, 4, 5)
    assert set(server.served.values()) == {1}
