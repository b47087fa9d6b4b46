"""Conversations (OpenAI messages, ShareGPT, OASST trees) -> Example, tools and reasoning included."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sft_dist.core.records import BadRecord, Example, Message, make_example
from sft_dist.sources.base import FileSource, RecordError, kind_of, text_field
from sft_dist.sources.files.data_files import RawRecord, data_files, read_records
from sft_dist.sources.messages import ROLE_NAMES, as_prompt, check_conversation, read_tools, read_turns

TURN_FIELDS = ("messages", "conversations", "conversation")
TURN_KEYS = {  # format -> (role field, content field) of a turn
    "messages": (("role", "content"),),
    "sharegpt": (("from", "value"),),
    "auto": (("role", "content"), ("from", "value")),
}
TEMPLATE_FIELDS = ("template_kwargs", "chat_template_kwargs")


class ChatReader(FileSource):
    """Reads one conversation, or the paths of one tree, from each record."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        format: str = "auto",  # noqa: A002  the config's name
        messages_field: str | None = None,
        paths: str = "best",
        prompts: bool = False,
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.ChatSource` for the meaning of the fields.

        Raises:
            UserError: When `path` names no data file.
        """
        self._format = format
        self._messages_field = messages_field
        self._paths = paths
        self._prompts = prompts
        options = {"format": format, "messages_field": messages_field, "paths": paths, "prompts": prompts}
        super().__init__(name, data_files(path), task=task, dataset=dataset, **options)

    def records(self) -> Iterator[RawRecord | BadRecord]:
        """Yield the records of the files."""
        return read_records(self._files)

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the conversation, or a conversation for each path of the tree that is used."""
        task, origin = self.task_of(fields), self.origin_of(fields)
        if self._format == "oasst" or (self._format == "auto" and isinstance(fields.get("prompt"), dict)):
            for messages in tree_paths(fields, every=self._paths == "all", prompts=self._prompts):
                yield make_example(task=task, source=self.name, messages=messages, origin=origin)
            return
        yield conversation(
            fields,
            task=task,
            source=self.name,
            origin=origin,
            format=self._format,
            messages_field=self._messages_field,
            prompt=self._prompts,
        )


def conversation(
    fields: Mapping[str, Any],
    *,
    task: str,
    source: str,
    origin: tuple[str, ...],
    format: str = "auto",  # noqa: A002  the config's name
    messages_field: str | None = None,
    prompt: bool = False,
) -> Example:
    """Build the example (or the prompt) of a record of messages or ShareGPT turns, or raise `RecordError`."""
    names = TURN_FIELDS if messages_field is None else (messages_field,)
    present = [n for n in names if n in fields]  # a table has every column in every row
    field = next((n for n in present if fields[n] is not None), next(iter(present), None))
    if field is None:
        wanted = " or ".join(repr(n) for n in names)
        raise RecordError(
            f"field {wanted} is missing (the record has {', '.join(list(map(str, fields))[:8]) or 'no fields'})"
        )
    messages = read_turns(fields[field], TURN_KEYS[format])
    if fields.get("system"):
        if any(m.role == "system" for m in messages):
            raise RecordError("there are both a 'system' field and a system turn")
        messages = (Message(role="system", content=text_field(fields, "system")), *messages)
    if prompt:
        messages = as_prompt(messages)
    else:
        check_conversation(messages)
    return make_example(
        task=task,
        source=source,
        messages=messages,
        tools=read_tools(fields.get("tools")),
        template_kwargs=_template_kwargs(fields),
        origin=origin,
    )


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
