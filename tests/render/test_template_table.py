"""The table of docs/templates.md holds, and every `exact` in it is what `transformers` says."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime

import pytest
import template_table
from template_table import DOCS, SHAPES, example, outcome, own_renderers, page, stock_renderers

from sft_dist.core.records import Drop, make_example
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer

EMPTY_BLOCK = re.compile(r"\s*(<think>)?\s*</think>\n*|<\|channel>thought\s*<channel\|>\n*")
OPEN_BLOCK = re.compile(r"<think>\n?\Z")
PROMPT_BLOCK = re.compile(r"<\|channel>thought\s*<channel\|>\n*\Z")  # of a generation prompt alone


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Tokenizers as transformers opens them, with the template that an export carries."""
    from transformers import AutoTokenizer

    known = {}

    def open_(name, renderer):
        if name not in known:
            folder = tmp_path_factory.mktemp("opened")
            renderer.tokenizer.save(folder, template_text=renderer.template_text)
            known[name] = AutoTokenizer.from_pretrained(folder)
        return known[name]

    return open_


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch):
    """Transformers reads the machine's clock; here it reads that of the renderers."""

    class Fixed(datetime):
        @classmethod
        def now(cls, tz=None):
            return template_table.CLOCK

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Fixed)


def handed(ex):
    """Yield (messages, tools) in each way in which one hands a record to transformers."""
    ways = itertools.product((False, True), (False, True), (False, True), (None, True, False))
    seen = []
    for inline, absent, as_text, wrap in ways:
        messages = []
        for m in ex.messages:
            if not inline and "</think>" in m.content:
                thoughts, content = m.content.removeprefix("<think>").split("</think>")
                m = replace(m, content=content.strip(), reasoning_content=thoughts.strip())  # noqa: PLW2901
            d = {"role": m.role, "content": m.content}
            if m.reasoning_content and inline:
                d["content"] = f"<think>\n{m.reasoning_content}\n</think>\n\n{m.content}"
            elif m.reasoning_content:
                d |= dict.fromkeys(("reasoning_content", "thinking", "reasoning"), m.reasoning_content)
            if m.tool_calls:
                d["content"] = None if absent and not d["content"] else d["content"]
                d["tool_calls"] = []
                for c in m.tool_calls:
                    try:
                        arguments = json.loads(c.arguments)
                        arguments = json.dumps(arguments) if as_text else arguments
                    except json.JSONDecodeError:
                        arguments = c.arguments
                    d["tool_calls"].append(
                        {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": arguments}}
                    )
            if m.role == "tool":
                d |= {"name": m.name, "tool_call_id": m.tool_call_id}
            messages.append(d)
        tools = [json.loads(t) for t in ex.tools]
        if wrap is True:
            tools = [t if "function" in t else {"type": "function", "function": t} for t in tools]
        elif wrap is False:
            tools = [t.get("function", t) for t in tools]
        if (messages, tools) not in seen:
            seen.append((messages, tools))
            yield messages, tools or None


def held_against(tokenizer, renderer, ex, tokens):
    """Return why the spans are not what generation has, in one way to hand the record over; None if they are."""
    why = []
    variables = json.loads(ex.template_kwargs) if ex.template_kwargs else {}
    for messages, tools in handed(ex):
        try:
            why.append(_compare(tokenizer, renderer, messages, tools, variables, tokens))
        except Exception as error:  # noqa: BLE001  the template refuses this way
            why.append(repr(error))
        if why[-1] is None:
            return None
    return "\n".join(why)


def _compare(tokenizer, renderer, messages, tools, variables, tokens):
    ids = tokens.ids.tolist()
    # history is cut where its answers begin, and transformers merges there: texts are compared then
    merged = renderer.counts["borders_that_differ"] > 0
    prompts = []
    for i, m in enumerate(messages):
        if m["role"] == "assistant" and i:
            # an answer without thoughts is fed the empty block, as enable_thinking=false has it
            for quiet in ({}, {"enable_thinking": False}):
                fed = tokenizer.apply_chat_template(
                    messages[:i],
                    tools=tools,
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                    **{**quiet, **variables},
                )
                if (i, fed) not in prompts:
                    prompts.append((i, fed))
    for span in tokens.spans:
        text = tokenizer.decode(ids[span.start : span.start + span.length])
        fits = []
        for i, fed in prompts:
            before, fed_text = tokenizer.decode(ids[: span.start]), tokenizer.decode(fed)
            between = before[len(fed_text) :]
            same = before.startswith(fed_text) if merged else ids[: len(fed)] == fed
            if same and EMPTY_BLOCK.sub("", between, count=1) == "":
                whole = tokenizer.apply_chat_template(
                    messages[: i + 1], tools=tools, tokenize=False, **variables
                )
                history = tokenizer.apply_chat_template(
                    messages[:i], tools=tools, tokenize=False, **variables
                )
                header = fed_text.removeprefix(history)
                fits.append((i, _must_write(whole, before, between, header, text, renderer.stop_tokens)))
        if not any(ok for _, ok in fits):
            return f"{text!r} fits no turn: {fits}"
    return None


def _must_write(whole, prompt, between, header, text, stops):
    """Whether `text` is all that is written of the last turn behind the prompt, up to the token that ends the turn.

    A template may rewrite the turns before the last one, or show an empty think block to generation alone. Then what it
    writes behind the header of the turn counts. It may also show the thoughts of no turn: generation writes them.
    """
    stop = next((s for s in stops if text.endswith(s)), None)
    if stop is None or any(s in text[: -len(stop)] for s in stops):
        return False
    said = text.removesuffix(stop)
    starts = [prompt, prompt.removesuffix(between)]
    rest = next((whole[len(p) :] for p in starts if whole.startswith(p)), None)
    if rest is None:
        header = PROMPT_BLOCK.sub("", header)
        if OPEN_BLOCK.search(header) and "</think>" in text:
            header, text = OPEN_BLOCK.sub("", header), text.split("</think>")[-1].lstrip("\n")
        at = whole.rfind(header, 0, whole.rfind(text)) if header.strip() and text in whole else -1
        rest = whole[at + len(header) :].rstrip()
        return at >= 0 and text in (rest, EMPTY_BLOCK.sub("", rest, count=1))
    found = EMPTY_BLOCK.match(rest)
    rests = [rest, rest[found.end() :] if found else rest]
    # a template that leaves the last answer open ends it with the opening of the next turn
    return any(r.startswith(text) or (r == said) for r in rests)


def _check(renderers, opened):
    seen: Counter[str] = Counter()
    wrong: dict[tuple[str, str], str] = {}
    for name, renderer in renderers.items():
        for shape in SHAPES:
            ex = example(shape)
            renderer.counts.clear()
            tokens = renderer.render([ex])[0]
            if isinstance(tokens, Drop):
                assert tokens.detail, (name, shape)
                seen["dropped"] += 1
                continue
            if not name.startswith("built-in") and (
                why := held_against(opened(name, renderer), renderer, ex, tokens)
            ):
                wrong[name, shape] = why
            seen["exact"] += 1
    assert not wrong, wrong
    return seen


def test_own_templates_are_exact_or_dropped(opened):
    seen = _check(own_renderers(), opened)
    assert len(SHAPES) >= 25
    assert seen["exact"] >= 450


def test_stock_templates_are_exact_or_dropped(opened):
    if not stock_renderers():
        pytest.skip("no stock templates at hand")
    assert _check(stock_renderers(), opened)["exact"] >= 300


def test_the_page_is_of_today():
    if not stock_renderers():
        pytest.skip("no stock templates at hand")
    assert DOCS.read_text() == page(), "run: python tests/render/template_table.py"


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("gpt_oss", ("<|return|>", "<|call|>")),
        ("command", ("<|END_OF_TURN_TOKEN|>",)),
        ("glm", ("<|user|>", "<|observation|>")),
        ("smollm2", ("<|im_end|>",)),
    ],
)
def test_stops_are_the_tokens_that_end_a_turn(name, stops):
    assert own_renderers()[name].stop_tokens == stops


