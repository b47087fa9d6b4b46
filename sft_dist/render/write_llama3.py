"""Llama 3, in Python: the twin of templates/llama3.jinja."""

from __future__ import annotations

from sft_dist.render.conversation import Conversation
from sft_dist.render.draft import Answer, Draft
from sft_dist.render.pen import Style, keeps_thoughts, open_pen, to_json, write_thoughts

LLAMA_TOOLS = (
    "You can call these functions. To call one, answer with one JSON object a line, "
    '{"name": function name, "parameters": object of arguments}, and nothing else.\n'
)


def write_llama3(conversation: Conversation, generation: bool, style: Style) -> Draft:
    """Write Llama 3's headers; tools follow the custom-function convention of 3.1."""
    pen, turns, frame = open_pen(conversation, style)
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
    return Draft(pen.parts, pen.answers)
