"""A record and its answer as pattern pairs see them: fields by dotted path, what can be answered, what is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.config.user_files import AnswerField, OptionList
from sft_dist.core.slots import SlotText
from sft_dist.sources.base import RecordError, kind_of

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a record was annotated with.

    Attributes:
        texts: Acceptable answers, the first of which is trained.
        options: What can be answered; empty where the answer is free.
        right: Number of the right option.
        rationale: What stood before the answer in its field; None: nothing is cut off.
    """

    texts: tuple[str, ...]
    options: tuple[str, ...] = ()
    right: int = 0
    rationale: str | None = None

    def slots(self, layout: OptionList, option: int | None = None) -> dict[str, str]:
        """Return the values of {answer}, {letter} and {options}; with another option in place of the right one if it is given."""
        number = self.right if option is None else option
        out = {"answer": self.options[number] if self.options else self.texts[0]}
        if self.options:
            line = SlotText.parse(layout.line)
            lines = [line.fill({"letter": _LETTERS[i], "text": t}) for i, t in enumerate(self.options)]
            out |= {
                "letter": _LETTERS[number],
                "options": "\n".join(([layout.head] if layout.head else []) + lines),
            }
        if self.rationale is not None:
            out["rationale"] = self.rationale
        return out


def read_answer(fields: Mapping[str, Any], how: AnswerField) -> Answer:
    """Return the answer of a record.

    Raises:
        RecordError: When it is missing, of the wrong kind, or none of what can be answered.
    """
    value = value_at(fields, how.field)
    if how.labels:
        names = (
            how.labels
            if isinstance(how.labels, dict)
            else {str(i): name for i, name in enumerate(how.labels)}
        )
        options = tuple(names.values())
        said = _plain(value)
        if said in names:
            return Answer(texts=(names[said],), options=options, right=options.index(names[said]))
        return _among(said, options, how.field, "labels")
    if how.choices:
        options = _choices(fields, how.choices)
        said = _plain(value)
        if how.letters is not None:
            letters = [_plain(v) for v in _list(fields, how.letters)]
            if said in letters and len(letters) == len(options):
                return Answer(
                    texts=(options[letters.index(said)],), options=options, right=letters.index(said)
                )
        elif said.isdecimal() and how.count_from <= int(said) < how.count_from + len(options):
            number = int(said) - how.count_from
            return Answer(texts=(options[number],), options=options, right=number)
        return _among(said, options, how.field, "choices")
    texts = tuple(
        dict.fromkeys(t for v in (value if isinstance(value, list) else [value]) if (t := _plain(v)))
    )
    if not texts:
        raise RecordError(f"field {how.field!r} holds no answer")
    if how.rationale_before is None:
        return Answer(texts=texts)
    rationale, found, answer = texts[0].rpartition(how.rationale_before)
    if not found or not answer.strip():
        raise RecordError(f"field {how.field!r} has no answer behind {how.rationale_before!r}")
    return Answer(texts=(answer.strip(),), rationale=rationale.strip())


def value_at(fields: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path; a list of objects gives the list of theirs.

    Raises:
        RecordError: When it is not there.
    """
    if path in fields:
        return fields[path]
    value: Any = fields
    for name in path.split("."):
        if isinstance(value, list) and value and all(isinstance(v, Mapping) and name in v for v in value):
            value = [v[name] for v in value]
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            raise RecordError(
                f"field {path!r} is missing (the record has {', '.join(list(map(str, fields))[:8])})"
            )
    return value


def text_at(fields: Mapping[str, Any], path: str) -> str:
    """Return the text at a dotted path; a list of texts joined by commas, empty for null.

    Raises:
        RecordError: When it is not there, or is an object.
    """
    value = value_at(fields, path)
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return "" if value is None else _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers with gaps
    if not isinstance(value, str | int | float):
        raise RecordError(f"a text is needed where the record holds {kind_of(value)}")
    return str(value).strip()


def _list(fields: Mapping[str, Any], path: str) -> list[Any]:
    value = value_at(fields, path)
    if not isinstance(value, list):
        raise RecordError(f"field {path!r} holds {kind_of(value)}, not a list")
    return value


def _choices(fields: Mapping[str, Any], paths: str | Sequence[str]) -> tuple[str, ...]:
    found = (
        [_plain(v) for v in _list(fields, paths)]
        if isinstance(paths, str)
        else [text_at(fields, p) for p in paths]
    )
    if not 2 <= len(found) <= len(_LETTERS) or not all(found):
        raise RecordError(
            f"there are {len(found)} texts to choose from, some of them empty perhaps, and 2 to {len(_LETTERS)} are needed"
        )
    return tuple(found)


def _among(said: str, options: tuple[str, ...], field: str, what: str) -> Answer:
    if said not in options:
        raise RecordError(f"field {field!r} holds {said!r}, which is none of the {what}")
    return Answer(texts=(said,), options=options, right=options.index(said))
