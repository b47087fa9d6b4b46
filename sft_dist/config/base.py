"""The base of every section: frozen, no unknown keys, and no value that only looks valid."""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

# What may change between the parts of one run: it alters neither the data nor the updates, or (length of the run) is
# recorded as an event. Every field without it decides the trajectory.
RESUMABLE: dict[str, JsonValue] = {"may_change": "run"}
# What may change, besides, when a sweep is relaunched: it makes trials neither better nor worse.
ANYTIME: dict[str, JsonValue] = {"may_change": "sweep"}
FOLDER_NAME = r"[A-Za-z0-9][A-Za-z0-9._=-]{0,99}"  # what the user names and we make a folder of
MAX_TEXT = 4096  # characters of a value: the longest path of Linux
MAX_NUMBER = 1 << 53  # whole numbers beyond it are not exact in JSON
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# texts that reach a tokenizer, never a shell, a path or a terminal as they are
MULTILINE = {"system", "strip_suffix"}


class Section(BaseModel):
    """One section of the config. Unknown keys are errors; values do not change after validation."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, values: Any) -> Any:
        """Refuse what pydantic would take silently: true for 1, control characters, numbers and texts without bound."""
        mistakes: list[InitErrorDetails] = []
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name) if isinstance(name, str) else None
            if field is None or "sft_dist.config" in str(field.annotation):
                continue  # unknown keys are refused later; sections check their own values
            try:
                _check(value, name, str(field.annotation))
            except ValueError as error:
                kind = PydanticCustomError("value_error", "{reason}", {"reason": str(error)})
                mistakes.append({"type": kind, "loc": (name,), "input": value})
        if mistakes:
            raise ValidationError.from_exception_data(cls.__name__, mistakes)
        return values


def _check(value: Any, name: str, annotation: str) -> None:
    # handed on as it is, to DeepSpeed, a server or a chat template
    free = "Any" in annotation or "JsonValue" in annotation
    for leaf in _leaves(value):
        if isinstance(leaf, bool):
            if not free and "bool" not in annotation:
                raise ValueError(f"{str(leaf).lower()} is not a value of this key; write a number or a text")
        elif abs(_whole_number(leaf, annotation)) > MAX_NUMBER:
            raise ValueError(f"a number beyond {MAX_NUMBER:,} is of no use here; write a smaller one")
        elif isinstance(leaf, float) and not math.isfinite(leaf):
            raise ValueError("this is infinite or not a number; write a finite one")
        elif isinstance(leaf, str) and name not in MULTILINE and not free:
            _check_text(leaf)


def _whole_number(leaf: Any, annotation: str) -> float:
    """Return the number that a leaf stands for where a whole one is meant: 1e17 and "1e17" end as one, too; else 0."""
    if isinstance(leaf, int):
        return leaf
    if "int" not in annotation or "float" in annotation or not isinstance(leaf, (float, str)):
        return 0
    try:
        number = float(leaf)
    except ValueError:
        return 0  # a text
    return number if math.isfinite(number) else 0


def _leaves(value: Any, depth: int = 0) -> list[Any]:
    """Return the leaves of plain containers, with the keys of mappings; sections check their own."""
    if depth > 16:
        raise ValueError("nested more than 16 deep; no key needs that")
    if isinstance(value, dict):
        return [x for k, v in value.items() for x in (k, *_leaves(v, depth + 1))]
    if isinstance(value, (list, tuple)):
        return [x for v in value for x in _leaves(v, depth + 1)]
    return [value]


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"a text of {len(text):,} characters; at most {MAX_TEXT:,} are taken")
    if odd := CONTROL.search(text):
        raise ValueError(
            f"holds the control character {odd[0]!r}, which a shell, a file name or a terminal would obey; take it out"
        )
    if re.search(r"://[^/@\s]*:[^/@\s]+@", text):
        raise ValueError(
            "is a URL that holds a password, which would be written into the run folder for all to read; "
            "take it out and give the credentials by environment variables"
        )
