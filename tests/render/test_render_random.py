"""Random conversations through two independent paths: our Python writers, and cutting renderings of their Jinja twins."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace

import pytest
from render_helpers import CHATML_TOKENS, LLAMA3_TOKENS

from sft_dist.core.records import Drop, Example, Message, ToolCall, make_example
from sft_dist.render.builtin import BUILTINS
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer

SPECIALS = ("<|endoftext|>", *CHATML_TOKENS, "<|pad|>", *LLAMA3_TOKENS)
PIECES = [
    "a",
    "b ",
    "\n",
    "\n\n",
    " ",
    "é",
    "你",
    "{%",
    "{{",
    "'",
    "\\",
    ".",
    "<tool_call>",
    "<tool_response>",
]
PIECES += ["</tool_response>", "<think>", "</think>", *SPECIALS]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["user assistant system\n\n the answer"] * 4, 340, SPECIALS).save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "bos_token": "<|begin_of_text|>"}))
    return TextTokenizer.load(str(folder))


def conversation(rng: random.Random, tools: bool) -> Example:
    """Any mix of roles, thoughts, calls and results, with texts made to provoke."""

    def text() -> str:
        return "".join(rng.choice(PIECES) for _ in range(rng.choice([0, 1, 2, 3, 6])))

    def answer(calls: int) -> Message:
        arguments = ['{"a": "x<|im_end|>"}', "{}", "no json"]
        return Message(
            role="assistant",
            content=text(),
            reasoning_content=rng.choice([None, None, "", text()]),
            tool_calls=tuple(
                ToolCall(name="f" + text(), arguments=rng.choice(arguments)) for _ in range(calls)
            ),
            weight=rng.choice([None, None, None, 0.0, 0.5]),
        )

    messages = [Message(role="system", content=text())] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 4)):
        messages.append(Message(role="user", content=text()))
        for _ in range(rng.choice([0, 1, 2]) if tools else 0):
            messages.append(answer(rng.randint(1, 2)))
            messages += [Message(role="tool", content=text()) for _ in range(rng.randint(1, 2))]
        messages.append(answer(0))
    return make_example(
        task="t",
        source="s",
        messages=tuple(messages),
        tools=('{"name": "g<|im_end|>"}',) if tools else (),
        template_kwargs=rng.choice([None, None, '{"enable_thinking": false}']),
    )


@pytest.mark.parametrize("thinking", ["keep_all", "last_turn", "strip"])
@pytest.mark.parametrize("name", BUILTINS)
def test_writer_and_cut_rendering_agree(name, thinking, tokenizer, tmp_path):
    rng = random.Random(f"{name} {thinking}")
    options = {"thinking": thinking, "train_empty_think": rng.random() < 0.5, "system": "S'\n\\<|im_end|>"}
    ours = Renderer(tokenizer, template=name, **options)
    (tmp_path / "twin.jinja").write_text(ours.template_text)
    foreign = Renderer(tokenizer, template=str(tmp_path / "twin.jinja"), **options)
    examples = [conversation(rng, BUILTINS[name].tools and rng.random() < 0.5) for _ in range(40)]
    compared = 0
    for example, a, b in zip(examples, ours.render(examples), foreign.render(examples), strict=True):
        if isinstance(a, Drop):
            assert a.reason == "no_target"
            continue
        if isinstance(b, Drop):  # the twin looks into this content: refused rather than guessed
            assert b.reason == "template_mangles_content"
            continue
        assert tokenizer.decode(a.ids.tolist()) == tokenizer.decode(b.ids.tolist())
        draft = ours._checked(example, Counter())
        if not draft.lost:
            assert a.ids.tolist() == b.ids.tolist()
            assert a.spans == b.spans
            compared += 1
        if draft.parts[-1].turn in {a.turn for a in draft.lost}:
            continue  # thoughts in the record, and enable_thinking=false: not trained, for generation sees another prompt
        # a document ends with the last answer that carries loss where the turns behind it would cost that its loss
        added = all(m.role != "system" for m in example.messages)
        shown = replace(example, messages=example.messages[: draft.answers[-1].turn + 1 - added])
        for renderer, tokens in ((ours, a), (foreign, b)):
            prompt = renderer.prompt(shown)
            assert tokens.ids[: len(prompt)].tolist() == prompt
    assert compared >= 5
    assert ours.counts["decode_differs"] == 0
