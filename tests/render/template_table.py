"""Conversation shapes x chat templates: what the renderer makes of each. Writes the table of docs/templates.md.

    python tests/render/template_table.py        writes docs/templates.md

The templates under chat_templates/ are short ones in the manner of a family; their first line names their tokens.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from pathlib import Path

from sft_dist.core.records import Drop, Example, Message, ToolCall, make_example
from sft_dist.render.builtin import BUILTINS
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs" / "templates.md"
SHARED = HERE.parents[2] / "shared"
CLOCK = datetime.fromisoformat("2026-03-04T05:06")
TOKENS = re.compile(r"tokens: (.*?)(?:; bos: (\S+?))?; eos: (\S+) -#\}")
BUILTIN_TOKENS = (
    "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <|im_start|> <|im_end|> <|endoftext|>"
)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
TIME = {**TOOL, "function": {**TOOL["function"], "name": "get_time", "description": "Time of a city."}}


def _s(content: str) -> Message:
    return Message(role="system", content=content)


def _u(content: str) -> Message:
    return Message(role="user", content=content)


def _a(content: str, thoughts: str | None = None, weight: float | None = None) -> Message:
    return Message(role="assistant", content=content, reasoning_content=thoughts, weight=weight)


def _c(*calls: tuple[str, str], content: str = "", thoughts: str | None = None) -> Message:
    made = tuple(
        ToolCall(name=name, arguments=arguments, id=f"callid{i:03}")
        for i, (name, arguments) in enumerate(calls)
    )
    return Message(role="assistant", content=content, reasoning_content=thoughts, tool_calls=made)


def _t(content: str, number: int = 0, name: str = "get_weather") -> Message:
    return Message(role="tool", content=content, name=name, tool_call_id=f"callid{number:03}")


PARIS, OSLO = ("get_weather", '{"city": "Paris"}'), ("get_weather", '{"city": "Oslo"}')
Q, R, ANSWER, SECOND = "How are you?", "And now?", "I am fine.", "Better."
ASK = "Weather in Paris?"

# name -> (messages, tools, variables of the record)
SHAPES: dict[str, tuple[list[Message], list[dict], dict]] = {
    "question, answer": ([_u(Q), _a(ANSWER)], [], {}),
    "system, question, answer": ([_s("Be brief."), _u(Q), _a(ANSWER)], [], {}),
    "two rounds": ([_u(Q), _a(ANSWER), _u(R), _a(SECOND)], [], {}),
    "system, three rounds": (
        [_s("Be brief."), _u(Q), _a(ANSWER), _u(R), _a(SECOND), _u("More?"), _a("No.")],
        [],
        {},
    ),
    "thoughts": ([_u(Q), _a(ANSWER, "I feel well.")], [], {}),
    "thoughts, system": ([_s("Be brief."), _u(Q), _a(ANSWER, "I feel well.")], [], {}),
    "thoughts in two rounds": ([_u(Q), _a(ANSWER, "First."), _u(R), _a(SECOND, "Then.")], [], {}),
    "thoughts in the last round only": ([_u(Q), _a(ANSWER), _u(R), _a(SECOND, "Then.")], [], {}),
    "thoughts in the first round only": ([_u(Q), _a(ANSWER, "First."), _u(R), _a(SECOND)], [], {}),
    "empty thoughts": ([_u(Q), _a(ANSWER, "")], [], {}),
    "thoughts inside the content": ([_u(Q), _a(f"<think>\nI feel well.\n</think>\n\n{ANSWER}")], [], {}),
    "enable_thinking=false": ([_u(Q), _a(ANSWER)], [], {"enable_thinking": False}),
    "tools, none called": ([_u(Q), _a(ANSWER)], [TOOL], {}),
    "call": ([_u(ASK), _c(PARIS)], [TOOL], {}),
    "call, result, answer": ([_u(ASK), _c(PARIS), _t("12 degrees"), _a("12 degrees.")], [TOOL], {}),
    "call with a word before": (
        [_u(ASK), _c(PARIS, content="Let me look."), _t("12 degrees"), _a("12.")],
        [TOOL],
        {},
    ),
    "thoughts, call, result, answer": (
        [_u(ASK), _c(PARIS, thoughts="Look it up."), _t("12 degrees"), _a("12.", "Easy.")],
        [TOOL],
        {},
    ),
    "parallel calls": (
        [_u("Paris and Oslo?"), _c(PARIS, OSLO), _t("12 degrees"), _t("3 degrees", 1), _a("12 and 3.")],
        [TOOL],
        {},
    ),
    "consecutive calls": (
        [_u("Paris, then Oslo?"), _c(PARIS), _t("12 degrees"), _c(OSLO), _t("3 degrees"), _a("12 and 3.")],
        [TOOL],
        {},
    ),
    "two tools": (
        [
            _u(ASK),
            _c(PARIS, ("get_time", '{"city": "Paris"}')),
            _t("12"),
            _t("noon", 1, "get_time"),
            _a("12."),
        ],
        [TOOL, TIME],
        {},
    ),
    "call without arguments": ([_u(ASK), _c(("get_weather", "{}")), _t("12"), _a("12.")], [TOOL], {}),
    "nested arguments": (
        [
            _u(ASK),
            _c(("get_weather", '{"city": "Pa\\"ris", "days": [1, 2], "of": {"k": true}}')),
            _t("12"),
            _a("12."),
        ],
        [TOOL],
        {},
    ),
    "arguments that are no JSON": ([_u(ASK), _c(("get_weather", "Paris!")), _t("12"), _a("12.")], [TOOL], {}),
    "tools without the wrapper": (
        [_u(ASK), _c(PARIS), _t("12 degrees"), _a("12.")],
        [TOOL["function"]],
        {},
    ),
    "call, then another question": (
        [_u(ASK), _c(PARIS), _t("12"), _a("12."), _u(R), _c(OSLO), _t("3"), _a("3.")],
        [TOOL],
        {},
    ),
    "tools and system": (
        [_s("Be brief."), _u(ASK), _c(PARIS), _t("12 degrees"), _a("12.")],
        [TOOL],
        {},
    ),
    "two questions in a row": ([_u(Q), _u(R), _a(ANSWER)], [], {}),
    "two answers in a row": ([_u(Q), _a(ANSWER), _a(SECOND)], [], {}),
    "the assistant begins": ([_a("Hello!"), _u(Q), _a(ANSWER)], [], {}),
    "system prompt in the middle": ([_u(Q), _a(ANSWER), _s("Be brief."), _u(R), _a(SECOND)], [], {}),
    "empty answer": ([_u(Q), _a("")], [], {}),
    "white space around": ([_u(f"  {Q} \n"), _a(f"\n {ANSWER}  ")], [], {}),
    "first answer excluded": ([_u(Q), _a(ANSWER, weight=0.0), _u(R), _a(SECOND)], [], {}),
    "no question": ([_s("Write a poem."), _a("Roses.")], [], {}),
}


def example(name: str) -> Example:
    """The conversation of a shape."""
    messages, tools, variables = SHAPES[name]
    return make_example(
        task="t",
        source="s",
        messages=tuple(messages),
        tools=tuple(json.dumps(t) for t in tools),
        template_kwargs=json.dumps(variables) if variables else None,
    )


def tokenizer_of(text: str, folder: Path) -> TextTokenizer:
    """A small tokenizer with the tokens that a template's first line names, saved in `folder`."""
    tokens, bos, eos = TOKENS.search(text).groups()  # type: ignore[union-attr]  # each has the line
    train_tokenizer(["user assistant system model tool"] * 4, 300 + len(tokens.split()), tokens.split()).save(
        folder
    )
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"eos_token": eos, "pad_token": eos, **({"bos_token": bos} if bos else {})}
    config.pop("add_bos_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").unlink()
    (folder / "chat_template.jinja").write_text(text)
    return TextTokenizer.load(str(folder))


