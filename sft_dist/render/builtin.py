"""The built-in chat templates, in Python: the fast twins of templates/*.jinja, which travel with an exported model.

Each writer lays a conversation out as a Draft. tests/render/ proves that writer and Jinja text agree character by
character, and token by token with what `transformers` makes of the Jinja text.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop
from sft_dist.render.conversation import Conversation, Thinking, Turn
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.render.tokens import Answer, Draft, Part

Split = Callable[[str], tuple[int | str, ...]]  # literal template text -> control ids and plain text

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
LLAMA_TOOLS = (
    "You can call these functions. To call one, answer with one JSON object a line, "
    '{"name": function name, "parameters": object of arguments}, and nothing else.\n'
)
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREAMBLE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
STOPS = ".!?:;,\"')]}…。！？"  # noqa: RUF001  Chinese, too; text that ends like this gets no full stop
EMPTY_THINK = "<think>\n\n</think>\n\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """What a writer needs beside the conversation.

    Attributes:
        split: Literal template text -> control ids and plain text.
        bos: Text of the BOS token to write first; empty for none.
        eos: Text of the end-of-text token.
        thinking: Which assistant turns keep their reasoning.
        train_empty_think: Whether an empty think block carries loss.
        empty_think: Whether an answer without thoughts gets an empty think block (qwen3).
    """

    split: Split
    bos: str
    eos: str
    thinking: Thinking
    train_empty_think: bool
    empty_think: bool = False


@dataclass(slots=True)
class Pen:
    """Collects the parts of a draft."""

    split: Split
    parts: list[Part] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def literal(self, text: str, turn: int, weight: float, body: bool = False) -> None:
        """Write the template's own text: control tokens in it are control tokens."""
        for payload in self.split(text):
            self.parts.append(Part(payload, weight, turn, body))

    def text(self, text: str, turn: int, weight: float, body: bool = False) -> None:
        """Write what came from the record: plain text whatever it says."""
        if text:
            self.parts.append(Part(text, weight, turn, body))


Writer = Callable[[Conversation, bool, Style], Draft]


def keeps_thoughts(index: int, last_query: int, thinking: Thinking) -> bool:
    """Whether the assistant turn `index` is shown with its reasoning."""
    return thinking == "keep_all" or (thinking == "last_turn" and index > last_query)


def write_chatml(conversation: Conversation, generation: bool, style: Style) -> Draft:
    """Write `<|im_start|>role ... <|im_end|>`: chatml, and qwen3 where `style.empty_think`."""
    pen, turns, frame = _open(conversation, style)
    begin = 0
    if conversation.tools:
        begin = _chatml_tools(pen, conversation)
    last_query = conversation.last_query
    for i in range(begin, len(turns)):
        t = turns[i]
        if t.role == "assistant":
            pen.literal("<|im_start|>assistant\n", i, frame)
            _chatml_answer(pen, conversation, i, keeps_thoughts(i, last_query, style.thinking), style)
        elif t.role == "tool":
            if i == 0 or turns[i - 1].role != "tool":
                pen.literal("<|im_start|>user", i, frame)
            pen.literal("\n<tool_response>\n", i, frame)
            pen.text(t.content, i, t.weight)
            pen.literal("\n</tool_response>", i, frame)
            if i == len(turns) - 1 or turns[i + 1].role != "tool":
                pen.literal("<|im_end|>", i, t.weight)
                pen.literal("\n", i, frame)
        else:
            pen.literal(f"<|im_start|>{t.role}\n", i, frame)
            pen.text(t.content, i, t.weight)
            pen.literal("<|im_end|>", i, t.weight)
            pen.literal("\n", i, frame)
    if generation:
        pen.literal("<|im_start|>assistant\n", len(turns), frame)
        if style.empty_think and conversation.variables.get("enable_thinking") is False:
            pen.literal(EMPTY_THINK, len(turns), 0.0)
    return Draft(pen.parts, pen.answers)


def _chatml_tools(pen: Pen, conversation: Conversation) -> int:
    """Write the system turn that lists the tools; return the first turn that is still to be written."""
    first = conversation.turns[0]
    system = first if first.role == "system" else None
    weight, frame = system.weight if system else conversation.frame_weight, conversation.frame_weight
    pen.literal("<|im_start|>system\n", 0, frame)
    if system:
        pen.text(system.content, 0, weight)
        pen.literal("\n\n", 0, frame)
    pen.literal(TOOLS_HEAD, 0, frame)
    for tool in conversation.tools:
        pen.text("\n" + _json(tool), 0, frame)
    pen.literal(TOOLS_TAIL, 0, frame)
    pen.literal("<|im_end|>", 0, weight)
    pen.literal("\n", 0, frame)
    return 1 if system else 0


