"""Name of a template, tokenizer -> the template: its Jinja text, what ends a turn, and how a conversation is laid out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded
from sft_dist.core.records import Drop
from sft_dist.render.builtin import BUILTINS, BuiltinTemplate, jinja_text
from sft_dist.render.conversation import Conversation, Thinking
from sft_dist.render.draft import Rendering, Split
from sft_dist.render.inspection import inspect_template
from sft_dist.render.jinja_template import JinjaTemplate
from sft_dist.render.tokenizer import TextTokenizer


class Layout(Protocol):
    """Lays a conversation out: ours in Python, or anyone's in Jinja."""

    splits_thoughts: bool

    def draft(self, conversation: Conversation, generation: bool) -> Rendering | Drop:
        """Return the conversation laid out, with the generation prompt at its end if asked for."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Template:
    """A template for one tokenizer.

    Attributes:
        text: The Jinja text that an exported model carries; it renders what `layout` lays out.
        stops: Control tokens that end an assistant's turn, that of a final answer first.
        control: Tokens that no text of a record may become.
        layout: Conversation -> parts.
        reads_clock: Whether the text asks for the date.
    """

    text: str
    stops: tuple[str, ...]
    control: frozenset[str]
    layout: Layout
    reads_clock: bool


def resolve_template(
    tokenizer: TextTokenizer,
    name: str,
    *,
    thinking: Thinking,
    train_empty_think: bool,
    system: str | None,
    template_kwargs: Mapping[str, Any],
    clock: datetime,
) -> Template:
    """Find a template and bind it to a tokenizer.

    Args:
        tokenizer: Any fast tokenizer.
        name: `auto` (the tokenizer's own), one of the tokenizer's named templates, a built-in name, or a .jinja file.
        thinking: Which assistant turns keep their reasoning.
        train_empty_think: Whether an empty think block carries loss.
        system: System prompt of conversations that bring none.
        template_kwargs: Variables of the template where a record does not say otherwise.
        clock: What the template reads as the time.

    Raises:
        UserError: The template does not exist, is not valid, or does not fit the tokenizer.
    """
    if name in BUILTINS:
        thinking = "last_turn" if thinking == "auto" else thinking
        bos = tokenizer.bos_id is not None and (tokenizer.adds_bos or BUILTINS[name].always_bos)
        text = jinja_text(name, thinking=thinking, bos=bos)
        control = control_tokens(tokenizer, text)
        builtin = BuiltinTemplate(
            name,
            tokenizer,
            split=splitter(pattern(control), tokenizer),
            bos=bos,
            thinking=thinking,
            train_empty_think=train_empty_think,
        )
        stops: tuple[str, ...] = (builtin.stop,)
        layout: Layout = builtin
    else:
        text, origin = find_text(tokenizer, name)
        control = control_tokens(tokenizer, text)
        controls = pattern(control)
        inspected = inspect_template(
            text, tokenizer.specials, controls, origin, clock=clock, variables=template_kwargs
        )
        text, stops = inspected.template.text, inspected.stops
        layout = JinjaTemplate(
            inspected,
            controls=controls,
            id_of=tokenizer.control_id,
            thinking=thinking,
            train_empty_think=train_empty_think,
        )
    return Template(
        text=with_variables(with_system(text, system), template_kwargs),
        stops=stops,
        control=control,
        layout=layout,
        reads_clock="strftime_now" in text,
    )


def find_text(tokenizer: TextTokenizer, name: str) -> tuple[str, str]:
    """Return (Jinja text, where it came from for messages) of a template that is not built in.

    Raises:
        UserError: There is no such template.
    """
    named = tokenizer.chat_templates
    if name == "auto":
        if not named:
            raise UserError(
                f"the tokenizer {tokenizer.path} has no chat template, so render.template=auto has nothing to render with; "
                f"set render.template to one of {', '.join(BUILTINS)} or to a .jinja file"
            )
        return _default(named, tokenizer.path), f"the chat template of {tokenizer.path}"
    if name in named:
        return named[name], f"the chat template {name} of {tokenizer.path}"
    path = expanded(name)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise UserError(
                f"render.template={name} is not UTF-8 ({error}), so it cannot be read; convert or replace it"
            ) from None
    known = [*named, *BUILTINS]
    raise UserError(
        f"render.template={name} is neither a file nor a built-in template nor one of the tokenizer's; use auto, a .jinja "
        f"file, or one of {', '.join(known)}.{nearest(name, known)}"
    )


def _default(named: Mapping[str, str], path: str) -> str:
    """Return the text that `transformers` takes without a name: `tool_use` where there are tools, else `default`."""
    if "default" not in named:
        raise UserError(
            f"the tokenizer {path} has several chat templates ({', '.join(named)}) and none named default, so render.template=auto "
            "cannot choose; set render.template to one of the names"
        )
    plain, tools = named["default"], named.get("tool_use")
    if tools is None:
        return plain
    body = [t.removesuffix("\n") for t in (tools, plain)]  # Jinja drops a last newline, and no longer would
    return f"{{% if tools %}}\n{body[0]}{{%+ else %}}\n{body[1]}{{%+ endif %}}"


def control_tokens(tokenizer: TextTokenizer, text: str) -> frozenset[str]:
    """Return special tokens and the added tokens that the template names (`<think>`), white space excepted."""
    return tokenizer.control | {t for t in tokenizer.added if t in text and not t.isspace()}


def pattern(control: frozenset[str]) -> re.Pattern[str]:
    """Return the pattern that finds any of the control tokens, the longest where several begin."""
    longest_first = sorted(control, key=lambda t: (-len(t), t))
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def splitter(controls: re.Pattern[str], tokenizer: TextTokenizer) -> Split:
    """Return a cached function: literal template text -> control ids and plain text."""

    def split(text: str) -> tuple[int | str, ...]:
        out: list[int | str] = []
        position = 0
        for m in controls.finditer(text):
            out += [text[position : m.start()], tokenizer.control_id(m.group())]
            position = m.end()
        return tuple(p for p in [*out, text[position:]] if p != "")

    return lru_cache(maxsize=4096)(split)


def with_system(text: str, system: str | None) -> str:
    """Return the template with the default system prompt built in."""
    if system is None:
        return text
    return (
        "{%- if not messages | selectattr('role', 'equalto', 'system') | list %}"
        f"{{%- set messages = [{{'role': 'system', 'content': {_literal(system)}}}] + messages %}}"
        "{%- endif %}\n" + text
    )


def with_variables(text: str, variables: Mapping[str, Any]) -> str:
    """Return the template with its variables built in, for whoever renders it without giving others."""
    heads = [
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in sorted(variables.items())
    ]
    return "".join(heads) + text


def _literal(value: Any) -> str:
    """Return a JSON value as Jinja spells it."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    words = {"True": "true", "False": "false", "None": "none"}
    return words.get(str(value)) or json.dumps(value)
