"""Turns of a conversation as data sets write them (OpenAI messages, ShareGPT) -> Message."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sft_dist.core.errors import nearest
from sft_dist.core.records import Message, Role, ToolCall
from sft_dist.sources.base import RecordError, kind_of

ROLE_NAMES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
CALL_ROLES = ("function_call", "tool_call")  # ShareGPT: the value is the call, as JSON
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "tool_calls", "function_call")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
WEIGHT_FIELDS = ("loss_weight", "weight", "train")


def read_turns(turns: Any, keys: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
    """Return the messages of a list of turns (or of one as a JSON string).

    Args:
        turns: The record's turns.
        keys: Pairs of (role field, content field) that are accepted.

    Raises:
        RecordError: When a turn cannot be read; the reason names it by its number from 1.
    """
    turns = _parsed(turns, "the turns") if isinstance(turns, str) else turns
    if not isinstance(turns, list):
        raise RecordError(f"the turns are {kind_of(turns)}, not a list")
    if not turns:
        raise RecordError("the list of turns is empty")
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        try:
            role_name, message = _read_turn(turn, keys)
        except RecordError as error:
            raise RecordError(f"turn {number}: {error}") from None
        if role_name in CALL_ROLES and messages and messages[-1].role == "assistant":
            # ShareGPT writes the call as a turn of its own; it belongs to what the assistant just said
            messages[-1] = replace(messages[-1], tool_calls=messages[-1].tool_calls + message.tool_calls)
        else:
            messages.append(message)
    return tuple(messages)


def as_prompt(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the turns up to the last user turn; earlier answers are context, which carries no loss.

    Raises:
        RecordError: When the first turn after system turns is not a user's, or the last user turn is empty.
    """
    _check_first(messages)
    last = max(i for i, m in enumerate(messages) if m.role == "user")
    if not messages[last].content.strip():
        raise RecordError("the prompt is empty")
    return tuple(replace(m, weight=0.0) if m.role == "assistant" else m for m in messages[: last + 1])


def check_conversation(messages: Sequence[Message]) -> None:
    """Raise `RecordError` unless a user speaks first (after system turns) and an assistant answers."""
    _check_first(messages)
    if not any(m.role == "assistant" for m in messages):
        raise RecordError("there is no assistant turn to train on")


def _check_first(messages: Sequence[Message]) -> None:
    first = next((m for m in messages if m.role != "system"), None)
    if first is None:
        raise RecordError("there are only system turns")
    if first.role != "user":
        raise RecordError(f"the first turn that is not a system turn is {first.role}, not user")