def _chatml_answer(pen: Pen, conversation: Conversation, i: int, thoughts: bool, style: Style) -> None:
    """Write an assistant's body: thoughts, content, calls, end of turn."""
    t = conversation.turns[i]
    content = t.content
    reasoning = (t.reasoning or "").strip("\n") if thoughts else ""
    start = body = len(pen.parts)
    if reasoning:
        pen.literal("<think>\n", i, t.weight, body=True)
        pen.text(reasoning, i, t.weight, body=True)
        pen.literal("\n</think>\n\n", i, t.weight, body=True)
        content = content.lstrip("\n")
        body = start
    elif (
        style.empty_think and thoughts and (i == len(conversation.turns) - 1 or style.thinking == "keep_all")
    ):
        fed = conversation.variables.get("enable_thinking") is False
        weight = t.weight if style.train_empty_think and not fed else 0.0
        pen.literal(EMPTY_THINK, i, weight if not fed else 0.0, body=not fed)
        content = content.lstrip("\n")
        start = len(pen.parts) if fed else start
        body = len(pen.parts) if weight == 0.0 else start
    pen.text(content, i, t.weight, body=True)
    for n, (name, arguments) in enumerate(t.calls):
        if n or content:
            pen.literal("\n", i, t.weight, body=True)
        pen.literal('<tool_call>\n{"name": "', i, t.weight, body=True)
        pen.text(name, i, t.weight, body=True)
        pen.literal('", "arguments": ', i, t.weight, body=True)
        pen.text(arguments if isinstance(arguments, str) else _json(arguments), i, t.weight, body=True)
        pen.literal("}\n</tool_call>", i, t.weight, body=True)
    pen.literal("<|im_end|>", i, t.weight, body=True)
    pen.answers.append(Answer(i, start, body, len(pen.parts)))
    pen.literal("\n", i, conversation.frame_weight)


def write_llama3(conversation: Conversation, generation: bool, style: Style) -> Draft:
    """Write Llama 3's headers; tools follow the custom-function convention of 3.1."""
    pen, turns, frame = _open(conversation, style)
    begin = 0
    if conversation.tools:
        first = turns[0]
        system = first if first.role == "system" else None
        begin = 1 if system else 0
        weight, frame = system.weight if system else conversation.frame_weight, conversation.frame_weight
        pen.literal("<|start_header_id|>system<|end_header_id|>\n\n", 0, frame)
        if system:
            pen.text(system.content.strip(), 0, weight)
            pen.literal("\n\n", 0, frame)
        pen.literal(LLAMA_TOOLS, 0, frame)
        for tool in conversation.tools:
            pen.text("\n" + _json(tool), 0, frame)
        pen.literal("<|eot_id|>", 0, weight)
    last_query = conversation.last_query
    for i in range(begin, len(turns)):
        t = turns[i]
        role = "ipython" if t.role == "tool" else t.role
        pen.literal(f"<|start_header_id|>{role}<|end_header_id|>\n\n", i, frame)
        if t.role != "assistant":
            pen.text(t.content.strip(), i, t.weight)
            pen.literal("<|eot_id|>", i, t.weight)
            continue
        start = len(pen.parts)
        _think(pen, t, i, keeps_thoughts(i, last_query, style.thinking))
        content = t.content.strip()
        pen.text(content, i, t.weight, body=True)
        for n, (name, arguments) in enumerate(t.calls):
            text = arguments if isinstance(arguments, str) else _json(arguments)
            call = '{"name": "' + name + '", "parameters": ' + text + "}"
            pen.text("\n" + call if n or content else call, i, t.weight, body=True)
        pen.literal("<|eot_id|>", i, t.weight, body=True)
        pen.answers.append(Answer(i, start, start, len(pen.parts)))
    if generation:
        pen.literal("<|start_header_id|>assistant<|end_header_id|>\n\n", len(turns), frame)
    return Draft(pen.parts, pen.answers)


def write_alpaca(conversation: Conversation, generation: bool, style: Style) -> Draft:
    """Write `### Instruction:` / `### Input:` / `### Response:` under Alpaca's preamble, or under the system prompt."""
    pen, turns, frame = _open(conversation, style)
    separator = ""
    first_user = _first_user(turns)
    for i, t in enumerate(turns):
        if t.role == "assistant":
            pen.literal(separator + "### Response:\n", i, frame)
            _plain_answer(pen, conversation, i, "", style)
        elif t.role == "system":
            _plain_text(pen, t, i, separator, frame)
        else:
            instruction, given = _instruction(conversation, i, first_user)
            if not separator:
                pen.literal(PREAMBLE_INPUT if given is not None else PREAMBLE, i, frame)
                separator = "\n\n"
            pen.literal(separator + "### Instruction:\n", i, frame)
            pen.text(instruction, i, t.weight)
            if given is not None:
                pen.literal("\n\n### Input:\n", i, frame)
                pen.text(given, i, t.weight)
        separator = "\n\n"
    if generation:
        pen.literal(separator + "### Response:\n", len(turns), frame)
    return Draft(pen.parts, pen.answers)