def texts(name, shape):
    renderer = own_renderers()[name]
    tokens = renderer.render([example(shape)])[0]
    assert not isinstance(tokens, Drop), tokens
    return [
        renderer.tokenizer.decode(tokens.ids[s.start : s.start + s.length].tolist()) for s in tokens.spans
    ]


def test_all_that_generation_writes_carries_loss_in_a_turn_of_several_channels():
    assert texts("gpt_oss", "thoughts") == [
        "<|channel|>analysis<|message|>I feel well.<|end|><|start|>assistant<|channel|>final<|message|>I am fine.<|return|>"
    ]
    assert texts("gpt_oss", "call, result, answer") == [
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>',
        "<|channel|>final<|message|>12 degrees.<|return|>",
    ]


def test_a_turn_that_the_template_leaves_open_ends_as_the_next_one_opens():
    assert texts("glm", "call, result, answer") == [
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call><|observation|>",
        "12 degrees.<|user|>",
    ]


def test_an_empty_think_block_that_the_prompt_opens_carries_no_loss():
    assert texts("qwen3_5", "question, answer") == ["I am fine.<|im_end|>"]


def test_arguments_are_handed_over_as_the_template_joins_them():
    assert texts("deepseek", "call")[0].count('get_weather<｜tool▁sep｜>{"city": "Paris"}') == 1
    assert texts("join_text", "call") == ['get_weather: {"city": "Paris"};<|im_end|>']


def test_a_template_that_needs_thoughts_is_not_refused_for_ours_without():
    renderer = own_renderers()["nemotron"]
    assert outcome(renderer, "thoughts") == "exact"
    dropped = renderer.render([example("question, answer")])[0]
    assert dropped.reason == "no_target"
    assert "render.template_kwargs={enable_thinking: false}" in dropped.detail


