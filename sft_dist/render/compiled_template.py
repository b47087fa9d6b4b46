"""Text of a chat template -> a function from messages to text, as `transformers` renders it, without transformers.

The template runs in the sandbox of core/template_sandbox.py: its work, its memory and its compilation are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from sft_dist.core.errors import UserError
from sft_dist.core.template_sandbox import WORK, WORK_PER_CHAR, BudgetEnvironment, TooMuchWork, text_size

CPU_SECONDS = 5.0  # of one rendering, which takes milliseconds; the budget of work runs out before


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: accepted, and without effect: masks never come from it."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own protocol

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """`namespace()` that takes no name with a leading underscore, as in transformers."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set {name!r}")
        super().__setitem__(name, value)


def _raise(message: str) -> None:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Like jinja2's own filter, without escaping for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """`dict(...)` as a plain function: no attributes to climb."""
    return dict(*args, **kwargs)


class ChatTemplate:
    """One compiled chat template.

    Args:
        text: Jinja text.
        specials: Named special tokens that the template may use, `bos_token` and so on.
        origin: Where the text came from, for messages.
        clock: What `strftime_now` reads; None: now.

    Raises:
        UserError: The text is not valid Jinja.
    """

    def __init__(
        self, text: str, specials: Mapping[str, str], origin: str, clock: datetime | None = None
    ) -> None:
        self.text = text
        self._specials = dict(specials)
        self._environment = BudgetEnvironment(
            cpu_seconds=CPU_SECONDS,
            filters={"tojson": _tojson},
            variables={
                "raise_exception": _raise,
                "strftime_now": (clock or datetime.now()).strftime,
                "dict": _dict,
                "namespace": _Namespace,
            },
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
        )
        try:
            self._template, _ = self._environment.compile_template(text)
        except (TemplateSyntaxError, RecursionError) as error:
            line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
            raise UserError(
                f"{origin} is not a valid chat template ({line}{error}), so no conversation can "
                "be rendered; mend it, or choose a built-in template with render.template"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] = (),
        generation: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the rendered conversation.

        Raises:
            jinja2.TemplateError: The template refuses the conversation, does not fit it, or does not end.
        """
        given = {
            **self._specials,
            **(variables or {}),
            "messages": messages,
            "tools": list(tools) or None,
            "add_generation_prompt": generation,
        }
        given.setdefault("documents", None)
        try:
            return self._environment.render(
                self._template, given, work=WORK + WORK_PER_CHAR * text_size(messages, tools)
            )
        except TemplateError:
            raise
        except TooMuchWork as error:
            raise TemplateError(f"it was stopped: {error}") from error
        except Exception as error:  # whatever an expression raises on a conversation it does not fit
            raise TemplateError(f"{type(error).__name__}: {error}") from error
