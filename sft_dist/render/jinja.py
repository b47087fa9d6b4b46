"""Chat templates in Jinja: the sandbox that `transformers` renders them in, rebuilt without transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from sft_dist.core.errors import UserError
from sft_dist.core.process import cpu_limit
from sft_dist.render.template_outline import CLOSE, OPEN

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


_SAID = tuple(f"{OPEN}{i}{CLOSE}" for i in range(4))


def inspect_template(
    text: str, specials: Mapping[str, str], controls: re.Pattern[str], origin: str
) -> tuple[str, tuple[str, ...]]:
    """Return the template (with a generation prompt if it had none) and the control tokens that end an answer.

    Args:
        text: Jinja text.
        specials: Named special tokens.
        controls: Pattern of control tokens.
        origin: Where the template came from, for messages.

    Raises:
        UserError: The template cannot render one question and one answer, or its answers end with no control token,
            or it has no generation prompt and its headers cannot be told from the text before them.
    """
    template = ChatTemplate(text, specials, origin)
    full = _render(template, 2, origin)
    stops = _stops(template, full, controls, origin)
    history, prompt = _render(template, 1, origin), _render(template, 1, origin, generation=True)
    if prompt != history:
        return text, stops
    before = full[: full.index(_SAID[1])]
    header = before[_common(history, before) :].rstrip(" ")  # a space belongs to the word that follows it
    if not header.strip():
        return text, stops  # the question itself ends in what calls for an answer, as in "[/INST]"
    if not before.startswith(history):
        raise UserError(
            f"{origin} ignores add_generation_prompt, and what it writes before an answer cannot be told from the turn "
            "before, so generation would not see what training saw; add a generation prompt to the template"
        )
    line = text.removesuffix("\n")  # Jinja drops a last newline, and no longer would
    return f"{line}{{% if add_generation_prompt %}}{{{{ {json.dumps(header)} }}}}{{% endif %}}", stops


def _common(a: str, b: str) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def _stops(template: ChatTemplate, full: str, controls: re.Pattern[str], origin: str) -> tuple[str, ...]:
    """Return the first control token after the last answer, then the one after an earlier answer if it context_mismatch."""
    stops = [_first_control(full, _SAID[1], controls)]
    try:
        rounds = _render(template, 4, origin)
        stops.append(_first_control(rounds.split(_SAID[2])[0], _SAID[1], controls))
    except UserError:
        pass  # one round only
    if stops[0] is None or None in stops:
        raise UserError(
            f"{origin} ends an answer with no control token, so a model trained with it would never stop; let every "
            "assistant turn end with eos_token, or choose a built-in template with render.template"
        )
    return tuple(dict.fromkeys(s for s in stops if s is not None))


def _first_control(rendered: str, after: str, controls: re.Pattern[str]) -> str | None:
    found = controls.search(rendered, rendered.index(after) + len(after)) if after in rendered else None
    return found.group() if found else None


def _render(template: ChatTemplate, turns: int, origin: str, generation: bool = False) -> str:
    messages = [{"role": ("user", "assistant")[i % 2], "content": _SAID[i]} for i in range(turns)]
    try:
        out = template.render(messages, generation=generation)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"{origin} cannot render a conversation of {turns} turns ({error}), so nothing could be trained with it; mend "
            "the template, or choose a built-in one with render.template"
        ) from error
    return out
