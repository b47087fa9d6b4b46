"""Templates without control tokens around turns, in Python: the twins of alpaca, tk-instruct and plain in templates/."""

from __future__ import annotations

import string

from sft_dist.render.conversation import Conversation, Turn
from sft_dist.render.draft import (
    Answer,
    Rendering,
    Style,
    TemplateWriter,
    keeps_thoughts,
    open_writer,
    write_thoughts,
)

PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
PREAMBLE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
# Text that ends like this gets no full stop: ASCII punctuation as in Tk-Instruct's own code, and Chinese.
STOPS = string.punctuation + "…。！？"  # noqa: RUF001
HEADS = ("Definition:", "Positive Example ", "Negative Example ")  # of instructions that take no other


def write_alpaca(conversation: Conversation, generation: bool, style: Style) -> Rendering:
    """Write `### Instruction:` / `### Input:` / `### Response:` under Alpaca's preamble, or under the system prompt."""
    pen, turns, frame = open_writer(conversation, style)
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
    return Rendering(pen.parts, pen.answers)


def write_tk_instruct(conversation: Conversation, generation: bool, style: Style) -> Rendering:
    """Write `Definition: ... Now complete the following example - Input: ... Output:` as Tk-Instruct was trained on."""
    pen, turns, frame = open_writer(conversation, style)
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
            named = instruction.startswith(HEADS)
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
    return Rendering(pen.parts, pen.answers)


def write_plain(conversation: Conversation, generation: bool, style: Style) -> Rendering:
    """Write the turns with an empty line between them and the end-of-text token after every answer."""
    pen, turns, frame = open_writer(conversation, style)
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
    return Rendering(pen.parts, pen.answers)


def _plain_text(pen: TemplateWriter, t: Turn, i: int, separator: str, frame: float) -> None:
    pen.literal(separator, i, frame)
    pen.text(t.content.strip(), i, t.weight)


def _plain_answer(pen: TemplateWriter, conversation: Conversation, i: int, lead: str, style: Style) -> None:
    """Write thoughts, trimmed content and the end-of-text token."""
    t = conversation.turns[i]
    start = len(pen.parts)
    pen.text(lead, i, t.weight, body=True)
    write_thoughts(pen, t, i, keeps_thoughts(i, conversation.last_query, style.thinking))
    pen.text(t.content.strip(), i, t.weight, body=True)
    pen.literal(style.eos, i, t.weight, body=True)
    pen.answers.append(Answer(i, start, start, len(pen.parts)))


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
