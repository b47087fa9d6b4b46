"""Examples as the pipeline writes them (generated sets, evaluation sets): task, origin and references are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from sft_dist.core.records import Example, Message, Phrasing, TextWeight, make_example
from sft_dist.sources.base import FileSource, RecordError, kind_of, optional_text, text_field
from sft_dist.sources.files.data_files import data_files
from sft_dist.sources.marks import record_weight
from sft_dist.sources.messages import TurnFormat, check_conversation, read_turns
from sft_dist.verifiers.table import read_check


class ExamplesReader(FileSource):
    """Reads what `core.records.example_to_dict` wrote."""

    def __init__(self, name: str, *, path: str, task: str | None = None, dataset: str | None = None) -> None:
        """See `config.sources.ExamplesSource`; `task` takes the place of the records' own.

        Raises:
            UserError: When `path` names no data file.
        """
        super().__init__(name, data_files(path), task=task, dataset=dataset)

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the one example of a record."""
        turns = fields.get("messages")
        messages = read_turns(turns, TurnFormat())
        assert isinstance(turns, list)  # read_turns refuses anything else
        messages = tuple(_weighed(m, turn) for m, turn in zip(messages, turns, strict=True))
        if fields.get("form", "chat") == "chat":
            check_conversation(messages)
        start = fields.get("input_start")
        kwargs = fields.get("template_kwargs")
        if not isinstance(start, int | None) or not isinstance(kwargs, str | None):
            raise RecordError("'input_start' is not a number, or 'template_kwargs' not text")
        return [
            make_example(
                task=text_field(fields, "task") if self._task is None else self.task_of(fields),
                source=self.name,
                messages=messages,
                tools=_texts(fields, "tools"),
                template_kwargs=kwargs,
                references=_texts(fields, "references"),
                origin=tuple(dict.fromkeys((*_texts(fields, "origin"), *self.origin_of(fields)))),
                input_start=start,
                weight=record_weight(fields),
                form=fields.get("form", "chat"),
                question=optional_text(fields, "question") or None,
                demonstrations=_texts(fields, "demonstrations"),
                license=optional_text(fields, "license") or None,
                choices=_texts(fields, "choices"),
                phrasings=_phrasings(fields),
                checks=_checks(fields),
            )
        ]


def _weighed(message: Message, turn: Mapping[str, Any]) -> Message:
    """Return the message with the weights of its parts as `core.records.message_to_dict` writes them."""
    try:
        weights: dict[str, Any] = {k: float(turn[k]) for k in ("reasoning_weight", "end_weight") if k in turn}
        return replace(
            message,
            content_weights=tuple(
                TextWeight(int(start), int(end), float(w))
                for start, end, w in turn.get("content_weights", ())
            ),
            **weights,
        )
    except (TypeError, ValueError):
        raise RecordError("the weights of a turn's parts are not numbers") from None


def _phrasings(fields: Mapping[str, Any]) -> tuple[Phrasing, ...]:
    value = fields.get("phrasings", [])
    if not isinstance(value, list) or not all(
        isinstance(p, list) and len(p) == len(Phrasing._fields) and all(isinstance(t, str) for t in p)
        for p in value
    ):
        raise RecordError("'phrasings' is no list of [prompt, answer]")
    return tuple(Phrasing(*p) for p in value)


def _checks(fields: Mapping[str, Any]) -> tuple[str, ...]:
    checks = _texts(fields, "checks")
    try:
        for check in checks:
            read_check(check)
    except ValueError as error:
        raise RecordError(f"'checks': {error}") from None
    return checks


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise RecordError(f"field {name!r} holds {kind_of(value)}, not a list of texts")
    return tuple(value)
