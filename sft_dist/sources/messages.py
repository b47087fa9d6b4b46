"""Turns of a conversation as data sets write them (OpenAI messages, ShareGPT) -> Message."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sft_dist.core.errors import nearest
from sft_dist.core.records import Message, Role, TextWeight, ToolCall
from sft_dist.sources.base import RecordError, kind_of
from sft_dist.sources.marks import choose_roles, spans_of, weight_of

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
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
_TAGGED_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
CALL_ROLES = ("function_call", "tool_call")  # ShareGPT: the value is the call, as JSON
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS = ("reasoning", "thinking")
CALL_PARTS = ("tool_call", "tool_calls", "function_call")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnFormat:
    """How a source writes its turns.

    Attributes:
        keys: Pairs of (role field, content field) that are accepted, the first that fits a turn counts.
        roles: Role words of the source, lower case, beside those that everybody uses.
        train_roles: Roles that carry loss where a turn does not say; None: `render.train_on` decides.
        train_end_of_turn: Whether the token that ends a turn carries loss.
    """

    keys: tuple[tuple[str, str], ...] = (("role", "content"),)
    roles: Mapping[str, Role] = field(default_factory=dict)
    train_roles: tuple[Role, ...] | None = None
    train_end_of_turn: bool = True


def read_turns(turns: Any, form: TurnFormat) -> tuple[Message, ...]:
    """Return the messages of a list of turns (or of one as a JSON string).

    Args:
        turns: The record's turns.
        form: How they are written.

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
            role_name, message = _read_turn(turn, form)
        except RecordError as error:
            raise RecordError(f"turn {number}: {error}") from None
        before = messages[-1] if messages and messages[-1].role == "assistant" else None
        if role_name in CALL_ROLES and before is not None and message.reasoning_content is None:
            # ShareGPT writes the call as a turn of its own; it belongs to what the assistant just said
            messages[-1] = _with_calls(before, message)
        else:
            messages.append(message)
    return choose_roles(messages, form.train_roles, end_of_turn=form.train_end_of_turn)


def _with_calls(said: Message, call: Message) -> Message:
    """Return the two turns of one assistant as one, each part with the loss weight that it had."""
    calls = said.tool_calls + call.tool_calls
    if said.weight == call.weight:
        return replace(said, tool_calls=calls)
    if said.weight is not None:
        whole = TextWeight(0, len(said.content), said.weight)
        said = replace(
            said,
            content_weights=said.content_weights or ((whole,) if said.content else ()),
            reasoning_weight=said.weight if said.reasoning_weight is None else said.reasoning_weight,
            tool_calls=tuple(
                replace(c, weight=said.weight if c.weight is None else c.weight) for c in said.tool_calls
            ),
        )
    later = tuple(replace(c, weight=call.weight if c.weight is None else c.weight) for c in call.tool_calls)
    return replace(said, weight=None, tool_calls=said.tool_calls + later, end_weight=call.weight)


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


