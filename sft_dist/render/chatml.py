"""ChatML and Qwen3, in Python: the twins of templates/chatml.jinja and templates/qwen3.jinja."""

from __future__ import annotations

from sft_dist.render.conversation import Conversation
from sft_dist.render.draft import (
    Answer,
    Rendering,
    Style,
    TemplateWriter,
    keeps_thoughts,
    open_writer,
    to_json,
    write_thoughts,
)

TOOLS_HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_TAIL = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
EMPTY_THINK = "<think>\n\n</think>\n\n"


def write_chatml(conversation: Conversation, generation: bool, style: Style) -> Rendering:
    """Write `<|im_start|>role ... <|im_end|>`: chatml, and qwen3 where `style.empty_think`."""
    pen, turns, frame = open_writer(conversation, style)
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
            pen.literal(EMPTY_THINK, len(turns), frame)
    return Rendering(pen.parts, pen.answers)


def _chatml_tools(pen: TemplateWriter, conversation: Conversation) -> int:
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
        pen.text("\n" + to_json(tool), 0, frame)
    pen.literal(TOOLS_TAIL, 0, frame)
    pen.literal("<|im_end|>", 0, weight)
    pen.literal("\n", 0, frame)
    return 1 if system else 0


def _chatml_answer(
    pen: TemplateWriter, conversation: Conversation, i: int, thoughts: bool, style: Style
) -> None:
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
        content = content.lstrip("\n")
        if conversation.variables.get("enable_thinking") is False:  # generation is fed the block
            pen.literal(EMPTY_THINK, i, conversation.frame_weight)
            start = body = len(pen.parts)
        elif style.train_empty_think:
            pen.literal(EMPTY_THINK, i, t.weight, body=True)
        else:
            pen.literal(EMPTY_THINK, i, 0.0)
            body = len(pen.parts)
    pen.text(content, i, t.weight, body=True)
    for n, (name, arguments) in enumerate(t.calls):
        if n or content:
            pen.literal("\n", i, t.weight, body=True)
        pen.literal('<tool_call>\n{"name": "', i, t.weight, body=True)
        pen.text(name, i, t.weight, body=True)
        pen.literal('", "arguments": ', i, t.weight, body=True)
        pen.text(arguments if isinstance(arguments, str) else to_json(arguments), i, t.weight, body=True)
        pen.literal("}\n</tool_call>", i, t.weight, body=True)
    pen.literal("<|im_end|>", i, t.weight, body=True)
    pen.answers.append(Answer(i, start, body, len(pen.parts)))
    pen.literal("\n", i, conversation.frame_weight)


LLAMA_TOOLS = (
    "You can call these functions. To call one, answer with one JSON object a line, "
    '{"name": function name, "parameters": object of arguments}, and nothing else.\n'
)


def write_llama3(conversation: Conversation, generation: bool, style: Style) -> Rendering:
    """Write Llama 3's headers; tools follow the custom-function convention of 3.1."""
    pen, turns, frame = open_writer(conversation, style)
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
            pen.text("\n" + to_json(tool), 0, frame)
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
        write_thoughts(pen, t, i, keeps_thoughts(i, last_query, style.thinking))
        content = t.content.strip()
        pen.text(content, i, t.weight, body=True)
        for n, (name, arguments) in enumerate(t.calls):
            text = arguments if isinstance(arguments, str) else to_json(arguments)
            call = '{"name": "' + name + '", "parameters": ' + text + "}"
            pen.text("\n" + call if n or content else call, i, t.weight, body=True)
        pen.literal("<|eot_id|>", i, t.weight, body=True)
        pen.answers.append(Answer(i, start, start, len(pen.parts)))
    if generation:
        pen.literal("<|start_header_id|>assistant<|end_header_id|>\n\n", len(turns), frame)
    return Rendering(pen.parts, pen.answers)
