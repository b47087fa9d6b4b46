"""The HTTP client: cache, then budget, concurrency and pace, then attempts with exponential back-off."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, NoReturn, Self

import httpx

from sft_dist.client.cache import Cache
from sft_dist.client.errors import RefusedError, UnavailableError
from sft_dist.client.limits import AdaptiveConcurrency, RateLimiter, TokenBudget
from sft_dist.client.reply import RetryError, parse_completion, read_body, retry_after
from sft_dist.client.request import Completion, CompletionRequest
from sft_dist.core.errors import UserError

RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 529}
OVERLOADED = {429, 503, 504, 529}
REFUSED = {400, 413, 422}  # this request will never be answered
MOST_BACKOFF_S = 60.0
RATE_PATIENCE = 10  # a rate limit is no fault: so many times more attempts
REFUSED_IN_A_ROW = 20  # without a single answer: it is not the prompts
SHOWN_CHARS = 200  # of a server's own words


@dataclass(slots=True)
class Stats:
    """What a client did, in this process.

    Attributes:
        sent: HTTP requests, retries included.
        answered: Completions received.
        cached: Completions taken from the cache.
        refused: Requests that the server will never answer.
        retries: Attempts that failed, by kind: rate_limited, server_error, timeout, connection, cut_body, malformed.
        prompt_tokens: Tokens of prompts that were answered.
        completion_tokens: Tokens of completions.
        wasted_tokens: Estimated tokens of answers that arrived damaged.
    """

    sent: int = 0
    answered: int = 0
    cached: int = 0
    refused: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wasted_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return {name: getattr(self, name) for name in self.__slots__} | {"retries": dict(self.retries)}


class Client:
    """One server. Use it as an async context manager.

    Args:
        url: Base URL, up to and including /v1.
        cache: Where answers are kept.
        stats: Counted into; None: into its own.
        api_key_env: Environment variable that holds the key; the key is sent, and written nowhere.
        concurrency: Requests under way, at most; fewer while the server is overloaded (`limits.Window`).
        attempts: At one request, before the run stops. Answers of a rate limit hardly count.
        timeout_s: Of one attempt, from connecting to the last byte.
        backoff_s: Wait after the first failed attempt; it doubles, up to a minute, less up to half of it at random.
        requests_per_minute: Requests that may start in a minute; None: any number.
        tokens_per_minute: Tokens of prompts and completions a minute; None: any number.
        budget_tokens: Tokens that everything in the cache's folder may cost, earlier launches included; None: any number.
    """

    def __init__(
        self,
        *,
        url: str,
        cache: Cache,
        stats: Stats | None = None,
        api_key_env: str | None = None,
        concurrency: int = 16,
        attempts: int = 8,
        timeout_s: float = 600.0,
        backoff_s: float = 1.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        budget_tokens: int | None = None,
    ) -> None:
        self.stats = stats or Stats()
        self.concurrency = concurrency
        self._cache = cache
        self._key_name = api_key_env
        self._key = os.environ.get(api_key_env, "").strip() if api_key_env else ""
        self._attempts, self._timeout_s, self._backoff_s = attempts, timeout_s, backoff_s
        self._pace = RateLimiter(requests_per_minute, tokens_per_minute)
        self._budget = TokenBudget(budget_tokens, cache.tokens)
        self._window = AdaptiveConcurrency(concurrency)
        self._buying: dict[str, asyncio.Task[Completion]] = {}
        self._sent: set[str] = set()  # keys of those whose answer is on its way, or being written
        self._closing = False
        try:
            parsed = httpx.URL(url.rstrip("/") + "/")
        except httpx.InvalidURL as error:
            raise UserError(
                f"the server's url {url!r} cannot be read ({error}); it looks like http://127.0.0.1:8000/v1"
            ) from None
        if parsed.scheme not in {"http", "https"} or not parsed.host:
            raise UserError(f"the server's url {url!r} is not http; it looks like http://127.0.0.1:8000/v1")
        self._url = parsed
        self._http = httpx.AsyncClient(
            base_url=parsed,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(timeout_s, connect=min(30.0, timeout_s)),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            trust_env=not _is_loopback(
                parsed.host
            ),  # a cluster's proxy settings must not swallow a server next door
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        for key in self._buying.keys() - self._sent:
            self._buying[key].cancel()
        if self._buying:  # after Ctrl-C: what is on its way is paid for; a second Ctrl-C does not wait
            await asyncio.wait(self._buying.values())
        await self._http.aclose()
        self._cache.close()

    async def complete(self, request: CompletionRequest) -> Completion:
        """Return the answer to a request: from the cache, from an equal request under way, or bought.

        Raises:
            RefusedError: The server will not answer this request.
            BudgetSpentError: The budget does not allow it.
            UnavailableError: Every attempt failed.
            UserError: Address, key or model are wrong, or the cache cannot be written.
        """
        key = request.key()
        if found := self._cache.get(key):
            self.stats.cached += 1
            return Completion.from_dict(found)
        if key not in self._buying:
            self._buying[key] = asyncio.create_task(self._buy(request, key))
            self._buying[key].add_done_callback(lambda _: self._forget(key))
        return await asyncio.shield(self._buying[key])

    def _forget(self, key: str) -> None:
        del self._buying[key]
        self._sent.discard(key)

    async def _buy(self, request: CompletionRequest, key: str) -> Completion:
        await self._budget.reserve(request.most_tokens)
        try:
            completion = await self._persist(request, key)
        finally:
            await self._budget.settle(request.most_tokens)
        self.stats.answered += 1
        self.stats.prompt_tokens += completion.prompt_tokens
        self.stats.completion_tokens += completion.completion_tokens
        return completion

    async def _persist(self, request: CompletionRequest, key: str) -> Completion:
        """Attempt a request until it is answered."""
        failures: Counter[str] = Counter()
        while True:
            try:
                completion = await self._from_slot(request, key)
            except RetryError as error:
                self._sent.discard(key)
                failures[error.kind] += 1
                self.stats.retries[error.kind] += 1
                faults = failures.total() - failures["rate_limited"]
                over = faults >= self._attempts or failures["rate_limited"] >= RATE_PATIENCE * self._attempts
                if over or self._closing:
                    raise UnavailableError(
                        f"{self._url} did not answer a request in {failures.total()} attempts (the last: {error}); "
                        "what is answered is kept: run the same command again when the server is well"
                    ) from None
                backoff = min(MOST_BACKOFF_S, self._backoff_s * 2 ** (failures.total() - 1))
                await asyncio.sleep(
                    backoff * random.uniform(0.5, 1) if error.after_s is None else error.after_s
                )
            else:
                return completion

    async def _from_slot(self, request: CompletionRequest, key: str) -> Completion:
        """Attempt a request once, when its turn comes; what it cost is on disk before another takes its place."""
        async with self._window.slot() as sent:
            await self._pace.wait(request.most_tokens)
            self._sent.add(key)
            try:
                completion = await self._attempt(request, key)
            except RetryError as error:
                if error.overload:
                    self._window.overloaded(sent)
                    self._pace.pause(error.after_s or 0.0)  # holds for every request
                self.stats.wasted_tokens += error.wasted
                await self._keep("", {}, error.wasted, request)
                raise
            self._window.answered()
            await self._keep(key, completion.to_dict(), completion.tokens, request)
            return completion

    async def _keep(self, key: str, value: dict[str, Any], tokens: int, request: CompletionRequest) -> None:
        """Write down what a request brought and cost."""
        self._pace.correct(tokens - request.most_tokens)
        if key or tokens:
            await self._cache.put(key, value, tokens)
            self._budget.spent = self._cache.tokens

    async def _attempt(self, request: CompletionRequest, key: str) -> Completion:
        self.stats.sent += 1
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(
                    "POST",
                    request.endpoint,
                    content=json.dumps(
                        request.body()
                    ),  # ASCII: half of a surrogate pair in a prompt is no error
                    headers={"Content-Type": "application/json", "Idempotency-Key": key},
                ) as response,
            ):
                body = await read_body(response, request)
        except (TimeoutError, httpx.TimeoutException):
            raise RetryError("timeout", f"no whole answer in {self._timeout_s:g} s", overload=True) from None
        except httpx.TransportError as error:
            raise RetryError("connection", str(error) or type(error).__name__) from None
        if response.status_code != httpx.codes.OK:
            self._raise_for(response, body)
        return parse_completion(body, request)

    def _raise_for(self, response: httpx.Response, body: bytes) -> NoReturn:
        """Raise what a status other than 200 means."""
        status = response.status_code
        said = f"{status}: {self._words(body)}"
        if status in RETRIED:
            kind = "rate_limited" if status == httpx.codes.TOO_MANY_REQUESTS else "server_error"
            raise RetryError(kind, said, after_s=retry_after(response), overload=status in OVERLOADED)
        if status in REFUSED:
            self.stats.refused += 1
            if self.stats.refused >= REFUSED_IN_A_ROW and not self.stats.answered + self.stats.cached:
                raise UserError(
                    f"{self._url} refused all of the first {self.stats.refused} requests ({said}), so it is not the prompts; "
                    "look at the model's name and the sampling parameters"
                )
            raise RefusedError(said)
        if status in {401, 403}:
            key = (
                f"the key in ${self._key_name}"
                if self._key
                else f"a request without a key (${self._key_name} is empty)"
            )
            raise UserError(
                f"{self._url} refused {key} ({said}), so nothing can be generated; set the variable to a valid key"
            )
        raise UserError(
            f"{self._url} answered {said}, so nothing can be generated; check the url (it ends in /v1) and the model's name"
        )

    def _words(self, body: bytes) -> str:
        """Return what the server says, in one line and without the key."""
        text = body.decode("utf-8", "replace")
        try:
            fields = json.loads(text)
            error = fields.get("error", fields)
            text = (
                str(error.get("message", error.get("detail", text)))
                if isinstance(error, dict)
                else str(error)
            )
        except (ValueError, AttributeError, RecursionError):
            pass  # not JSON: its own words
        text = " ".join(text.split())
        return (text.replace(self._key, "***") if self._key else text)[:SHOWN_CHARS] or "no reason given"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