@cache
def own_renderers() -> dict[str, Renderer]:
    """Renderers of the templates under chat_templates/ and of the built-in ones."""
    out = {}
    root = Path(tempfile.mkdtemp(prefix="families-"))
    for path in sorted((HERE / "chat_templates").glob("*.jinja")):
        out[path.stem] = Renderer(tokenizer_of(path.read_text(), root / path.stem), clock=CLOCK)
    line = f"{{#- tokens: {BUILTIN_TOKENS}; bos: <|begin_of_text|>; eos: <|endoftext|> -#}}"
    tokenizer = tokenizer_of(line, root / "builtin")
    return out | {f"built-in {name}": Renderer(tokenizer, template=name) for name in BUILTINS}


@cache
def stock_renderers() -> dict[str, Renderer]:
    """Renderers of stock templates; empty where they are not at hand."""
    out = {}
    for folder in sorted((SHARED / "cases" / "tok").glob("*")):
        if (folder / "chat_template.jinja").is_file():
            out[f"stock {folder.name}"] = Renderer(TextTokenizer.load(str(folder)), clock=CLOCK)
    root = Path(tempfile.mkdtemp(prefix="stock-"))
    tokens = (
        f"{BUILTIN_TOKENS} <|end|> <|user|> <|assistant|> <|system|> <|tool_call|> <|/tool_call|> <s> </s>"
    )
    for path in sorted((SHARED / "data" / "chat_templates").glob("*.jinja")):
        eos = (
            "</s>"
            if "tulu" in path.name
            else "<|im_end|>"
            if "im_end" in path.read_text()
            else "<|endoftext|>"
        )
        line = f"{{#- tokens: {tokens}; bos: <|begin_of_text|>; eos: {eos} -#}}"
        tokenizer = tokenizer_of(line, root / path.stem)
        out[f"stock {path.stem}"] = Renderer(tokenizer, template=str(path), clock=CLOCK)
    return out


