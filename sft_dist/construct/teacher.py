"""The model that generates: how a prompt becomes a request, for servers of chat models and of plain language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sft_dist.client import Client, CompletionRequest, request_seed
from sft_dist.construct.prompts import Prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A model behind a client.

    Attributes:
        client: The server.
        model: The model's name there.
        chat: Whether it is asked with turns (/chat/completions) or continues a text (/completions).
        seed: The run's seed.
        extra: Parameters sent with every request.
        prompts: What it is asked with.
        progress: Told what is being done.
        key: Of the config, for messages.
    """

    client: Client
    model: str
    chat: bool
    seed: int
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompts: Prompts = field(default_factory=Prompts)
    progress: Callable[[str], None] = lambda _: None
    key: str = "construct.teacher"

    def request(
        self,
        prompt: str | tuple[Mapping[str, Any], ...],
        *,
        item: str,
        attempt: int = 0,
        max_tokens: int,
        sampling: Mapping[str, Any],
    ) -> CompletionRequest:
        """Return the request for one attempt at one item; a text is a user's turn to a chat model."""
        turns = ({"role": "user", "content": prompt},) if isinstance(prompt, str) and self.chat else prompt
        system = self.prompts.system
        if system and not isinstance(turns, str) and turns[0]["role"] != "system":
            turns = ({"role": "system", "content": system}, *turns)
        return CompletionRequest(
            model=self.model,
            prompt=turns,
            max_tokens=max_tokens,
            sampling={**sampling, **self.extra},
            seed=request_seed(self.seed, item, attempt),
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides its answers, for the key of a journal."""
        return {"model": self.model, "chat": self.chat, "seed": self.seed, "extra": dict(self.extra)}
