"""Ids equal those of transformers' apply_chat_template, on real templates, tokenizers and conversations."""

from __future__ import annotations

import pytest
from render_helpers import (
    LLAMA3_TOKENS,
    PHI3_TOKENS,
    extended,
    hf_ids,
    real_conversations,
    real_instructions,
    real_tool_conversations,
)
from tokenizers import AddedToken

from sft_dist.core.records import Drop, Message, make_example
from sft_dist.render.builtin import BUILTINS
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer

# stock template -> the tokenizer it is tried with
STOCK = {
    "qwen3": "dolma2",
    "qwen3_training": "dolma2",
    "qwen2_5": "dolma2",
    "qwen2_5_training": "dolma2",
    "llama3": "llama3",
    "llama3_training": "llama3",
    "phi3": "phi3",
    "phi3_training": "phi3",
    "tulu_open_instruct_test": "dolma2",
    "axolotl_chatml": "dolma2",
    "axolotl_llama3": "llama3",
    "axolotl_alpaca": "llama3",
}


@pytest.fixture(scope="module")
def folders(shared_data, tmp_path_factory):
    root, base = tmp_path_factory.mktemp("tokenizers"), shared_data / "tokenizers/dolma2"
    phi3 = [
        AddedToken(t, special=True, normalized=False, rstrip=True) for t in PHI3_TOKENS
    ]  # as Phi-3 has them
    return {
        "dolma2": extended(base, root / "dolma2", [], eos_token="<|endoftext|>", pad_token="<|pad|>"),
        "llama3": extended(
            base, root / "llama3", LLAMA3_TOKENS, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
        ),
        "phi3": extended(base, root / "phi3", phi3, eos_token="<|endoftext|>"),
        "qwen": extended(
            base,
            root / "qwen",
            [
                AddedToken(t, special=False, normalized=False)
                for t in ("<think>", "</think>", "<tool_call>", "</tool_call>")
            ],
            eos_token="<|im_end|>",
        ),
    }


@pytest.fixture(scope="module")
def loaded(folders):
    from transformers import AutoTokenizer

    return {
        n: (TextTokenizer.load(str(f)), AutoTokenizer.from_pretrained(str(f))) for n, f in folders.items()
    }


def compare(renderer, theirs, template, examples):
    """Every example is rendered; ids and prompts equal transformers'; differences are counted by the renderer."""
    rendered = renderer.render(examples)
    unequal = 0
    for example, tokens in zip(examples, rendered, strict=True):
        assert not isinstance(tokens, Drop), tokens
        unequal += tokens.ids.tolist() != hf_ids(theirs, example, template)
    assert unequal <= renderer.counts["borders_that_differ"]
    return unequal


@pytest.mark.parametrize("name", STOCK)
def test_stock_template_gives_the_same_ids(name, loaded, shared_data):
    ours, theirs = loaded[STOCK[name]]
    path = shared_data / f"chat_templates/{name}.jinja"
    renderer = Renderer(ours, template=str(path), thinking="keep_all")
    examples = real_conversations(shared_data)[::8] + real_instructions(shared_data, 60)
    assert compare(renderer, theirs, path.read_text(), examples) <= 0.02 * len(examples)
    assert renderer.counts["decode_differs"] == 0


@pytest.mark.parametrize("name", STOCK)
def test_prompt_is_what_transformers_feeds_and_what_training_saw(name, loaded, shared_data):
    ours, theirs = loaded[STOCK[name]]
    path = shared_data / f"chat_templates/{name}.jinja"
    renderer = Renderer(ours, template=str(path), train_on="last_turn", train_empty_think=True)
    for example in real_conversations(shared_data)[::30]:
        head = make_example(task="t", source="s", messages=example.messages[:-1])
        prompt = renderer.prompt(example)
        assert prompt == renderer.prompt(head)
        assert prompt == hf_ids(theirs, head, path.read_text(), add_generation_prompt=True)
        tokens = renderer.render([example])[0]
        assert tokens.ids[: tokens.spans[0].start].tolist() == prompt


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5"])
@pytest.mark.parametrize("tokenizer", ["dolma2", "qwen"])
def test_tools_and_thoughts_give_the_same_ids(name, tokenizer, loaded, shared_data):
    ours, theirs = loaded[tokenizer]
    path = shared_data / f"chat_templates/{name}.jinja"
    renderer = Renderer(ours, template=str(path), thinking="keep_all")
    examples = real_tool_conversations(shared_data)
    if name == "qwen2_5":  # knows no thoughts; ours would put them into the content
        examples = [without_thoughts(e) for e in examples]
    assert compare(renderer, theirs, path.read_text(), examples) == 0