def tools_of(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tool schemas of a record: its `tools`, or the `functions` of older files, which are the same without a frame."""
    tools, functions = read_tools(fields.get("tools")), read_tools(fields.get("functions"))
    if tools and functions:
        raise RecordError("there are both 'tools' and 'functions'; keep one")
    framed = ({"type": "function", "function": json.loads(f)} for f in functions)
    return tools or tuple(json.dumps(f, ensure_ascii=False) for f in framed)


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


def _read_turn(turn: Any, form: TurnFormat) -> tuple[str, Message]:
    """Return the role as written, and the message."""
    if not isinstance(turn, dict):
        raise RecordError(f"is {kind_of(turn)}, not an object")
    # a table has every column in every row, so that a null counts as absent where another spelling is there
    filled = {k for k, v in turn.items() if v is not None}
    role_key, content_key = next(
        (p for wanted in (set, lambda p: {p[0]}) for p in form.keys if wanted(p) <= filled), ("", "")
    )
    if not role_key and (named := next((r for r, _ in form.keys if r in turn), None)) is not None:
        raise RecordError(f"unknown role {turn[named]!r}")
    if not role_key:
        names = " or ".join(dict.fromkeys(repr(r) for r, _ in form.keys))
        raise RecordError(f"has no {names} field (it has {', '.join(map(str, turn))})")
    name = turn[role_key]
    word = name.strip().lower() if isinstance(name, str) else ""
    role = form.roles.get(word) or ROLE_NAMES.get(word)
    if role is None:
        raise RecordError(
            f"unknown role {name!r}.{nearest(str(name), ROLE_NAMES)} A source's `roles` says whose turns its own words name"
        )
    name = word
    weight = weight_of(turn)
    if name in CALL_ROLES and name not in form.roles:
        thoughts, calls = _thoughtful_calls(turn.get(content_key))
        return name, Message(
            role=role, content="", reasoning_content=thoughts, tool_calls=calls, weight=weight
        )
    content = _content(turn.get(content_key))
    calls = content.calls + read_calls(turn.get("tool_calls")) + read_calls(turn.get("function_call") or None)
    reasoning = next((turn[f] for f in REASONING_FIELDS if turn.get(f) is not None), content.reasoning)
    if reasoning is not None and not isinstance(reasoning, str):
        raise RecordError(f"its reasoning is {kind_of(reasoning)}, not text")
    if content.text is None and not (calls or reasoning):
        state = "is null" if content_key in turn else "is missing"
        raise RecordError(f"field {content_key!r} {state}, and there is no tool call")
    if role != "assistant" and (calls or reasoning):
        raise RecordError(
            f"a {role} turn holds {'tool calls' if calls else 'reasoning'}, which only an assistant turn can"
        )
    message = Message(
        role=role,
        content=content.text or "",
        reasoning_content=reasoning,
        tool_calls=calls,
        tool_call_id=_optional(turn, "tool_call_id"),
        name=_optional(turn, "name"),
        weight=weight,
        content_weights=content.weights,
        reasoning_weight=content.reasoning_weight,
    )
    return name, _weighed(message, turn)


def _weighed(message: Message, turn: Mapping[str, Any]) -> Message:
    """Return the message with the spans that its turn marks, and every part's weight times that of the turn."""
    if spans := spans_of(turn, message.content):
        if message.content_weights:
            raise RecordError("both its parts and its train_detail say what carries loss; keep one")
        message = replace(message, content_weights=spans)
    factor, thoughts = message.weight, message.reasoning_weight
    if factor is None:
        return message
    return replace(
        message,
        content_weights=tuple(
            w._replace(weight=w.weight * factor) for w in message.content_weights if factor
        ),
        reasoning_weight=None if thoughts is None or not factor else thoughts * factor,
        tool_calls=tuple(
            replace(c, weight=None if c.weight is None or not factor else c.weight * factor)
            for c in message.tool_calls
        ),
    )


class _Content(NamedTuple):
    """A content, its text and its reasoning each joined from their parts; weights only where parts are marked."""

    text: str | None
    weights: tuple[TextWeight, ...] = ()
    reasoning: str | None = None
    reasoning_weight: float | None = None
    calls: tuple[ToolCall, ...] = ()


def _content(value: Any) -> _Content:
    """Return what a content holds that is a text, null, or a list of parts."""
    if value is None or isinstance(value, str):
        return _Content(value)
    if not isinstance(value, list):
        raise RecordError(f"its content is {kind_of(value)}, not text or a list of parts")
    texts: list[str] = []
    weights: list[TextWeight] = []
    reasoning: list[tuple[str, float | None]] = []
    calls: tuple[ToolCall, ...] = ()
    length = 0
    for part in value:
        if not isinstance(part, str | dict):
            raise RecordError(f"a part of its content is {kind_of(part)}, not an object")
        kind, body, weight = ("text", part, None) if isinstance(part, str) else _part(part)
        if kind in CALL_PARTS:
            calls += tuple(c if c.weight is not None else replace(c, weight=weight) for c in read_calls(body))
        elif not isinstance(body, str):
            raise RecordError(f"the {kind} part of its content is {kind_of(body)}, not text")
        elif kind in REASONING_PARTS:
            reasoning.append((body, weight))
        else:
            texts.append(body)
            if weight is not None and body:
                weights.append(TextWeight(length, length + len(body), weight))
            length += len(body)
    if len({w for _, w in reasoning}) > 1:
        raise RecordError("its reasoning parts have several loss weights; give them one")
    return _Content(
        "".join(texts) if texts else None,
        tuple(weights),
        "".join(t for t, _ in reasoning) if reasoning else None,
        reasoning[0][1] if reasoning else None,
        calls,
    )


def _part(part: Mapping[str, Any]) -> tuple[str, Any, float | None]:
    """Return (kind, what it holds, loss weight) of a part of a content."""
    kind = part.get("type")
    if kind is None and isinstance(part.get("text"), str):
        kind = "text"  # Gemini's parts
    if kind not in (*TEXT_PARTS, *REASONING_PARTS, *CALL_PARTS):
        raise RecordError(
            f"a part of its content has type {kind!r}; only text, reasoning and tool calls can be read"
        )
    return kind, part.get("value", part.get(kind, part.get("text"))), weight_of(part)


def _thoughtful_calls(value: Any) -> tuple[str | None, tuple[ToolCall, ...]]:
    """Return (thoughts, calls) of a turn that is a call: JSON, in `<tool_call>` tags or bare, thoughts before it or none."""
    if not isinstance(value, str):
        return None, read_calls(value)
    head, closed, rest = value.rpartition("</think>")
    thoughts = head.strip().removeprefix("<think>").strip("\n") if closed else None
    tagged = _TAGGED_CALL.findall(rest)
    if tagged and not _TAGGED_CALL.sub("", rest).strip():
        return thoughts, tuple(c for text in tagged for c in read_calls(text))
    return thoughts, read_calls(rest)


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
                weight=weight_of(call),
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