def write_tk_instruct(conversation: Conversation, generation: bool, style: Style) -> Draft:
    """Write `Definition: ... Now complete the following example - Input: ... Output:` as Tk-Instruct was trained on."""
    pen, turns, frame = _open(conversation, style)
    separator = ""
    first_user = _first_user(turns)
    for i, t in enumerate(turns):
        if t.role == "assistant":
            pen.literal("\nOutput:", i, frame)
            _plain_answer(pen, conversation, i, " ", style)
        elif t.role == "system":
            _plain_text(pen, t, i, separator, frame)
        elif i == first_user:
            instruction, given = _instruction(conversation, i, first_user)
            named = instruction.startswith("Definition:")
            pen.literal(separator if named else separator + "Definition: ", i, frame)
            pen.text(_sentence(instruction), i, t.weight)
            if given is not None:
                pen.literal("\n\nNow complete the following example -\nInput: ", i, frame)
                pen.text(_sentence(given), i, t.weight)
        else:
            pen.literal(separator + "Input: ", i, frame)
            pen.text(_sentence(t.content.strip()), i, t.weight)
        separator = "\n\n"
    if generation:
        pen.literal("\nOutput:", len(turns), frame)
    return Draft(pen.parts, pen.answers)


def write_plain(conversation: Conversation, generation: bool, style: Style) -> Draft:
    """Write the turns with an empty line between them and the end-of-text token after every answer."""
    pen, turns, frame = _open(conversation, style)
    separator = ""
    for i, t in enumerate(turns):
        if t.role == "assistant":
            pen.literal(separator, i, frame)
            _plain_answer(pen, conversation, i, "", style)
        else:
            _plain_text(pen, t, i, separator, frame)
        separator = "\n\n"
    if generation:
        pen.literal(separator, len(turns), frame)
    return Draft(pen.parts, pen.answers)


def _open(conversation: Conversation, style: Style) -> tuple[Pen, tuple[Turn, ...], float]:
    """Return a pen that has written BOS, the turns, and the loss weight of the template's own text."""
    pen = Pen(style.split)
    pen.literal(style.bos, -1, conversation.frame_weight)
    return pen, conversation.turns, conversation.frame_weight


def _plain_text(pen: Pen, t: Turn, i: int, separator: str, frame: float) -> None:
    pen.literal(separator, i, frame)
    pen.text(t.content.strip(), i, t.weight)


def _plain_answer(pen: Pen, conversation: Conversation, i: int, lead: str, style: Style) -> None:
    """Write thoughts, trimmed content and the end-of-text token."""
    t = conversation.turns[i]
    start = len(pen.parts)
    pen.text(lead, i, t.weight, body=True)
    _think(pen, t, i, keeps_thoughts(i, conversation.last_query, style.thinking))
    pen.text(t.content.strip(), i, t.weight, body=True)
    pen.literal(style.eos, i, t.weight, body=True)
    pen.answers.append(Answer(i, start, start, len(pen.parts)))


def _think(pen: Pen, t: Turn, i: int, thoughts: bool) -> None:
    reasoning = (t.reasoning or "").strip("\n") if thoughts else ""
    if reasoning:
        pen.literal("<think>\n", i, t.weight, body=True)
        pen.text(reasoning, i, t.weight, body=True)
        pen.literal("\n</think>\n\n", i, t.weight, body=True)


def _first_user(turns: tuple[Turn, ...]) -> int:
    return next((i for i, t in enumerate(turns) if t.role == "user"), -1)


def _instruction(conversation: Conversation, i: int, first_user: int) -> tuple[str, str | None]:
    """Return (instruction, input) of a user turn; the record says where the first one's input starts."""
    content = conversation.turns[i].content
    start = conversation.variables.get("input_start")
    if i != first_user or start is None:
        return content.strip(), None
    return content[:start].strip(), content[start:].strip()


def _sentence(text: str) -> str:
    return text if not text or text[-1] in STOPS else text + "."


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


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

    def draft(self, conversation: Conversation, generation: bool) -> Draft | Drop:
        """Return the conversation laid out; answers whose context generation would not be fed are listed in `differs`."""
        if not self._builtin.tools and (conversation.tools or any(t.calls for t in conversation.turns)):
            return Drop(
                "template_without_tools", "the example has tools, for which the template has no place"
            )
        draft = self._builtin.write(conversation, generation, self._style)
        differs = tuple(
            a.turn
            for a in draft.answers
            if self._builtin.write(conversation.head(a.turn), True, self._style).parts
            != draft.parts[: a.start]
        )
        return Draft(draft.parts, draft.answers, differs)


def jinja_text(name: str, *, thinking: Thinking, bos: bool) -> str:
    """Return the Jinja twin of a built-in template with its options written in front."""
    body = (resources.files("sft_dist.render") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
    return f"{{%- set thinking = {thinking!r} %}}\n{{%- set write_bos = {str(bos).lower()} %}}\n{body}"