@pytest.mark.parametrize("tokenizer", ["dolma2", "qwen"])
def test_our_qwen3_is_the_stock_qwen3(tokenizer, loaded, shared_data):
    ours, theirs = loaded[tokenizer]
    stock = (shared_data / "chat_templates/qwen3.jinja").read_text()
    examples = real_conversations(shared_data)[::8] + real_tool_conversations(shared_data)
    examples += [
        e
        for e in real_conversations(shared_data)[:20]
        for e in [with_kwargs(e, '{"enable_thinking": false}')]
    ]
    assert compare(Renderer(ours, template="qwen3"), theirs, stock, examples) == 0


@pytest.mark.parametrize("thinking", ["keep_all", "last_turn", "strip"])
@pytest.mark.parametrize("name", BUILTINS)
def test_builtin_equals_its_jinja_twin(name, thinking, loaded, shared_data):
    """The Python writer, and the Jinja text that an export carries, through transformers."""
    ours, theirs = loaded["llama3" if name == "llama3" else "dolma2"]
    renderer = Renderer(ours, template=name, thinking=thinking, system="Be 'brief'.\nBe \\kind.")
    examples = real_conversations(shared_data)[::10] + real_instructions(shared_data, 40)
    tools = real_tool_conversations(shared_data)[::2]
    examples += (
        tools
        if BUILTINS[name].tools
        else [make_example(task="t", source="s", messages=spoken(e)) for e in tools]
    )
    rendered = renderer.render(examples)
    for example, tokens in zip(examples, rendered, strict=True):
        text = ours.decode(tokens.ids.tolist())
        assert text == theirs.decode(hf_ids(theirs, example, renderer.template_text))
    assert compare(renderer, theirs, renderer.template_text, examples) <= 0.02 * len(examples)


@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama3", "alpaca", "tk-instruct", "plain"])
def test_builtin_equals_itself_as_a_foreign_template(name, loaded, shared_data, tmp_path):
    """Two independent ways to ids and spans: writing parts, and cutting renderings of the twin."""
    ours, _ = loaded["llama3" if name == "llama3" else "dolma2"]
    builtin = Renderer(ours, template=name)
    (tmp_path / "twin.jinja").write_text(builtin.template_text)
    foreign = Renderer(ours, template=str(tmp_path / "twin.jinja"))
    examples = real_conversations(shared_data)[::10] + real_instructions(shared_data, 40)
    if name in ("alpaca", "tk-instruct"):  # cut the question in two, which as a foreign template is refused
        examples = [e for e in examples if e.input_start is None]
    if BUILTINS[name].tools:
        examples += real_tool_conversations(shared_data)
    for a, b in zip(builtin.render(examples), foreign.render(examples), strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.spans == b.spans


def test_saved_tokenizer_opens_in_transformers(loaded, shared_data, tmp_path):
    from transformers import AutoTokenizer

    ours, _ = loaded["dolma2"]
    renderer = Renderer(ours, template="chatml", system="Be brief.")
    renderer.save_tokenizer(tmp_path)
    theirs, again = AutoTokenizer.from_pretrained(str(tmp_path)), TextTokenizer.load(str(tmp_path))
    assert theirs.eos_token_id == again.eos_id == renderer.stop_ids[0]
    assert theirs.pad_token == "<|pad|>"
    auto = Renderer(again)
    for example in real_conversations(shared_data)[:40]:
        ids = renderer.render([example])[0].ids.tolist()
        assert hf_ids(theirs, example) == ids == auto.render([example])[0].ids.tolist()


def without_thoughts(example):
    messages = tuple(
        Message(role=m.role, content=m.content, tool_calls=m.tool_calls) for m in example.messages
    )
    return make_example(task="t", source="s", messages=messages, tools=example.tools)


def with_kwargs(example, kwargs):
    return make_example(task="t", source="s", messages=example.messages[:2], template_kwargs=kwargs)


def spoken(example):
    """The turns of a tool conversation without tools: thoughts and answers only."""
    return tuple(
        Message(role=m.role, content=m.content or "-", reasoning_content=m.reasoning_content)
        for m in example.messages
        if m.role != "tool"
    )
