"""Chat templates in Jinja: the sandbox that `transformers` renders them in, rebuilt without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sft_dist.core.cpu import cpu_limit
from sft_dist.core.errors import UserError

CPU_SECONDS = 5.0  # of one rendering, which takes milliseconds; what loops for ever is stopped there


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


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _dict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """`dict(...)` as a plain function: no attributes to climb."""
    return dict(*args, **kwargs)


def _environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    env.filters["tojson"] = _tojson
    env.globals |= {
        "raise_exception": _raise,
        "strftime_now": _strftime_now,
        "dict": _dict,
        "namespace": _Namespace,
    }
    return env


class ChatTemplate:
    """One compiled chat template.

    Args:
        text: Jinja text.
        specials: Named special tokens that the template may use, `bos_token` and so on.
        origin: Where the text came from, for messages.

    Raises:
        UserError: The text is not valid Jinja.
    """

    def __init__(self, text: str, specials: Mapping[str, str], origin: str) -> None:
        self.text = text
        self._specials = dict(specials)
        try:
            self._template = _environment().from_string(text)
        except TemplateSyntaxError as error:
            raise UserError(
                f"{origin} is not a valid chat template (line {error.lineno}: {error.message}), so no conversation can "
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
        try:
            with cpu_limit(CPU_SECONDS, TemplateError):
                return self._template.render(
                    messages=messages,
                    tools=list(tools) or None,
                    documents=None,
                    add_generation_prompt=generation,
                    **{**self._specials, **(variables or {})},
                )
        except TemplateError:
            raise
        except Exception as error:  # whatever an expression raises on a conversation it does not fit
            raise TemplateError(f"{type(error).__name__}: {error}") from error
