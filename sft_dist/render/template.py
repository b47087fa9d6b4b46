"""Which chat template: found by name or path, its control tokens, its default system prompt."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from sft_dist.core.errors import UserError, nearest
from sft_dist.render.builtin import BUILTINS
from sft_dist.render.pen import Split
from sft_dist.render.tokenizer import TextTokenizer


def find_template(tokenizer: TextTokenizer, template: str) -> tuple[str, str, str | None]:
    """Return (Jinja text, where it came from for messages, built-in name); a built-in one has no text yet.

    Raises:
        UserError: There is no such template.
    """
    if template in BUILTINS:
        return "", f"the built-in template {template}", template
    if template == "auto":
        if tokenizer.chat_template is None:
            raise UserError(
                f"the tokenizer {tokenizer.path} has no chat template, so render.template=auto has nothing to render with; "
                f"set render.template to one of {', '.join(BUILTINS)} or to a .jinja file"
            )
        return tokenizer.chat_template, f"the chat template of {tokenizer.path}", None
    path = Path(template).expanduser()
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), str(path), None
        except UnicodeDecodeError as error:
            raise UserError(
                f"render.template={template} is not UTF-8 ({error}), so it cannot be read; convert or replace it"
            ) from None
    raise UserError(
        f"render.template={template} is neither a file nor a built-in template; use auto, a .jinja file, or one of "
        f"{', '.join(BUILTINS)}.{nearest(template, BUILTINS)}"
    )


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
    quoted = "'" + system.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return (
        "{%- if not messages | selectattr('role', 'equalto', 'system') | list %}"
        f"{{%- set messages = [{{'role': 'system', 'content': {quoted}}}] + messages %}}"
        "{%- endif %}\n" + text
    )
