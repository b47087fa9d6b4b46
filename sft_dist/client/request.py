"""What is asked and what comes back; the key under which an answer is kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple

from sft_dist.core.records import Drop
from sft_dist.core.rng import derive

Turns = tuple[Mapping[str, Any], ...]

SEED_MASK = (1 << 31) - 1  # what every server's parser takes
BYTES_A_TOKEN = 3  # of a prompt, estimated high: English has about four
TURN_TOKENS = 8  # of a chat template around one turn


@dataclass(frozen=True, kw_only=True, slots=True)
class CompletionRequest:
    """One request for completions.

    Attributes:
        model: Name of the model, as the server knows it.
        prompt: A text for /completions, or turns ({"role", "content"}) for /chat/completions.
        max_tokens: Most tokens of each completion.
        sampling: Further parameters as the server takes them: temperature, top_p, stop and so on.
        seed: The sampling seed (`request_seed`); None leaves it to the server.
        n: Completions that are asked for; a server may give fewer.
    """

    model: str
    prompt: str | Turns
    max_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1

    @property
    def endpoint(self) -> str:
        """Path below the base URL."""
        return "completions" if isinstance(self.prompt, str) else "chat/completions"

    def body(self) -> dict[str, Any]:
        """Return the JSON body."""
        asked = (
            {"prompt": self.prompt}
            if isinstance(self.prompt, str)
            else {"messages": [dict(t) for t in self.prompt]}
        )
        body: dict[str, Any] = {
            "model": self.model,
            **asked,
            "max_tokens": self.max_tokens,
            "n": self.n,
            **self.sampling,
        }
        return body if self.seed is None else {**body, "seed": self.seed}

    def key(self) -> str:
        """Return 32 hex digits over endpoint and body: everything that decides the answer but where the server runs."""
        text = json.dumps([self.endpoint, self.body()], sort_keys=True, separators=(",", ":"))
        return blake2b(text.encode(), digest_size=16).hexdigest()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, estimated high."""
        turns = [self.prompt] if isinstance(self.prompt, str) else [str(t["content"]) for t in self.prompt]
        return sum(len(t.encode("utf-8", "surrogatepass")) // BYTES_A_TOKEN + 1 + TURN_TOKENS for t in turns)

    @property
    def most_tokens(self) -> int:
        """Tokens that the request costs at most, as far as the prompt can be estimated."""
        return self.prompt_tokens + self.n * self.max_tokens


class Choice(NamedTuple):
    """One completion: its text, why it ended ("stop", "length", ...; None when the server does not say), its reasoning."""

    text: str
    finish_reason: str | None
    reasoning: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """The answer to a request: at most `Request.n` choices, and the tokens it cost (estimated if the server does not say)."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that it cost."""
        return self.prompt_tokens + self.completion_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields."""
        return {**asdict(self), "choices": [list(c) for c in self.choices]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Completion:
        """Inverse of `to_dict`."""
        return cls(**{**fields, "choices": tuple(Choice(*c) for c in fields["choices"])})


def request_seed(seed: int, item: str, attempt: int = 0) -> int:
    """Return the sampling seed of one attempt at one item: the same in every launch, whatever came before."""
    return derive(seed, "request", item, attempt) & SEED_MASK


def unusable(choice: Choice, *, allow_length: bool = False) -> Drop | None:
    """Return why a choice must not be used as an answer: it was cut off, filtered, or is no text."""
    if choice.finish_reason == "length" and not allow_length:
        return Drop("cut_off", "the completion reached max_tokens")
    if choice.finish_reason not in {None, "stop", "length", "eos", "end_turn", "stop_sequence"}:
        return Drop("finish_reason", f"the completion ended with {choice.finish_reason!r}")
    if not choice.text.strip():
        return Drop("empty", "the completion holds no text")
    return None