def outcome(renderer: Renderer, shape: str) -> str:
    """What becomes of a shape: `exact`, how many of its answers carry loss, or why it is dropped."""
    renderer.counts.clear()
    tokens = renderer.render([example(shape)])[0]
    if isinstance(tokens, Drop):
        return tokens.reason
    lost = renderer.counts["context_differs"] + renderer.counts["answer_differs"]
    trained = renderer.counts["answers"]
    said = f"exact, {trained} of {trained + lost}" if lost else "exact"
    return f"{said}, no thoughts" if renderer.counts["thoughts_dropped"] else said


def table(renderers: dict[str, Renderer]) -> Iterator[str]:
    """The lines of a table: a row a template, a column a shape, by its number."""
    yield "| template | ends a turn | " + " | ".join(str(i + 1) for i in range(len(SHAPES))) + " |"
    yield "|---|---|" + "---|" * len(SHAPES)
    for name, renderer in renderers.items():
        ends = " ".join(f"`{t}`" for t in renderer.stop_tokens)
        yield f"| {name} | {ends} | " + " | ".join(cell(outcome(renderer, s)) for s in SHAPES) + " |"


def cell(result: str) -> str:
    """A cell: e for exact, e 1/2 where some answers carry no loss, q without thoughts, else the letter of the reason."""
    if result.startswith("exact"):
        said = result.removeprefix("exact").removesuffix(", no thoughts")
        return ("q" if result.endswith("no thoughts") else "e") + said.replace(", ", " ").replace(" of ", "/")
    return {reason: letter for letter, (reason, _) in REASONS.items()}[result]


REASONS = {
    "T": (
        "template_without_tools",
        "the template has no place for tools, or leaves out a call or an argument",
    ),
    "R": ("template_error", "the template refuses the conversation, with its own words"),
    "M": ("template_mangles_content", "the template changes a content, or leaves a turn out"),
    "N": ("no_target", "no answer stands where generation would write it"),
    "S": ("stop_token", "an answer holds several end-of-turn tokens"),
    "B": ("double_bos", "the template writes the beginning-of-sequence token twice"),
}

HEAD = """# Templates and shapes of conversations

Made by `python tests/render/template_table.py`; tests/render/test_template_table.py makes it anew, compares, and holds each `e`
against `transformers`: the tokens before an answer are the ids of `apply_chat_template` with its generation prompt, and
what carries loss is what the template writes of that answer as the last turn, up to the token that ends it.

* `e`: exact, every answer carries loss. `e 1/2`: exact, and one of two answers carries no loss, because the template shows
  it, or what stands before it, otherwise in history than generation has it; counted, and said by `check`.
* `q`: exact, but trained without its thoughts, because the generation prompt says that there are none, or the template has
  no place for them; counted, and said by `check`.
{reasons}

Nothing else is possible: what is not exact is dropped, counted, and named in rejects/ with its reason.

Shapes: {shapes}

A template is tried in the ways in which templates differ: tools with and without their wrapper, the content of a turn that
only calls empty or absent, arguments as an object or as JSON text. The first way that leaves nothing out is taken.

Where the whole conversation as the template shows it would cost the last answer its loss, the document is what generation
has: the generation prompt of the last turn, and behind it what the template writes of that turn. So a template that leaves
out the thoughts of earlier turns once an answer follows (gpt-oss, Kimi), or that shows an empty think block to generation
alone (Gemma 4), still trains that answer, and of the history what generation wrote. A template that cuts thoughts even
from the last answer (DeepSeek R1, QwQ) leaves them to generation: they are put before the answer, unless the generation
prompt has closed their block.
"""


def page() -> str:
    """The text of docs/templates.md."""
    reasons = "\n".join(f"* `{letter}`: dropped as `{r}`: {says}." for letter, (r, says) in REASONS.items())
    shapes = "; ".join(f"{i + 1} {name}" for i, name in enumerate(SHAPES)) + "."
    parts = [
        HEAD.format(reasons=reasons, shapes=shapes),
        "## In the manner of a family, and built in\n",
        *table(own_renderers()),
        "\n## Stock templates\n",
        *table(stock_renderers()),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    DOCS.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{DOCS}\n")
