"""Variables, clock and names of chat templates; stops and BOS; what an export carries of them."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from render_helpers import chat, targets

from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop
from sft_dist.render.compiled_template import ChatTemplate
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer

BODY = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = "{% if tools %}{{ '<|im_start|>tools\n' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
ROUND = chat(("u", "q"), ("a", "a"))
DAY = datetime.fromisoformat("2026-03-04T05:06")


def save(folder, template, **config):
    train_tokenizer(["user assistant"] * 4, 320, ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")).save(
        folder
    )
    known = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**known, "chat_template": template, **config}))
    return TextTokenizer.load(str(folder))


def text(renderer, example):
    tokens = renderer.render([example])[0]
    assert not isinstance(tokens, Drop), tokens
    return renderer.tokenizer.decode(tokens.ids.tolist())


def test_variables_are_rendered_fingerprinted_and_exported(tmp_path):
    macro = "{% macro head() %}{{ mood is defined and mood }} {{ d.a[0] if d is defined }}\n{% endmacro %}{{ head() }}"
    tokenizer = save(tmp_path, macro + BODY)
    given = {"mood": "it's \\ \n wild", "d": {"a": [True, None, 1.5]}, "quiet": False}
    plain, renderer = Renderer(tokenizer), Renderer(tokenizer, template_kwargs=given)
    assert text(plain, ROUND).startswith("False \n")
    assert text(renderer, ROUND).startswith("it's \\ \n wild True\n")
    assert renderer.tokenizer.decode(renderer.prompt(ROUND)).startswith("it's \\ \n wild True\n")
    assert plain.fingerprint != renderer.fingerprint
    exported = ChatTemplate(renderer.template_text, tokenizer.specials, "exported")
    messages = [{"role": m.role, "content": m.content} for m in ROUND.messages]
    assert exported.render(messages) == text(renderer, ROUND)
    assert exported.render(messages, variables={"mood": "calm"}).startswith("calm True")
    assert text(renderer, chat(("u", "q"), ("a", "a"), kwargs='{"mood": "own"}')).startswith("own True")


def test_the_clock_is_fixed_and_in_the_fingerprint_of_templates_that_read_it(tmp_path):
    tokenizer = save(tmp_path, "{{ strftime_now('%d %b %Y') }}\n" + BODY)
    one, same, other = (Renderer(tokenizer, clock=c) for c in (DAY, DAY, DAY.replace(day=5)))
    assert text(one, ROUND).startswith("04 Mar 2026\n")
    assert one.tokenizer.decode(one.prompt(ROUND)).startswith("04 Mar 2026\n")
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert one.clock == DAY
    plain = [Renderer(tokenizer, template="chatml", clock=c) for c in (DAY, DAY.replace(day=5))]
    assert plain[0].fingerprint == plain[1].fingerprint
    assert plain[0].clock is None


@pytest.mark.parametrize("last", ["", "\n"])
def test_tool_use_is_taken_where_a_record_has_tools(tmp_path, last):
    named = [
        {"name": "default", "template": BODY + last},
        {"name": "tool_use", "template": TOOLS + BODY + last},
    ]
    tokenizer = save(tmp_path, named)
    renderer = Renderer(tokenizer)
    asked = chat(("u", "q"), ("a", "a"), tools=('{"name": "add"}',))
    whole = ChatTemplate(BODY + last, {}, "default").render(
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    )
    assert text(renderer, ROUND) == whole
    assert text(renderer, asked) == '<|im_start|>tools\n[{"name": "add"}]<|im_end|>\n' + whole
    assert text(Renderer(tokenizer, template="default"), ROUND) == whole
    dropped = Renderer(tokenizer, template="default").render([asked])[0]
    assert dropped.reason == "template_without_tools"


def test_transformers_takes_the_same_template(tmp_path):
    from transformers import AutoTokenizer

    named = [{"name": "default", "template": BODY}, {"name": "tool_use", "template": TOOLS + BODY}]
    renderer = Renderer(save(tmp_path, named))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    renderer.save_tokenizer(tmp_path / "out")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for tools in (None, [{"name": "add"}]):
        example = chat(("u", "q"), ("a", "a"), tools=tuple(json.dumps(t) for t in tools or ()))
        ids = renderer.render([example])[0].ids.tolist()
        for tokenizer in (theirs, exported):
            assert tokenizer.apply_chat_template(messages, tools=tools, return_dict=False) == ids
    assert exported.model_input_names == ["input_ids", "attention_mask"]


def test_several_templates_without_a_default_have_to_be_named(tmp_path):
    tokenizer = save(tmp_path, [{"name": "rag", "template": BODY}, {"name": "chat", "template": BODY}])
    with pytest.raises(UserError, match=r"\(rag, chat\) and none named default"):
        Renderer(tokenizer)
    assert text(Renderer(tokenizer, template="rag"), ROUND)


def test_templates_in_files_of_their_own(tmp_path):
    save(tmp_path, None)
    (tmp_path / "chat_template.jinja").write_text(BODY)
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text(TOOLS + BODY)
    assert set(TextTokenizer.load(str(tmp_path)).chat_templates) == {"default", "tool_use"}


def test_bos_that_opens_every_turn_is_no_fault_and_two_at_the_start_are(tmp_path):
    opener = Renderer(save(tmp_path / "a", BODY, bos_token="<|im_start|>"))
    assert targets(opener.tokenizer, opener.render([ROUND])[0]) == ["a<|im_end|>"]
    doubled = Renderer(save(tmp_path / "b", "{{ bos_token }}{{ bos_token }}" + BODY, bos_token="<s>"))
    assert doubled.render([ROUND])[0].reason == "double_bos"
    each_round = BODY.replace(
        "'<|im_start|>' + m.role", "(bos_token if m.role == 'user' else '') + '<|im_start|>' + m.role"
    )
    rounds = Renderer(save(tmp_path / "c", each_round, bos_token="<s>"))
    assert len(rounds.render([chat(("u", "q"), ("a", "a"), ("u", "r"), ("a", "b"))])[0].spans) == 2