def read_tools(value: Any) -> tuple[str, ...]:
    """Return tool schemas, each as one JSON string, from a list or from a JSON string of one."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    value = _parsed(value, "'tools'") if isinstance(value, str) else value
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise RecordError(f"'tools' is {kind_of(value)}, not a list of schemas")
    schemas = [_parsed(v, "an entry of 'tools'") if isinstance(v, str) else v for v in value]
    for schema in schemas:
        if not isinstance(schema, dict):
            raise RecordError(f"an entry of 'tools' is {kind_of(schema)}, not a schema")
    return tuple(json.dumps(s, ensure_ascii=False) for s in schemas)


def _read_turn(turn: Any, keys: Sequence[tuple[str, str]]) -> tuple[str, Message]:
    """Return the role as written, and the message."""
    if not isinstance(turn, dict):
        raise RecordError(f"is {kind_of(turn)}, not an object")
    # a table has every column in every row, so that a null counts as absent where another spelling is there
    named = [pair for pair in keys if pair[0] in turn]
    role_key, content_key = next((p for p in named if turn[p[0]] is not None), (named or [("", "")])[0])
    if not role_key:
        raise RecordError(
            f"has no {' or '.join(repr(r) for r, _ in keys)} field (it has {', '.join(map(str, turn))})"
        )
    name = turn[role_key]
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None or not isinstance(name, str):
        raise RecordError(f"unknown role {name!r}.{nearest(str(name), ROLE_NAMES)}")
    name = name.strip().lower()
    if name in CALL_ROLES:
        calls = read_calls(turn.get(content_key))
        return name, Message(role=role, content="", tool_calls=calls, weight=_weight(turn))
    content, reasoning, calls = _content(turn.get(content_key))
    calls += read_calls(turn.get("tool_calls")) + read_calls(turn.get("function_call"))
    reasoning = next((turn[f] for f in REASONING_FIELDS if turn.get(f) is not None), reasoning)
    if reasoning is not None and not isinstance(reasoning, str):
        raise RecordError(f"its reasoning is {kind_of(reasoning)}, not text")
    if content is None and not (calls or reasoning):
        state = "is null" if content_key in turn else "is missing"
        raise RecordError(f"field {content_key!r} {state}, and there is no tool call")
    if role != "assistant" and (calls or reasoning):
        raise RecordError(
            f"a {role} turn holds {'tool calls' if calls else 'reasoning'}, which only an assistant turn can"
        )
    return name, Message(
        role=role,
        content=content or "",
        reasoning_content=reasoning,
        tool_calls=calls,
        tool_call_id=_optional(turn, "tool_call_id"),
        name=_optional(turn, "name"),
        weight=_weight(turn),
    )


def _content(value: Any) -> tuple[str | None, str | None, tuple[ToolCall, ...]]:
    """Return (text, reasoning, tool calls) of a content that is a text, null, or a list of parts."""
    if value is None or isinstance(value, str):
        return value, None, ()
    if not isinstance(value, list):
        raise RecordError(f"its content is {kind_of(value)}, not text or a list of parts")
    texts: list[str] = []
    reasoning: list[str] = []
    calls: tuple[ToolCall, ...] = ()
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise RecordError(f"a part of its content is {kind_of(part)}, not an object")
        kind = part.get("type")
        body = part.get("value", part.get(str(kind), part.get("text")))
        if kind in CALL_PARTS:
            calls += read_calls(body)
        elif kind not in (*TEXT_PARTS, *REASONING_PARTS):
            raise RecordError(
                f"a part of its content has type {kind!r}; only text, reasoning and tool calls can be read"
            )
        elif not isinstance(body, str):
            raise RecordError(f"the {kind} part of its content is {kind_of(body)}, not text")
        else:
            (texts if kind in TEXT_PARTS else reasoning).append(body)
    return "\n\n".join(texts) if texts else None, "\n\n".join(reasoning) if reasoning else None, calls


def read_calls(value: Any) -> tuple[ToolCall, ...]:
    """Return the tool calls of a call, a list of calls, or a JSON string of either."""
    if value is None:
        return ()
    value = _parsed(value, "a tool call") if isinstance(value, str) else value
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict):
            raise RecordError(f"a tool call is {kind_of(call)}, not an object")
        body = call["function"] if isinstance(call.get("function"), dict) else call
        name = body.get("name")
        if not isinstance(name, str) or not name:
            raise RecordError("a tool call has no 'name'")
        identity = call.get("id")
        calls.append(
            ToolCall(
                name=name,
                arguments=_arguments(body, name),
                id=identity if isinstance(identity, str) else None,
            )
        )
    return tuple(calls)


def _arguments(body: Mapping[str, Any], name: str) -> str:
    """Return the arguments as the JSON string that was written; an object is written out."""
    value: Any = next((body[k] for k in ("arguments", "parameters") if body.get(k) is not None), {})
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    _parsed(value, f"the arguments of the call of {name!r}")
    return value


def _weight(turn: Mapping[str, Any]) -> float | None:
    for field in WEIGHT_FIELDS:
        value = turn.get(field)
        if value is None:
            continue
        if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise RecordError(f"field {field!r} holds {value!r}, not a loss weight of 0 or more")
        return float(value)
    return None


def _optional(turn: Mapping[str, Any], key: str) -> str | None:
    value = turn.get(key)
    if value is not None and not isinstance(value, str):
        raise RecordError(f"field {key!r} holds {kind_of(value)}, not text")
    return value


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{what} cannot be read as JSON: {error}") from None
