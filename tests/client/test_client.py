"""The client against a server that misbehaves: every fault is survived and counted, nothing is bought twice."""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
from scripted_server import Fault, ScriptedServer, prompt_of, status

from sft_dist.client import (
    BudgetSpentError,
    Cache,
    Choice,
    Client,
    Completion,
    CompletionRequest,
    RefusedError,
    UnavailableError,
    map_in_order,
    request_seed,
    unusable,
)
from sft_dist.core.errors import UserError

FAST = {"backoff_s": 0.01, "timeout_s": 5.0}


def ask(text: str, **options) -> CompletionRequest:
    return CompletionRequest(
        **{"model": "m", "prompt": ({"role": "user", "content": text},), "max_tokens": 16, **options}
    )


def run(server: ScriptedServer, folder, requests, **options):
    """Complete requests side by side; return (completions or the first error, stats)."""

    async def work():
        async with Client(url=server.url, cache=Cache(folder), **{**FAST, **options}) as client:
            done = await asyncio.gather(*(client.complete(r) for r in requests), return_exceptions=True)
            return done, client.stats

    return asyncio.run(work())


def once(fault: Fault):
    return lambda n, _: fault if n == 0 else None


FAULTS = {
    "rate_limited": status(429, Retry_After="0"),
    "server_error": status(500),
    "connection": Fault("reset"),
    "cut_body": Fault("cut"),
    "malformed": Fault("not_json"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_tried_again_and_counted(tmp_path, kind):
    with ScriptedServer(answer=lambda _: "four", faults=once(FAULTS[kind])) as server:
        (completion,), stats = run(server, tmp_path, [ask("2 + 2?")])
    assert completion.choices == (Choice("four", "stop"),)
    assert dict(stats.retries) == {kind: 1}
    assert (stats.sent, stats.answered, stats.refused) == (2, 1, 0)


def test_an_answer_without_a_choice_and_a_server_that_hangs_up_are_tried_again(tmp_path):
    script = [Fault("no_choices"), Fault("silent"), status(503), None]
    with ScriptedServer(faults=lambda n, _: script[n]) as server:
        (completion,), stats = run(server, tmp_path, [ask("x")])
    assert completion.choices[0].text == "fine"
    assert dict(stats.retries) == {"malformed": 1, "connection": 1, "server_error": 1}


def test_a_slow_answer_times_out_and_is_tried_again(tmp_path):
    with ScriptedServer(faults=once(Fault("slow", seconds=3))) as server:
        began = time.monotonic()
        (completion,), stats = run(server, tmp_path, [ask("x")], timeout_s=0.3)
    assert completion.choices[0].text == "fine"
    assert dict(stats.retries) == {"timeout": 1}
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for_by_every_request(tmp_path, form):
    def faults(n, _):
        after = (
            "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        )  # a date has whole seconds
        return status(429, Retry_After=after) if n == 0 else None

    with ScriptedServer(faults=faults) as server:
        began = time.monotonic()
        done, stats = run(server, tmp_path, [ask("a"), ask("b")], concurrency=1)
    assert [c.choices[0].text for c in done] == ["fine", "fine"]
    assert time.monotonic() - began >= 0.95
    assert stats.sent == 3


def test_a_server_that_stays_down_is_one_sentence_and_keeps_what_is_done(tmp_path):
    with ScriptedServer(faults=lambda _, body: status(500) if "bad" in prompt_of(body) else None) as server:
        (good, bad), stats = run(server, tmp_path, [ask("good"), ask("bad")], attempts=3)
        assert good.choices[0].text == "fine"
        assert isinstance(bad, UnavailableError)
        assert "did not answer a request in 3 attempts (the last: 500: scripted)" in str(bad)
        again, _ = run(server, tmp_path, [ask("good")])
    assert again[0] == good
    assert sum(server.served.values()) == 1
    assert stats.retries["server_error"] == 3


def test_nobody_listens(tmp_path):
    with ScriptedServer() as server:
        url = server.url

    async def work():
        async with Client(url=url, cache=Cache(tmp_path), attempts=2, backoff_s=0.01) as client:
            await client.complete(ask("x"))

    with pytest.raises(UnavailableError, match="in 2 attempts"):
        asyncio.run(work())


def test_a_refused_request_does_not_stop_the_others(tmp_path):
    with ScriptedServer(
        faults=lambda _, b: status(400, "too long") if "long" in prompt_of(b) else None
    ) as server:
        (long, short), stats = run(server, tmp_path, [ask("long"), ask("short")])
    assert isinstance(long, RefusedError)
    assert str(long) == "400: too long"
    assert short.choices[0].text == "fine"
    assert (stats.sent, stats.refused) == (2, 1)


def test_a_server_that_refuses_everything_is_the_users_mistake(tmp_path):
    with ScriptedServer(faults=lambda *_: status(400, "unknown parameter foo")) as server:
        done, _ = run(server, tmp_path, [ask(str(i)) for i in range(20)], concurrency=1)
    assert isinstance(done[-1], UserError)
    assert "unknown parameter foo" in str(done[-1])


def test_the_key_is_sent_and_written_nowhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with ScriptedServer(faults=once(status(401, "Incorrect API key provided: sk-very-secret"))) as server:
        (error,), _ = run(server, tmp_path, [ask("x")], api_key_env="MY_KEY")
        run(server, tmp_path, [ask("x")], api_key_env="MY_KEY")
    assert isinstance(error, UserError)
    assert "$MY_KEY" in str(error)
    assert "secret" not in str(error)
    assert server.seen[1].headers["authorization"] == "Bearer sk-very-secret"
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_wrong_model_or_path_is_one_sentence(tmp_path):
    with ScriptedServer(faults=lambda *_: status(404, "the model `m` does not exist")) as server:
        (error,), _ = run(server, tmp_path, [ask("x")])
    assert isinstance(error, UserError)
    assert "404: the model `m` does not exist" in str(error)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", ""])
def test_a_url_that_is_none(tmp_path, url):
    with pytest.raises(UserError, match="url"):
        Client(url=url, cache=Cache(tmp_path))


def test_proxy_settings_do_not_swallow_a_server_on_this_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with ScriptedServer() as server:
        (completion,), _ = run(server, tmp_path, [ask("x")], attempts=1)
    assert completion.choices[0].text == "fine"


def test_both_endpoints_several_choices_and_a_server_that_does_not_count(tmp_path):
    with ScriptedServer(answer=lambda _: "one two", usage=False) as server:
        requests = [
            ask("x", n=2),
            CompletionRequest(model="m", prompt="x y", max_tokens=16, sampling={"top_p": 0.5}, seed=7),
        ]
        (chat, plain), stats = run(server, tmp_path, requests, concurrency=1)
    assert [s.path for s in server.seen] == ["/v1/chat/completions", "/v1/completions"]
    assert server.seen[1].body == {
        "model": "m", "prompt": "x y", "max_tokens": 16, "n": 1, "top_p": 0.5, "seed": 7,
    }  # fmt: skip
    assert len(chat.choices) == 2
    assert (plain.choices, plain.estimated) == ((Choice("one two", "stop"),), True)
    assert stats.completion_tokens > 0


def test_reasoning_is_kept_apart(tmp_path):
    body = {"choices": [{"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}]}
    with ScriptedServer(faults=once(Fault("status", 200, {}, json.dumps(body)))) as server:
        (completion,), _ = run(server, tmp_path, [ask("x")])
    assert completion.choices == (Choice("", "length", "hm"),)


def test_concurrency_is_kept(tmp_path):
    with ScriptedServer(delay_s=0.05) as server:
        run(server, tmp_path, [ask(str(i)) for i in range(12)], concurrency=3)
    assert server.peak == 3


def test_requests_per_minute(tmp_path):
    with ScriptedServer() as server:
        began = time.monotonic()
        run(server, tmp_path, [ask(str(i)) for i in range(6)], requests_per_minute=600)
    assert time.monotonic() - began >= 0.5  # five gaps of a tenth of a second


def test_tokens_per_minute_counts_what_requests_really_cost(tmp_path):
    with ScriptedServer(answer=lambda _: "word " * 99) as server:  # 1 + 99 tokens
        began = time.monotonic()
        run(
            server,
            tmp_path,
            [ask(str(i), max_tokens=100) for i in range(5)],
            tokens_per_minute=60_000,
            concurrency=1,
        )
    assert 0.4 <= time.monotonic() - began < 2.0


def test_equal_requests_are_bought_once(tmp_path):
    with ScriptedServer(delay_s=0.05) as server:
        done, stats = run(server, tmp_path, [ask("x")] * 5)
        run(server, tmp_path, [ask("x")] * 5)
        run(server, tmp_path, [ask("x", seed=1)])
    assert len({c.choices for c in done}) == 1
    assert len(server.seen) == 2  # another seed is another request
    assert stats.answered == 1


def test_the_budget_is_never_passed_and_counts_earlier_launches(tmp_path):
    budget = 5 * 30  # each request reserves 9 + 16 and costs 1 + 10
    with ScriptedServer(answer=lambda _: "word " * 10) as server:
        done, stats = run(
            server, tmp_path, [ask(str(i)) for i in range(30)], budget_tokens=budget, concurrency=4
        )
        bought = [c for c in done if isinstance(c, Completion)]
        assert {type(c) for c in done} == {Completion, BudgetSpentError}
        assert sum(c.tokens for c in bought) <= budget
        assert len(bought) >= (budget - 25) // 11
        assert Cache(tmp_path).tokens == stats.prompt_tokens + stats.completion_tokens
        again, _ = run(server, tmp_path, [ask("31")], budget_tokens=budget)
        assert isinstance(again[0], BudgetSpentError)
        more, _ = run(server, tmp_path, [ask(str(i)) for i in range(30)], budget_tokens=2000)
    assert all(isinstance(c, Completion) for c in more)
    assert set(server.served.values()) == {1}


def test_an_answer_that_arrives_damaged_is_charged(tmp_path):
    with ScriptedServer(faults=once(Fault("not_json"))) as server:
        (completion,), stats = run(server, tmp_path, [ask("x")])
    assert stats.wasted_tokens > 0
    assert Cache(tmp_path).tokens == completion.tokens + stats.wasted_tokens


def test_a_torn_line_and_a_damaged_one_are_left_out(tmp_path):
    with ScriptedServer() as server:
        run(server, tmp_path, [ask("a")])
        run(server, tmp_path, [ask("b")])
        first, second = sorted(tmp_path.glob("segment-*.jsonl"))
        first.write_bytes(first.read_bytes()[:-5])
        second.write_bytes(second.read_bytes().replace(b'"choices"', b'"ch\xff'))
        done, _ = run(server, tmp_path, [ask("a"), ask("b")])
    assert [c.choices[0].text for c in done] == ["fine", "fine"]
    assert len(server.seen) == 4


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with ScriptedServer() as server:
        monkeypatch.setattr(os, "fsync", full)
        (error,), _ = run(server, tmp_path, [ask("x")])
    assert isinstance(error, UserError)
    assert "No space left on device" in str(error)


def test_results_come_in_the_order_of_the_items_and_the_rest_is_finished_after_a_failure():
    finished = []

    async def work(i: int) -> int:
        await asyncio.sleep(random.Random(i).uniform(0, 0.02))
        if i == 5:
            raise ValueError(i)
        finished.append(i)
        return i * i

    async def collect():
        got = []
        with pytest.raises(ValueError):
            async for item, result in map_in_order(iter(range(1000)), work, ahead=4):
                got.append((item, result))
        return got

    assert asyncio.run(collect()) == [(i, i * i) for i in range(5)]
    assert set(range(5)) <= set(finished) <= set(range(9))


def test_what_must_not_be_used():
    assert unusable(Choice("text", "stop")) is None
    assert unusable(Choice("text", None)) is None
    assert unusable(Choice("text", "length")).reason == "cut_off"
    assert unusable(Choice("text", "length"), allow_length=True) is None
    assert unusable(Choice("text", "content_filter")).reason == "finish_reason"
    assert unusable(Choice(" \n", "stop")).reason == "empty"


def test_keys_and_seeds():
    assert ask("x").key() == ask("x").key()
    others = [ask("y"), ask("x", model="n"), ask("x", n=2), ask("x", seed=1), ask("x", max_tokens=17)]
    others += [
        ask("x", sampling={"temperature": 0.5}),
        CompletionRequest(model="m", prompt="x", max_tokens=16),
    ]
    assert len({r.key() for r in [ask("x"), *others]}) == 8
    assert request_seed(0, "a", 0) == request_seed(0, "a")
    assert len({request_seed(s, i, a) for s in (0, 1) for i in "ab" for a in (0, 1)}) == 8
    assert all(0 <= request_seed(0, str(i)) < 2**31 for i in range(100))


def test_half_a_surrogate_pair_is_no_crash(tmp_path):
    with ScriptedServer(answer=lambda _: "x \ud800 y") as server:
        (completion,), _ = run(server, tmp_path, [ask("half \ud83d")])
        (again,), _ = run(server, tmp_path, [ask("half \ud83d")])
    assert completion == again
    assert completion.choices[0].text == "x \ud800 y"


def test_no_torch():
    code = "import sys, sft_dist.client, sft_dist.construct; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
