"""Conversations and tokenizers that the render tests share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from sft_dist.core.records import Example, Message, ToolCall, make_example, single_turn
from sft_dist.render.tokenizer import TextTokenizer

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
LLAMA3_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|end_of_text|>",
)
PHI3_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")


def chat(
    *turns: tuple[str, str] | Message, tools: tuple[str, ...] = (), kwargs: str | None = None
) -> Example:
    """An example of (role letter, content) pairs: s, u, a, t."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    messages = tuple(t if isinstance(t, Message) else Message(role=roles[t[0]], content=t[1]) for t in turns)
    return make_example(task="t", source="s", messages=messages, tools=tools, template_kwargs=kwargs)


def extended(base: Path, folder: Path, tokens: Iterable[str | AddedToken], **specials: str) -> Path:
    """A tokenizer folder: `base`/tokenizer.json with further special tokens and a tokenizer_config.json."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    for token in tokens:
        if isinstance(token, AddedToken) and not token.special:
            tokenizer.add_tokens([token])
        else:
            full = (
                token if isinstance(token, AddedToken) else AddedToken(token, special=True, normalized=False)
            )
            tokenizer.add_special_tokens([full])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **specials}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def hf_messages(example: Example) -> list[dict[str, Any]]:
    """The messages as one hands them to transformers."""
    out = []
    for m in example.messages:
        d: dict[str, Any] = {"role": m.role, "content": m.content}
        if m.reasoning_content is not None:
            d["reasoning_content"] = m.reasoning_content
        if m.tool_calls:
            d["tool_calls"] = [
                {"type": "function", "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
                for c in m.tool_calls
            ]
        out.append(d)
    return out


def hf_ids(tokenizer: Any, example: Example, template: str | None = None, **kwargs: Any) -> list[int]:
    """What transformers makes of the example."""
    variables = json.loads(example.template_kwargs) if example.template_kwargs else {}
    if example.input_start is not None:
        variables["input_start"] = example.input_start
    return tokenizer.apply_chat_template(
        hf_messages(example),
        tools=[json.loads(t) for t in example.tools] or None,
        chat_template=template,
        tokenize=True,
        return_dict=False,
        **variables,
        **kwargs,
    )


def targets(tokenizer: TextTokenizer, tokens: Any) -> list[str]:
    """The text of every span."""
    return [tokenizer.decode(tokens.ids[s.start : s.start + s.length].tolist()) for s in tokens.spans]


@cache
def real_conversations(shared_data: Path) -> list[Example]:
    """Multi-turn conversations without tools, 1 to 5 rounds."""
    out = []
    names = {"human": "user", "gpt": "assistant"}
    for row in json.loads((shared_data / "multi-turn/sharegpt_dummy_conversation.json").read_text()):
        turns = [Message(role=names[t["from"]], content=t["value"]) for t in row["conversations"]]
        out.append(make_example(task="t", source="s", messages=tuple(turns)))
    for line in (shared_data / "multi-turn/oasst_en_100_tree.jsonl").read_text().splitlines():
        node, turns = json.loads(line)["prompt"], []
        while node:
            turns.append(
                Message(role="user" if node["role"] == "prompter" else "assistant", content=node["text"])
            )
            node = next(iter(node["replies"]), None)
        if len(turns) % 2 == 0:
            out.append(make_example(task="t", source="s", messages=tuple(turns)))
    return out


@cache
def real_tool_conversations(shared_data: Path) -> list[Example]:
    """Conversations with tools, calls, results, and thoughts."""
    out = []
    for line in (
        (shared_data / "multi-turn/openai_messages_reason_tool_use_50.jsonl").read_text().splitlines()
    ):
        row = json.loads(line)
        messages = []
        for m in row["messages"]:
            of = {
                k: [p["value"] for p in m["content"] if p["type"] == k]
                for k in ("text", "reasoning", "tool_call")
            }
            calls = [json.loads(c) for c in of["tool_call"]]
            messages.append(
                Message(
                    role=m["role"],
                    content="".join(of["text"]),
                    reasoning_content="".join(of["reasoning"]) or None,
                    tool_calls=tuple(
                        ToolCall(name=c["name"], arguments=json.dumps(c["arguments"], ensure_ascii=False))
                        for c in calls
                    ),
                )
            )
        tools = row["tools"]
        tools = json.loads(tools) if isinstance(tools, str) else tools
        schemas = tuple(json.dumps(t, ensure_ascii=False) for t in tools)
        out.append(make_example(task="t", source="s", messages=tuple(messages), tools=schemas))
    return out


def real_instructions(shared_data: Path, number: int = 300) -> list[Example]:
    """Single-turn records, about half of them with an input."""
    lines = (shared_data / "alpaca-style/alpaca_noncommercial.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[:: len(lines) // number]]
    return [
        single_turn(task="t", source="s", instruction=r["instruction"], input=r["input"], output=r["output"])
        for r in rows
        if r["instruction"] and r["output"]
    ]
