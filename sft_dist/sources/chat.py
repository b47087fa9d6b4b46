"""Conversations (OpenAI messages, ShareGPT, OASST trees) -> Example, tools and reasoning included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sft_dist.core.records import Example, Message, Role, make_example
from sft_dist.sources.base import FileSource, RecordError, kind_of, license_of, text_field
from sft_dist.sources.files.data_files import data_files
from sft_dist.sources.marks import choose_roles, record_weight
from sft_dist.sources.messages import (
    ROLE_NAMES,
    TurnFormat,
    as_prompt,
    check_conversation,
    read_turns,
    tools_of,
)

TURN_FIELDS = ("messages", "conversations", "conversation", "contents")
TURN_KEYS = {  # format -> (role field, content field) of a turn
    "messages": (("role", "content"),),
    "sharegpt": (("from", "value"),),
    "auto": (
        ("role", "content"),
        ("from", "value"),
        ("role", "value"),
        ("speaker", "text"),
        ("role", "text"),
        ("role", "parts"),
    ),
}
TEMPLATE_FIELDS = ("template_kwargs", "chat_template_kwargs")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversationFormat:
    """Where the parts of a conversation stand in a record, and what of it carries loss."""

    fields: tuple[str, ...]
    turns: TurnFormat
    prompts: bool


def conversation_format(
    *,
    format: str = "auto",  # noqa: A002  the config's name
    messages_field: str | None = None,
    role_field: str | None = None,
    content_field: str | None = None,
    roles: Mapping[str, Role] | None = None,
    train_roles: tuple[Role, ...] | None = None,
    train_end_of_turn: bool = True,
    prompts: bool = False,
) -> ConversationFormat:
    """Return the format that the keys of a source describe; see `config.sources.ConversationSource`."""
    keys = TURN_KEYS.get(format, TURN_KEYS["auto"])
    if role_field or content_field:
        keys = tuple(dict.fromkeys((role_field or r, content_field or c) for r, c in keys))
    return ConversationFormat(
        fields=TURN_FIELDS if messages_field is None else (messages_field,),
        turns=TurnFormat(
            keys=keys,
            roles={word.strip().lower(): role for word, role in (roles or {}).items()},
            train_roles=train_roles,
            train_end_of_turn=train_end_of_turn,
        ),
        prompts=prompts,
    )


class ChatReader(FileSource):
    """Reads one conversation, or the paths of one tree, from each record."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        format: str = "auto",  # noqa: A002  the config's name
        paths: str = "best",
        task: str | None = None,
        dataset: str | None = None,
        **options: Any,
    ) -> None:
        """See `config.sources.ChatSource` for the meaning of the fields.

        Raises:
            UserError: When `path` names no data file.
        """
        self._trees = format
        self._paths = paths
        self._format = conversation_format(format=format, **options)
        super().__init__(
            name, data_files(path), task=task, dataset=dataset, format=format, paths=paths, **options
        )

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the conversation, or a conversation for each path of the tree that is used."""
        task, origin = self.task_of(fields), self.origin_of(fields)
        if self._trees == "oasst" or (self._trees == "auto" and isinstance(fields.get("prompt"), dict)):
            for messages in tree_paths(fields, every=self._paths == "all", prompts=self._format.prompts):
                yield make_example(
                    task=task,
                    source=self.name,
                    messages=messages,
                    origin=origin,
                    weight=record_weight(fields),
                    license=license_of(fields),
                )
            return
        yield conversation(fields, self._format, task=task, source=self.name, origin=origin)


def conversation(
    fields: Mapping[str, Any],
    form: ConversationFormat,
    *,
    task: str,
    source: str,
    origin: tuple[str, ...],
) -> Example:
    """Build the example (or the prompt) of a record of turns, or raise `RecordError`."""
    messages = _turns(fields, form)
    if fields.get("system"):
        if any(m.role == "system" for m in messages):
            raise RecordError("there are both a 'system' field and a system turn")
        messages = (Message(role="system", content=text_field(fields, "system")), *messages)
    if form.prompts:
        messages = as_prompt(messages)
    else:
        check_conversation(messages)
    return make_example(
        task=task,
        source=source,
        messages=messages,
        tools=tools_of(fields),
        template_kwargs=_template_kwargs(fields),
        origin=origin,
        weight=record_weight(fields),
        license=license_of(fields),
    )


def _turns(fields: Mapping[str, Any], form: ConversationFormat) -> tuple[Message, ...]:
    """Return the turns of a record: one list, or a prompt and its completion, of which the completion carries loss."""
    present = [n for n in form.fields if n in fields]  # a table has every column in every row
    name = next((n for n in present if fields[n] is not None), next(iter(present), None))
    if name is not None:
        return read_turns(fields[name], form.turns)
    if "prompt" in fields and ("completion" in fields or form.prompts):
        asked = _said(fields, "prompt", "user", form.turns)
        context = tuple(m if m.weight is not None else replace(m, weight=0.0) for m in asked)
        return context + (() if form.prompts else _said(fields, "completion", "assistant", form.turns))
    wanted = " or ".join(repr(n) for n in form.fields)
    raise RecordError(
        f"field {wanted} is missing (the record has {', '.join(list(map(str, fields))[:8]) or 'no fields'})"
    )


def _said(fields: Mapping[str, Any], name: str, role: Role, form: TurnFormat) -> tuple[Message, ...]:
    """Return the turns of a prompt or a completion: a list of them, or a text that is one."""
    value = fields[name]
    if not isinstance(value, list):
        return choose_roles(
            [Message(role=role, content=text_field(fields, name))],
            form.train_roles,
            end_of_turn=form.train_end_of_turn,
        )
    try:
        return read_turns(value, form)
    except RecordError as error:
        raise RecordError(f"{name}: {error}") from None


def tree_paths(fields: Mapping[str, Any], *, every: bool, prompts: bool = False) -> list[tuple[Message, ...]]:
    """Return conversations of an OASST tree, each ending in an assistant turn (or, of prompts, in a user turn).

    Deleted messages and those that failed review are left out with all their replies.

    Args:
        fields: The record; its field `prompt` is the root.
        every: All paths; an answer on several of them has loss weight 0 on all but the first, so that each answer is
            trained once. Else the path of the best-ranked replies.
        prompts: What is answered is wanted, not the answers.
    """
    root = fields.get("prompt")
    if not isinstance(root, dict):
        raise RecordError(f"field 'prompt' holds {kind_of(root)}, not the root of a tree")
    last = "user" if prompts else "assistant"
    paths: list[tuple[Message, ...]] = []
    used: set[tuple[int, ...]] = set()
    for nodes in _walk(root, (0,), every=every):
        while nodes and nodes[-1][1].role != last:
            nodes.pop()
        if not nodes or nodes[-1][0] in used:
            continue
        messages = tuple(replace(m, weight=0.0) if place in used else m for place, m in nodes)
        used.update(place for place, m in nodes if m.role == last)
        if prompts:
            messages = as_prompt(messages)
        else:
            check_conversation(messages)
        paths.append(messages)
    if not paths:
        raise RecordError(f"the tree holds no {last} turn{'' if prompts else ' to train on'}")
    return paths


def _walk(
    node: Mapping[str, Any], place: tuple[int, ...], *, every: bool
) -> Iterator[list[tuple[tuple[int, ...], Message]]]:
    """Yield root-to-leaf paths, best-ranked replies first; a node is (its place in the tree, its message)."""
    role = ROLE_NAMES.get(str(node.get("role")))
    if role is None:
        raise RecordError(f"unknown role {node.get('role')!r} in the tree")
    here = (place, Message(role=role, content=text_field(node, "text")))
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(r, dict) for r in replies):
        raise RecordError("a message's 'replies' is not a list of messages")
    kept = [r for r in replies if not r.get("deleted") and r.get("review_result") is not False]
    kept.sort(key=lambda r: r["rank"] if isinstance(r.get("rank"), int | float) else float("inf"))
    if not kept:
        yield [here]
    for i, reply in enumerate(kept if every else kept[:1]):
        for path in _walk(reply, (*place, i), every=every):
            yield [here, *path]


def _template_kwargs(fields: Mapping[str, Any]) -> str | None:
    value = next((fields[n] for n in TEMPLATE_FIELDS if fields.get(n)), None)
    if value is None:
        return None
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise RecordError(f"the template's variables cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise RecordError(f"the template's variables are {kind_of(value)}, not an object")
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
