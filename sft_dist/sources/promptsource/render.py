"""One template over one record -> its parts: prompt and answer, or whatever else skips the record."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError

from sft_dist.core.errors import UserError
from sft_dist.core.rng import derive
from sft_dist.core.template_sandbox import WORK, WORK_PER_CHAR, TooMuchWork
from sft_dist.sources.base import RecordError, record_origin
from sft_dist.sources.files.data_files import RawRecord
from sft_dist.sources.promptsource.environment import PromptEnvironment
from sft_dist.sources.promptsource.template_files import SEPARATOR, PromptTemplate

_CLOSE = re.compile(r"([-+]?)\}\}")
_CHANGES_LISTS = re.compile(r"\bappend\b")


class PromptRecord:
    """One record as templates see it: each "|||" inside its texts replaced by a mark of equal length."""

    def __init__(self, raw: RawRecord) -> None:
        text = repr(raw.fields)
        self.place = f"{raw.file}, line {raw.line}"
        self.origin = record_origin(raw.fields)
        self.work = WORK + WORK_PER_CHAR * len(text)
        # private-use characters that the record does not hold; `repr` spells them out
        self.mark = next(m for m in (chr(c) * 3 for c in range(0xE000, 0xF8FF)) if repr(m)[1:-1] not in text)
        self.fields: dict[str, Any] = (
            _replaced(raw.fields, SEPARATOR, self.mark) if SEPARATOR in text else raw.fields
        )

    def split(self, text: str) -> list[str]:
        """Return the stripped parts of a rendering, the record's own separators restored."""
        return [p.replace(self.mark, SEPARATOR).strip() for p in text.split(SEPARATOR)]


class CompiledTemplate:
    """One template, ready to render."""

    def __init__(
        self, template: PromptTemplate, environment: PromptEnvironment, truncate_chars: int | None, file: Path
    ) -> None:
        self.template = template
        text = template.jinja
        if truncate_chars is not None:
            # as promptsource does it: the filter binds to the last operand of an expression
            text = _CLOSE.sub(rf" | string | truncate({truncate_chars}) \1}}}}", text)
        try:
            self._prompt, written = environment.compile_template(text)
            self._needs = _needed(written, environment)
            self._choices = None
            if template.answer_choices is not None:
                self._choices, written = environment.compile_template(template.answer_choices)
                self._needs |= _needed(written, environment)
        except (TemplateSyntaxError, RecursionError) as error:
            line = f" (line {error.lineno} of it)" if isinstance(error, TemplateSyntaxError) else ""
            raise UserError(
                f"{file}: template {template.name!r} is not valid{line}: {error}; mend it, or leave it out with "
                f"template_names: ['!{template.name}']"
            ) from None
        self._copy = _CHANGES_LISTS.search(text + (template.answer_choices or "")) is not None

    def choices(self, record: PromptRecord, environment: PromptEnvironment, seed: int) -> list[str] | None:
        """Return the answers to choose from."""
        if self._choices is None:
            return None
        return record.split(self._run(self._choices, record, record.fields, environment, seed))

    def render(self, record: PromptRecord, environment: PromptEnvironment, seed: int) -> list[str]:
        """Return the stripped parts: two that are not empty are prompt and answer, all else skips the record.

        Raises:
            RecordError: When the template does not fit the record.
            UserError: When the template does what it may not, or too much.
        """
        if missing := sorted(self._needs - record.fields.keys()):
            raise RecordError(
                f"template {self.template.name!r} asks for field {missing[0]!r}, which is missing "
                f"(the record has {', '.join(list(record.fields)[:8])})"
            )
        choices = self.choices(record, environment, seed)
        protected = None if choices is None else [c.replace(SEPARATOR, record.mark) for c in choices]
        fields = copy.deepcopy(record.fields) if self._copy else record.fields
        variables = {**fields, "answer_choices": protected}
        return record.split(self._run(self._prompt, record, variables, environment, seed))

    def _run(
        self,
        template: Template,
        record: PromptRecord,
        variables: Mapping[str, Any],
        environment: PromptEnvironment,
        seed: int,
    ) -> str:
        try:
            return environment.render(
                template,
                variables,
                work=record.work,
                seed=lambda: derive(seed, "promptsource", record.origin, self.template.id),
            )
        except (TooMuchWork, SecurityError) as error:
            raise UserError(
                f"template {self.template.task!r} was stopped at {record.place}: {error}. It could harm or block the run; "
                f"mend it, or leave it out with template_names: ['!{self.template.name}']"
            ) from None
        except Exception as error:  # noqa: BLE001  whatever an expression raises on a record it does not fit
            raise RecordError(f"template {self.template.name!r}: {type(error).__name__}: {error}") from None


def _needed(written: nodes.Template, environment: PromptEnvironment) -> set[str]:
    """Return the fields that a template takes for granted: those it names, but for any it tests or gives a default."""
    optional = {
        node.node.name
        for node in written.find_all((nodes.Test, nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
    }
    return (
        meta.find_undeclared_variables(written) - environment.globals.keys() - optional - {"answer_choices"}
    )


def _replaced(value: Any, old: str, new: str) -> Any:
    """Return a copy of a record's value with each text replaced inside."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {k: _replaced(v, old, new) for k, v in value.items()}
    return [_replaced(v, old, new) for v in value] if isinstance(value, list) else value
