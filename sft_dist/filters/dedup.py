"""Exact duplicates: what counts as equal. Whoever sees a whole source in order keeps the first of each key."""

from __future__ import annotations

import unicodedata

import xxhash

from sft_dist.core.records import Example


def duplicate_key(example: Example) -> int:
    """Return 128 bits that are equal for equal turns and tools, white space and Unicode form aside.

    Case counts (an answer may hang on it); loss weights, task, source and further references do not.
    """
    digest = xxhash.xxh3_128()
    for message in example.messages:
        parts = (message.role, message.content, message.reasoning_content, message.tool_call_id, message.name)
        calls = (part for call in message.tool_calls for part in (call.name, call.arguments))
        for part in (*parts, *calls):
            digest.update(_normal(part or "") + b"\x1f")
        digest.update(b"\x1e")
    for tool in example.tools:
        digest.update(_normal(tool) + b"\x1f")
    return digest.intdigest()


def _normal(text: str) -> bytes:
    text = text if text.isascii() else unicodedata.normalize("NFC", text)
    return " ".join(text.split()).encode("utf-8", "surrogatepass")
