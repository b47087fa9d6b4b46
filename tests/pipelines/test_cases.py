"""Small inputs that once showed a fault (../shared/cases): each gives what its README calls right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, Example
from sft_dist.evals.metrics import METRICS, metric_of_task
from sft_dist.pipelines.data.check import check
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.sources import open_source

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the inputs of ../shared/cases are not at hand")


class Case:
    """A folder of ../shared/cases with its config, which is read inside the folder."""

    def __init__(self, tmp, monkeypatch):
        self._tmp, self._monkeypatch = tmp, monkeypatch

    def config(self, name, *overrides):
        self._monkeypatch.chdir(CASES / name)
        return load_config(
            [f"data.dir={self._tmp / 'data'}", f"run_root={self._tmp / 'runs'}", *overrides], Path("c.yaml")
        )

    def check(self, name, *overrides):
        """The summary of `check`."""
        return check(self.config(name, *overrides), limit=1000)

    def rendered(self, name, *overrides):
        """(renderer, for each record its trained texts, or why it is dropped or not read)."""
        config = self.config(name, *overrides)
        renderer = make_renderer(config, self._tmp, tuple)
        found = []
        for record in open_source("t", config.data.sources["t"]):
            if not isinstance(record, Example):
                found.append(record)
                continue
            tokens = renderer.render([record])[0]
            if isinstance(tokens, Drop):
                found.append(tokens.reason)
                continue
            ids = tokens.ids.tolist()
            found.append([renderer.tokenizer.decode(ids[s.start : s.start + s.length]) for s in tokens.spans])
        return renderer, found

    def shown(self, name, *overrides):
        """The text of the first document."""
        config = self.config(name, *overrides)
        renderer = make_renderer(config, self._tmp, tuple)
        first = next(iter(open_source("t", config.data.sources["t"])))
        return renderer.tokenizer.decode(renderer.render([first])[0].ids.tolist())


@pytest.fixture
def case(tmp_path, monkeypatch):
    return Case(tmp_path, monkeypatch)


def table_nulls_leave(case):
    shown = case.shown("01-arrow-padding")
    assert "null" not in shown
    assert shown == case.shown("01-arrow-padding", "data.sources.t.path=tools.jsonl")


def all_that_generation_writes_carries_loss(case):
    renderer, found = case.rendered("02-gpt-oss")
    assert renderer.stop_tokens == ("<|return|>", "<|call|>")
    for [answer] in found:
        assert answer.startswith("<|channel|>analysis<|message|>")
        assert "<|end|><|start|>assistant<|channel|>final<|message|>" in answer
        assert answer.endswith("<|return|>")


def calls_are_trained_with_their_thoughts(case):
    _, found = case.rendered("02-gpt-oss", "data.sources.t.path=gptoss_tools.jsonl")
    for call, answer in found:
        assert call.startswith(
            "<|channel|>analysis<|message|>look it up<|end|><|start|>assistant to=functions.weather"
        )
        assert call.endswith("<|call|>")
        assert answer.startswith("<|channel|>final<|message|>")
        assert answer.endswith("<|return|>")
    summary = case.check("02-gpt-oss", "data.sources.t.path=gptoss_tools.jsonl")
    assert (summary.examples, summary.drops) == (20, {})


def marks_are_read_or_refused(case):
    assert case.rendered("03-loss-key")[1] == [["GOOD<|im_end|>"]]
    refused = case.rendered("03-loss-key", "data.sources.t.path=mask_key.jsonl")[1]
    assert all(
        "BAD" not in json.dumps(found, default=str) or not isinstance(found, list) for found in refused
    )
    config = case.config("03-loss-key", "data.sources.t.path=recweight.jsonl")
    renderer = make_renderer(config, Path(config.data.dir), tuple)
    none, half = renderer.render(list(open_source("t", config.data.sources["t"])))
    assert none.reason == "no_target"
    assert {s.weight for s in half.spans} == {0.5}


def answers_without_loss_are_said(case):
    summary = case.check("04-multi-turn-thinking")
    assert any(
        w.startswith("60 of 80 answers (75%) carry no loss") and "render.expand_turns=true" in w
        for w in summary.warnings
    )
    expanded = case.check("04-multi-turn-thinking", "render.expand_turns=true")
    assert expanded.examples == 80
    assert not any("carry no loss" in w for w in expanded.warnings)


def a_probe_does_not_decide_for_the_records(case):
    _, found = case.rendered("05-probe-refuses-nemotron")
    assert all(len(answers) == 1 and answers[0].endswith("<|im_end|>") for answers in found)
    assert all("</think>" in answers[0] for answers in found)


def equal_texts_of_any_script_score_one(case):
    for text in ("今天天气很好", "сегодня хорошая погода", "اختر العمر", "a grey cat"):
        assert METRICS[metric_of_task("rouge_l", [[text]])].function(text, [text]) == 1.0


def cut_documents_are_said_and_no_answer_is_trained_without_its_prompt(case):
    summary = case.check("07-truncation")
    assert (summary.examples, summary.truncated, summary.drops) == (1, 1, {"answer_exceeds_row": 1})
    assert "cut to a row: 1" in summary.line()
    assert summary.warnings[0] == (
        "2 of 2 documents are longer than pack.seq_len=64: 1 are dropped and 1 lose the beginning of their prompt "
        "(pack.too_long=truncate_prompt); raise pack.seq_len to train them whole"
    )


def drops_are_named_with_their_reason(case):
    summary = case.check("09-check-message")
    assert summary.examples == 20
    with pytest.raises(
        UserError, match=r"none of its 20 examples can be rendered.*template_without_tools \(.*first: example"
    ):
        case.check("09-check-message", "render.template=plain")


def functions_are_tools(case):
    assert '"name": "w", "description": "weather"' in case.shown("10-legacy-functions")


def a_thought_in_a_call_is_reasoning(case):
    _, [answers] = case.rendered("11-think-in-function-call")
    assert answers[0].startswith("<think>\nI need the tool.\n</think>\n\n<tool_call>")


def variables_reach_the_template(case):
    quiet = [
        "render.template_kwargs={enable_thinking: false}",
        "data.sources.t.path=../16-trl-prompt-completion/pc.jsonl",
    ]
    assert case.shown("11-think-in-function-call", *quiet, "data.sources.t.kind=chat").endswith(
        "<|im_start|>assistant\n<think>\n\n</think>\n\na<|im_end|>\n"
    )
    loud, still = (
        make_renderer(case.config("11-think-in-function-call", *keys), Path(), tuple) for keys in ([], quiet)
    )
    assert loud.fingerprint != still.fingerprint
    assert "enable_thinking" in still.template_text.splitlines()[0]


def tied_words_train_beside_adapters(case):
    tokens = ["model.vocab_multiple=64", "lora.rank=4"]
    assert case.check("13-lora-tied", *tokens, "lora.modules_to_save=[embed_tokens]").steps == 3
    with pytest.raises(UserError, match=r"bring 1 new tokens \(first: '<new>'\), and lora trains no row"):
        case.check("13-lora-tied", *tokens, 'render.add_special_tokens=["<new>"]')


def trl_lists_are_read(case):
    _, found = case.rendered("16-trl-prompt-completion")
    assert found[1] == ["a<|im_end|>"]
    assert found[0] == ["a<|im_end|>"]


def other_roles_are_read_by_key(case):
    fields = ["data.sources.t.path=roles.jsonl"]
    _, found = case.rendered("16-trl-prompt-completion", *fields)
    read = [f for f in found if isinstance(f, list)]
    assert read[:2] == [["a<|im_end|>"]] * 2
    keys = [
        "data.sources.t.role_field=speaker",
        "data.sources.t.content_field=text",
        "data.sources.t.roles={human: user, bot: assistant}",
    ]
    _, found = case.rendered("16-trl-prompt-completion", *fields, *keys)
    assert found[2] == ["a<|im_end|>"]


@pytest.mark.parametrize(
    "holds",
    [
        table_nulls_leave,
        all_that_generation_writes_carries_loss,
        calls_are_trained_with_their_thoughts,
        marks_are_read_or_refused,
        answers_without_loss_are_said,
        a_probe_does_not_decide_for_the_records,
        equal_texts_of_any_script_score_one,
        cut_documents_are_said_and_no_answer_is_trained_without_its_prompt,
        drops_are_named_with_their_reason,
        functions_are_tools,
        a_thought_in_a_call_is_reasoning,
        variables_reach_the_template,
        tied_words_train_beside_adapters,
        trl_lists_are_read,
        other_roles_are_read_by_key,
    ],
    ids=lambda f: f.__name__,
)
def test_case(holds, case):
    holds(case)
