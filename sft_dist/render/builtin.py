"""The built-in chat templates: a table, and what binds one to a tokenizer.

Each has two forms: a writer in Python, which preparation uses because it is fast, and a Jinja text in templates/,
which travels with an exported model. tests/render/ proves that both agree, token by token, and that the Jinja text
gives the same through `transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.records import Drop
from sft_dist.render.chatml import write_chatml, write_llama3
from sft_dist.render.conversation import Conversation, Thinking
from sft_dist.render.draft import Rendering, Split, Style
from sft_dist.render.plain import write_alpaca, write_plain, write_tk_instruct
from sft_dist.render.tokenizer import TextTokenizer

Writer = Callable[[Conversation, bool, Style], Rendering]  # (conversation, with a generation prompt, style)


@dataclass(frozen=True, kw_only=True, slots=True)
class Builtin:
    """A built-in template: its writer and the control tokens it cannot do without."""

    write: Writer
    needs: tuple[str, ...]  # "eos" stands for the tokenizer's end-of-text token
    stop: str
    tools: bool = False
    empty_think: bool = False
    always_bos: bool = False


BUILTINS: dict[str, Builtin] = {
    "chatml": Builtin(
        write=write_chatml, needs=("<|im_start|>", "<|im_end|>"), stop="<|im_end|>", tools=True
    ),
    "llama3": Builtin(
        write=write_llama3,
        needs=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        stop="<|eot_id|>",
        tools=True,
        always_bos=True,
    ),
    "qwen3": Builtin(
        write=write_chatml,
        needs=("<|im_start|>", "<|im_end|>"),
        stop="<|im_end|>",
        tools=True,
        empty_think=True,
    ),
    "alpaca": Builtin(write=write_alpaca, needs=("eos",), stop="eos"),
    "tk-instruct": Builtin(write=write_tk_instruct, needs=("eos",), stop="eos"),
    "plain": Builtin(write=write_plain, needs=("eos",), stop="eos"),
}


class BuiltinTemplate:
    """A built-in template for one tokenizer.

    Args:
        name: Key of `BUILTINS`.
        tokenizer: Must know the template's control tokens.
        split: Literal template text -> control ids and plain text.
        bos: Whether BOS is written first.
        thinking: Which assistant turns keep their reasoning.
        train_empty_think: Whether an empty think block carries loss.

    Raises:
        UserError: The tokenizer lacks a control token of the template.
    """

    splits_thoughts = True

    def __init__(
        self,
        name: str,
        tokenizer: TextTokenizer,
        *,
        split: Split,
        bos: bool,
        thinking: Thinking,
        train_empty_think: bool,
    ) -> None:
        self._builtin = builtin = BUILTINS[name]
        eos = tokenizer.specials.get("eos_token", "")
        needed = [eos or "eos_token" if n == "eos" else n for n in builtin.needs]
        if missing := [n for n in needed if n not in tokenizer.control]:
            raise UserError(
                f"the tokenizer {tokenizer.path} has no special token {' or '.join(missing)}, which the template {name} "
                "ends or opens turns with, so a model could not tell where an answer stops; use a tokenizer that has it, "
                "or another render.template (alpaca and plain need an eos_token only)"
            )
        self.stop = eos if builtin.stop == "eos" else builtin.stop
        self._style = Style(
            split=split,
            bos=tokenizer.specials["bos_token"] if bos else "",
            eos=eos,
            thinking=thinking,
            train_empty_think=train_empty_think,
            empty_think=builtin.empty_think,
        )

    def draft(self, conversation: Conversation, generation: bool) -> Rendering | Drop:
        """Return the conversation laid out; answers whose context generation would not be fed are listed in `context_mismatch`."""
        if not self._builtin.tools and (conversation.tools or any(t.calls for t in conversation.turns)):
            return Drop(
                "template_without_tools", "the example has tools, for which the template has no place"
            )
        draft = self._builtin.write(conversation, generation, self._style)
        context_mismatch = tuple(
            a.turn
            for a in draft.answers
            if self._builtin.write(conversation.head(a.turn), True, self._style).parts
            != draft.parts[: a.start]
        )
        return Rendering(draft.parts, draft.answers, context_mismatch)


def jinja_text(name: str, *, thinking: Thinking, bos: bool) -> str:
    """Return the Jinja twin of a built-in template with its options written in front."""
    body = (resources.files("sft_dist.render") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return f"{{%- set thinking = {thinking!r} %}}\n{{%- set write_bos = {str(bos).lower()} %}}\n{body}"


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