def test_an_answer_that_history_rewrites_is_trained_in_a_document_of_its_own():
    renderer = own_renderers()["qwen3_5"]
    shape = "system, three rounds"
    lost = renderer.documents([example(shape)])[0]
    assert len(lost) == 1
    folder = renderer.tokenizer.path
    expanding = Renderer(TextTokenizer.load(folder), clock=template_table.CLOCK, expand_turns=True)
    assert expanding.fingerprint != renderer.fingerprint
    documents = expanding.documents([example(shape)])[0]
    trained = [
        [expanding.tokenizer.decode(d.ids[s.start : s.start + s.length].tolist()) for s in d.spans]
        for d in documents
    ]
    assert trained == [["No.<|im_end|>"], ["I am fine.<|im_end|>"], ["Better.<|im_end|>"]]
    counts = expanding.counts
    assert (counts["answers"], counts["expanded"], counts["context_differs"], counts["conversations"]) == (
        3,
        2,
        0,
        1,
    )
    fed = expanding.prompt(make_example(task="t", source="s", messages=example(shape).messages[:5]))
    assert documents[2].ids[: len(fed)].tolist() == fed


def test_expanding_leaves_alone_what_history_shows_as_it_was():
    renderer = own_renderers()["granite"]
    expanding = Renderer(
        TextTokenizer.load(renderer.tokenizer.path), clock=template_table.CLOCK, expand_turns=True
    )
    assert [
        len(d) for d in expanding.documents([example("system, three rounds"), example("question, answer")])
    ] == [1, 1]


def document(name, ex, **options):
    """(what generation is fed, what carries loss) of the only document of an example."""
    known = own_renderers()[name]
    renderer = Renderer(TextTokenizer.load(known.tokenizer.path), clock=template_table.CLOCK, **options)
    [tokens] = renderer.documents([ex])[0]
    ids = tokens.ids.tolist()
    spans = [(s.start, s.start + s.length) for s in tokens.spans]
    texts = [renderer.tokenizer.decode(ids[a:b]) for a, b in spans]
    return renderer, ids, spans, texts


@pytest.mark.parametrize(
    ("name", "shape", "trained"),
    [
        (
            "gpt_oss",  # history loses the thoughts of a call once an answer follows; generation never had it so
            "thoughts, call, result, answer",
            [
                (
                    "<|channel|>analysis<|message|>Look it up.<|end|><|start|>assistant to=functions.get_weather"
                    '<|channel|>commentary json<|message|>{"city": "Paris"}<|call|>'
                ),
                "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>12.<|return|>",
            ],
        ),
        (
            "kimi",
            "thoughts in two rounds",
            ["<think>First.</think>I am fine.<|im_end|>", "<think>Then.</think>Better.<|im_end|>"],
        ),
        ("gemma4", "two rounds", ["Better.<turn|>"]),  # the empty block of the prompt stands in no history
        ("deepseek_r1", "thoughts in two rounds", ["Then.\n</think>\n\nBetter.<｜end▁of▁sentence｜>"]),
    ],
)
def test_the_last_answer_is_trained_behind_what_generation_is_fed(name, shape, trained):
    ex = example(shape)
    renderer, ids, spans, texts = document(name, ex)
    assert texts == trained
    fed = renderer.prompt(ex)
    assert ids[: len(fed)] == fed
    assert spans[-1] == (len(fed), len(ids) - (name == "gemma4"))  # which writes a line end behind a turn


def test_earlier_answers_without_loss_are_counted_and_get_documents_of_their_own():
    ex = example("thoughts in two rounds")
    renderer, *_ = document("deepseek_r1", ex)
    assert (renderer.counts["answers"], renderer.counts["context_differs"]) == (1, 1)
    known = own_renderers()["deepseek_r1"]
    expanding = Renderer(TextTokenizer.load(known.tokenizer.path), expand_turns=True)
    documents = expanding.documents([ex])[0]
    decode = expanding.tokenizer.decode
    assert [[decode(d.ids[s.start : s.start + s.length].tolist()) for s in d.spans] for d in documents] == [
        ["Then.\n</think>\n\nBetter.<｜end▁of▁sentence｜>"],
        ["First.\n</think>\n\nI am fine.<｜end▁of▁sentence｜>"],
    ]


def test_a_prompt_that_closes_the_think_block_leaves_thoughts_out_and_they_are_counted():
    ex = example("thoughts")
    renderer, _, _, texts = document("deepseek", ex)
    assert (texts, renderer.counts["thoughts_dropped"]) == (["I am fine.<｜end▁of▁sentence｜>"], 1)
    renderer, _, _, texts = document("deepseek", ex, template_kwargs={"thinking": True})
    assert (texts, renderer.counts["thoughts_dropped"]) == (
        ["I feel well.</think>I am fine.<｜end▁of▁sentence｜>"],
        0,
    )
    dropped = own_renderers()["gemma4"].render([ex])[0]  # whose history would show them behind an empty block
    assert dropped.detail.endswith("; with render.template_kwargs={enable_thinking: true} it would be")


def test_turns_behind_the_last_answer_do_not_cost_it_its_loss():
    messages = example("thoughts").messages + example("two rounds").messages[2:3]
    asked = make_example(task="t", source="s", messages=messages)
    _, ids, spans, texts = document("qwen3_5", asked)
    assert texts == ["I feel well.\n</think>\n\nI am fine.<|im_end|>"]
    assert spans[0][1] == len(ids) - 1  # a line end follows, and no question
