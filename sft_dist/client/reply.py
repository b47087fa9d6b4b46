"""An HTTP answer -> a completion, or why the request is to be tried again."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx

from sft_dist.client.request import BYTES_A_TOKEN, Choice, Completion, CompletionRequest

MOST_PAUSE_S = 900.0  # of a Retry-After that is believed
MOST_BODY_BYTES = 1 << 26


class RetryError(Exception):
    """An attempt failed and another may not.

    Attributes:
        kind: As `Stats.retries` counts it.
        after_s: Seconds that the server asks to wait; None: it does not say.
        wasted: Tokens that were probably paid for in vain.
        overload: Whether the server has too much to do.
    """

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        after_s: float | None = None,
        wasted: int = 0,
        overload: bool = False,
    ) -> None:
        super().__init__(detail)
        self.kind, self.after_s, self.wasted, self.overload = kind, after_s, wasted, overload


async def read_body(response: httpx.Response, request: CompletionRequest) -> bytes:
    """Return the body; a body that ends early is a failed attempt that was probably paid for."""
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MOST_BODY_BYTES:
                raise RetryError(
                    "malformed",
                    f"the answer is longer than {MOST_BODY_BYTES:,} bytes",
                    wasted=request.most_tokens,
                )
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.DecodingError) as error:
        wasted = (
            request.prompt_tokens + len(body) // BYTES_A_TOKEN
            if response.status_code == httpx.codes.OK
            else 0
        )
        raise RetryError("cut_body", f"the answer ended early ({error})", wasted=wasted) from None
    return bytes(body)


def parse_completion(body: bytes, request: CompletionRequest) -> Completion:
    """Return the completion that a body holds."""
    wasted = request.prompt_tokens + len(body) // BYTES_A_TOKEN
    try:
        fields = json.loads(body)
        choices = tuple(_choice(c) for c in sorted(fields["choices"], key=lambda c: c.get("index") or 0))
        usage = fields.get("usage") or {}
        asked, answered = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RetryError(
            "malformed", f"the answer cannot be read ({type(error).__name__}: {error})", wasted=wasted
        ) from None
    if len(choices) != request.n:
        raise RetryError("malformed", f"{len(choices)} choices came instead of {request.n}", wasted=wasted)
    if isinstance(asked, int) and isinstance(answered, int) and min(asked, answered) >= 0:
        return Completion(choices=choices, prompt_tokens=asked, completion_tokens=answered)
    texts = "".join(c.text + (c.reasoning or "") for c in choices)
    return Completion(
        choices=choices,
        prompt_tokens=request.prompt_tokens,
        completion_tokens=len(texts.encode("utf-8", "surrogatepass")) // BYTES_A_TOKEN + 1,
        estimated=True,
    )


def _choice(fields: dict[str, Any]) -> Choice:
    """Read one choice of either endpoint; raises for one that is neither."""
    message = fields.get("message")
    text = fields["text"] if message is None else message.get("content")
    reasoning = None if message is None else message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(text, str | None) or not isinstance(reasoning, str | None):
        raise TypeError("a choice holds no text")
    return Choice(text or "", fields.get("finish_reason"), reasoning)


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds that the server asks to wait, from either form of Retry-After."""
    value = response.headers.get("Retry-After", "").strip()
    try:
        seconds = (
            float(value)
            if value.replace(".", "", 1).isdigit()
            else parsedate_to_datetime(value).timestamp() - time()
        )
    except (ValueError, TypeError):
        return None
    return min(MOST_PAUSE_S, max(0.0, seconds))
