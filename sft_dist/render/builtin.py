"""The built-in chat templates: a table, and what binds one to a tokenizer.

Each has two forms: a writer in Python, which preparation uses because it is fast, and a Jinja text in templates/,
which travels with an exported model. tests/render/ proves that both agree, token by token, and that the Jinja text
gives the same through `transformers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop
from sft_dist.render.chatml import write_chatml, write_llama3
from sft_dist.render.conversation import Conversation, Thinking
from sft_dist.render.draft import LostAnswer, Rendering, Split, Style
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
        """Return the conversation laid out; answers that cannot carry loss in it are listed."""
        if not self._builtin.tools and (conversation.tools or any(t.calls for t in conversation.turns)):
            return Drop(
                "template_without_tools", "the example has tools, for which the template has no place"
            )
        rendering = self._builtin.write(conversation, generation, self._style)
        return Rendering(rendering.parts, rendering.answers, tuple(self._lost(conversation, rendering)))

    def _lost(self, conversation: Conversation, rendering: Rendering) -> Iterator[LostAnswer]:
        rewritten = self._builtin.empty_think or any(t.reasoning for t in conversation.turns)
        for a in rendering.answers:
            prompt = self._builtin.write(conversation.head(a.turn), True, self._style)
            if prompt.parts != rendering.parts[: a.start]:
                yield LostAnswer(a.turn, "context_differs", "thoughts before it are left out later")
            elif rewritten and a.turn < len(conversation.turns) - 1:
                alone = self._builtin.write(conversation.head(a.turn + 1), False, self._style)
                last = alone.answers[-1]
                if alone.parts[last.content : last.end] != rendering.parts[a.content : a.end]:
                    yield LostAnswer(
                        a.turn, "answer_differs", "thoughts that it begins with are left out later"
                    )


def jinja_text(name: str, *, thinking: Thinking, bos: bool) -> str:
    """Return the Jinja twin of a built-in template with its options written in front."""
    body = (resources.files("sft_dist.render") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return f"{{%- set thinking = {thinking!r} %}}\n{{%- set write_bos = {str(bos).lower()} %}}\n{body}"
