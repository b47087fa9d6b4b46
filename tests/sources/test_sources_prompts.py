"""Records without answers: which are prompts, what they keep, and the one message when the config does not say so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord, Example
from sft_dist.sources import open_source


def source_of(**options: object):
    config = validate({"data": {"sources": {"s": options}}, "model": {"path": "some/model"}})
    return open_source("s", config.data.sources["s"])


def lines(path: Path, records: list[object]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def turns(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for role, text in zip(("user", "assistant") * 3, contents, strict=False)
    ]


def test_collected_prompts_and_prompts_with_an_answer_that_is_left_out(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        [
            {"instruction": "Name a river."},
            {"instruction": "Sort it.", "input": "3 1 2", "output": "1 2 3"},
            {"instruction": "  "},
        ],
    )
    plain, given, empty = source_of(kind="alpaca", path=path, prompts=True)
    assert isinstance(plain, Example)
    assert [(m.role, m.content) for m in plain.messages] == [("user", "Name a river.")]
    assert (given.instruction, given.input, given.output, given.is_prompt) == ("Sort it.", "3 1 2", "", True)
    assert isinstance(empty, BadRecord)
    assert empty.reason == "the prompt is empty"


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.jsonl"])
def test_a_plain_list(tmp_path, name):
    texts = ["Name a river.", "Say hello."]
    written = {
        "a.txt": "\n".join(texts),
        "a.json": json.dumps(texts),
        "a.jsonl": "\n".join(map(json.dumps, texts)),
    }
    (tmp_path / name).write_text(written[name])
    source = source_of(kind="alpaca", path=str(tmp_path / name), prompts=True, instruction_field="text")
    assert [e.instruction for e in source] == texts
    assert all(e.is_prompt for e in source)


def test_earlier_answers_are_context_without_loss(tmp_path):
    path = lines(
        tmp_path / "chat.jsonl",
        [
            {"messages": [{"role": "system", "content": "Be short."}, *turns("a", "b", "c", "d")]},
            {"messages": turns("a")},
            {"messages": turns("a", "b", " ")},
            {"messages": turns("a", "b")[1:]},
        ],
    )
    first, second, empty, wrong = source_of(kind="chat", path=path, prompts=True)
    assert [(m.role, m.content, m.weight) for m in first.messages] == [
        ("system", "Be short.", None), ("user", "a", None), ("assistant", "b", 0.0), ("user", "c", None),
    ]  # fmt: skip
    assert first.is_prompt
    assert second.is_prompt
    assert empty.reason == "the prompt is empty"
    assert "is assistant, not user" in wrong.reason
    past = {"instruction": "c", "past": [["a", "b"]]}
    [example] = source_of(
        kind="alpaca", path=lines(tmp_path / "h.jsonl", [past]), prompts=True, history_field="past"
    )
    assert example.messages == first.messages[1:]


def test_trees_end_in_what_was_asked(tmp_path):
    def node(role: str, text: str, *replies: dict[str, object]) -> dict[str, object]:
        return {"role": role, "text": text, "replies": list(replies)}

    answers = node("assistant", "b", node("prompter", "c", node("assistant", "d"))), node("assistant", "e")
    path = lines(tmp_path / "t.jsonl", [{"prompt": node("prompter", "a", *answers)}])
    [best] = source_of(kind="chat", path=path, prompts=True)
    assert [m.content for m in best.messages] == ["a", "b", "c"]
    # the other path ends where the first one began
    assert [e.id for e in source_of(kind="chat", path=path, prompts=True, paths="all")] == [best.id]


def test_what_can_be_trained_on_is_no_prompt(tmp_path):
    path = lines(tmp_path / "c.jsonl", [{"messages": turns("a", "b", "c")}, {"messages": turns("a", "b")}])
    assert [e.is_prompt for e in source_of(kind="chat", path=path)] == [False, False]


def test_without_the_option_it_is_said_how_prompts_are_read(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"instruction": "Name a river."}])
    with pytest.raises(
        UserError, match="field 'output' is missing.*or set prompts=true if its records have no answers"
    ):
        source_of(kind="alpaca", path=path)
    with pytest.raises(UserError, match="share, weight would change nothing, because prompts=true"):
        source_of(kind="alpaca", path=path, prompts=True, share=0.5, weight=2)


def test_the_suffix_of_rendered_rows_is_cut(tmp_path):
    row = {"prompt": "Is it?", "completion": "Yes<|endoftext|>"}
    other = {"prompt": "Is it <|endoftext|>", "completion": ["No<|endoftext|>", "No way"]}
    options = {
        "kind": "alpaca", "path": lines(tmp_path / "a.jsonl", [row, other]), "instruction_field": "prompt", "output_field": "completion",
    }  # fmt: skip
    plain, cut = (list(source_of(**options, strip_suffix=s)) for s in (None, "<|endoftext|>"))
    assert [e.output for e in plain] == ["Yes<|endoftext|>", "No<|endoftext|>"]
    assert [e.output for e in cut] == ["Yes", "No"]
    assert (cut[1].references, cut[1].instruction) == (("No", "No way"), "Is it <|endoftext|>")
    prints = {source_of(**options, strip_suffix=s).fingerprint() for s in (None, "<|endoftext|>")}
    assert len(prints) == 2


def test_the_collected_prompts_of_instructwild(shared_data):
    """The damaged lines are known (user_2: 134, 168; user_3: 10 and a record broken in two, 121 and 122)."""
    records = list(
        source_of(
            kind="alpaca", path=str(shared_data / "instructwild" / "data_v2_user_*.jsonl"), prompts=True
        )
    )
    bad = [(Path(r.file).stem[-1], r.line) for r in records if isinstance(r, BadRecord)]
    assert bad == [("2", 134), ("2", 168), ("3", 10), ("3", 121), ("3", 122)]
    assert all(r.is_prompt for r in records if isinstance(r, Example))
