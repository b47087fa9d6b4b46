"""kind: patterns: the draw of pairs, exemplars, what is held out, what reaches the evaluation, and every mistake in one sentence."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from sft_dist.config import RunConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord, Example, Phrasing, example_from_dict, example_to_dict
from sft_dist.evals.choices import offered
from sft_dist.evals.metrics import exact_match, metric_of_task, numeric
from sft_dist.evals.probe_material import Material
from sft_dist.evals.probes import phrasing_variants
from sft_dist.holdout import Holdout, split
from sft_dist.selection.files import training_examples
from sft_dist.selection.sides import select
from sft_dist.sources import open_source
from sft_dist.sources.hub import import_datasets
from sft_dist.sources.patterns.reader import PatternsReader

BOOLQ = """
answer: {field: label, labels: ["no", "yes"]}
patterns:
  - {name: plain, input: "{passage}\\n\\nQuestion: {question}?", target: "{answer}"}
  - {name: options, input: "Read this:\\n{passage}\\n{question}?\\n{options}", target: "{answer}", weight: 2}
  - {name: truth, input: "{passage}\\nAnswer in a sentence: {question}?", target: "The answer is {answer}."}
  - {name: held_out, input: "Passage: {passage}\\nIs the answer to \\"{question}\\" yes or no?", target: "{answer}"}
"""
CSQA = """
answer: {field: answerKey, choices: choices.text, letters: choices.label}
options: {line: "({letter}) {text}"}
patterns:
  - {name: plain, input: "{question}\\n{options}", target: "({letter})"}
"""
COPA = """
answer: {field: label, choices: [choice1, choice2]}
patterns:
  - {name: plain, input: "{premise} What was the {question}?\\n{options}", target: "{answer}"}
"""
GSM = """
answer: {field: answer, rationale_before: "####"}
patterns:
  - {name: short, input: "{question}", target: "{answer}"}
  - {name: thoughts, kind: cot, input: "{question}\\nThink first.", target: "{rationale}\\nAnswer: {answer}"}
  - {name: ask, kind: inversion, input: "What was asked?\\n{rationale}", target: "{question}"}
"""
SUMS = """
answer: {field: sum}
patterns:
  - {name: plain, input: "{a} and {b}?", target: "{answer}"}
"""


def reader(tmp_path, patterns, path=None, rows=(), **options):
    (tmp_path / "patterns.yaml").write_text(patterns)
    if path is None:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return PatternsReader("t", path=str(path), patterns=str(tmp_path / "patterns.yaml"), **options)


def sums(n):
    return [{"a": i, "b": i % 7, "sum": i + i % 7} for i in range(n)]


# --- real tables -----------------------------------------------------------------------------------------------------


def test_a_classification_reaches_the_evaluation_with_its_choices(tmp_path, shared_data):
    source = reader(
        tmp_path, BOOLQ, shared_data / "raw-annotated/super_glue_boolq.jsonl", unseen_patterns=("held_*",)
    )
    examples = list(source)
    assert len(examples) == 400
    assert all(isinstance(e, Example) for e in examples)
    sentence = ("The answer is no.", "The answer is yes.")
    assert {e.choices for e in examples} == {("no", "yes"), sentence}
    assert all(e.output in e.choices for e in examples)
    # drawn by weight: 1, 2, 1
    drawn = Counter(
        "sentence" if e.choices == sentence else "Options" in e.messages[0].content for e in examples
    )
    assert 160 < drawn[True] < 240
    assert all(60 < n < 140 for kind, n in drawn.items() if kind is not True)
    told = source.task_metrics()
    assert told == {"t": "choice"}
    assert metric_of_task("auto", [e.answers for e in examples], told=told["t"], choices=True) == "choice"
    copies = offered({"seen": examples[:1]}, metric="auto", told=told, categories={})
    assert [c.output for c in copies[examples[0].id]] == list(examples[0].choices)
    # the held-out pattern asks the same record, never in training
    assert not any(e.messages[0].content.startswith("Passage:") for e in examples)
    for e in examples:
        [other] = e.phrasings
        assert other.prompt.startswith("Passage:")
        assert other.answer in ("yes", "no")
        assert other.answer in e.output


def test_choices_of_the_record_by_letter_and_by_number(tmp_path, shared_data):
    examples = list(reader(tmp_path, CSQA, shared_data / "raw-annotated/commonsense_qa.jsonl"))
    assert len(examples) == 400
    assert all(e.choices == tuple(f"({x})" for x in "ABCDE"[: len(e.choices)]) for e in examples)
    first = examples[0]
    assert first.messages[0].content.splitlines()[1:] == [
        "Options:",
        "(A) bank",
        "(B) department store",
        "(C) mall",
        "(D) new york",
    ]
    assert first.output == "(A)"
    rows = [
        json.loads(x) for x in (shared_data / "raw-annotated/super_glue_copa.jsonl").read_text().splitlines()
    ]
    examples = list(reader(tmp_path, COPA, shared_data / "raw-annotated/super_glue_copa.jsonl"))
    assert [e.output for e in examples] == [r[f"choice{r['label'] + 1}"] for r in rows]
    assert [e.choices for e in examples] == [(r["choice1"], r["choice2"]) for r in rows]


def test_rationale_answer_and_inversion_of_one_table(tmp_path, shared_data):
    examples = list(
        reader(tmp_path, GSM, shared_data / "raw-annotated/gsm8k_test.jsonl", patterns_per_record=None)
    )
    by_task = Counter(e.task for e in examples)
    assert by_task == {"t": 300, "t/cot": 300, "t/inversion": 300}
    plain, thought, asked = examples[:3]
    assert plain.output == "18"
    assert thought.output.endswith("\nAnswer: 18")
    assert "####" not in thought.output
    assert asked.output == plain.messages[0].content
    assert "####" not in asked.messages[0].content
    source = reader(tmp_path, GSM + "cot_metric: numeric\n", shared_data / "raw-annotated/gsm8k_test.jsonl")
    assert source.task_metrics() == {"t/cot": "numeric"}
    assert numeric("9 times 2 is 18.\nSo 18", thought.answers) == 1
    assert len({o for e in examples[:3] for o in e.origin if o.startswith("record:")}) == 1
    # holding the plain task out takes what was made of the same records with it
    held = Holdout(tasks=frozenset({"t"}))
    assert split(thought, held).reason == split(asked, held).reason == "heldout_origin"


@pytest.mark.parametrize("few_shot", [0.0, 1.0])
def test_a_dataset_of_the_library_is_read_like_its_file(tmp_path, few_shot):
    datasets = import_datasets()
    rows = [{"text": f"Review {i} of many.", "label": i % 2} for i in range(12)]
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    patterns = "answer: {field: label, labels: [bad, good]}\npatterns: [{name: a, input: '{text}', target: '{answer}'}]"
    options = {"few_shot_share": few_shot, "exemplar_pool": 4}
    saved = reader(tmp_path, patterns, tmp_path / "saved", **options)
    plain = reader(tmp_path, patterns, rows=rows, **options)
    assert list(saved) == list(plain)
    assert len(list(saved)) == (8 if few_shot else 12)
    read = [e for block in saved.blocks() for r in saved.read(block) for e in r.made]
    assert read == list(saved)
    assert len({saved.block_fingerprint(b) for b in saved.blocks()}) == len(saved.blocks())


# --- the draw --------------------------------------------------------------------------------------------------------

TWO = SUMS + '  - {name: other, input: "Add {a} to {b}.", target: "{answer}"}\n'
THREE = TWO + '  - {name: third, input: "{a} + {b} =", target: "{answer}"}\n'


def test_the_draw_is_of_the_record_and_the_pattern_alone(tmp_path):
    rows = sums(300)
    one = {e.origin[0]: e.messages[0].content for e in reader(tmp_path, TWO, rows=rows)}
    again = {e.origin[0]: e.messages[0].content for e in reader(tmp_path, TWO, rows=rows[::-1])}
    assert one == again
    more = {e.origin[0]: e.messages[0].content for e in reader(tmp_path, THREE, rows=rows)}
    changed = [r for r in one if one[r] != more[r]]
    assert 60 < len(changed) < 140  # a third goes to the new pattern, and nothing else moves
    assert all(more[r].endswith("=") for r in changed)
    assert one != {e.origin[0]: e.messages[0].content for e in reader(tmp_path, TWO, rows=rows, seed=1)}
    twice = list(reader(tmp_path, THREE, rows=rows, patterns_per_record=2))
    assert len(twice) == 600
    assert all(
        a.origin == b.origin and a.messages != b.messages
        for a, b in zip(twice[::2], twice[1::2], strict=True)
    )
    assert [e.messages[0].content for e in twice[::2]] == [more[e.origin[0]] for e in twice[::2]]


def test_exemplars_are_never_examples_and_their_number_is_drawn(tmp_path):
    rows = sums(200)
    source = reader(tmp_path, SUMS, rows=[*rows, *rows[:5]], few_shot_share=0.5, shots=3, exemplar_pool=8)
    examples = list(source)
    assert source.skipped["exemplar"]["t"] == 13
    pool = {f"{r['a']}\n{r['b']}" for r in rows[:8]}
    assert not any(e.question in pool for e in examples)
    number = Counter(len(e.demonstrations) for e in examples)
    assert set(number) == {0, 1, 2, 3}
    assert 60 < number[0] < 130
    few = next(e for e in examples if len(e.demonstrations) == 2)
    a, b = (d.split("\n") for d in few.demonstrations)
    solved = "".join(f"{x} and {y}?\n\n{int(x) + int(y)}\n\n\n" for x, y in (a, b))
    x, y = few.question.split("\n")
    assert few.messages[0].content == f"{solved}{x} and {y}?"
    assert set(few.demonstrations) <= pool
    # an exemplar is part of the example's origin, so a held-out task is shown nowhere
    assert sum(o.startswith("record:") for o in few.origin) == 1 + 2
    assert "task:t" in few.origin
    with pytest.raises(UserError, match=r"exemplar_pool=2 holds less than the 3 exemplars"):
        reader(tmp_path, SUMS, rows=rows, few_shot_share=0.5, exemplar_pool=2)
    with pytest.raises(UserError, match=r"all records serve as exemplars .* or set few_shot_share to 0"):
        list(reader(tmp_path, SUMS, rows=rows[:8], few_shot_share=0.5, exemplar_pool=8))


def test_nothing_that_is_evaluated_is_shown_in_training(tmp_path):
    rows = [{**r, "kind": "even" if r["a"] % 2 else "odd"} for r in sums(120)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "patterns.yaml").write_text(THREE)
    config = RunConfig.model_validate(
        {
            "model": {"path": "some/model"},
            "data": {
                "dir": str(tmp_path / "data"),
                "sources": {
                    "t": {
                        "kind": "patterns", "path": str(tmp_path / "rows.jsonl"), "patterns": str(tmp_path / "patterns.yaml"),
                        "task": "sum_{kind}", "few_shot_share": 0.6, "exemplar_pool": 6, "unseen_patterns": ["third"],
                        "patterns_per_record": None,
                    }
                },
                "holdout": {"tasks": ["sum_odd"], "examples_per_task": 10},
            },
        }
    )  # fmt: skip
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    selected = select(config.data, sources, tmp_path / "data", lambda _: None, seed=1)
    evaluated = [
        json.loads(x) for f in (tmp_path / "data/eval").glob("*.jsonl") for x in f.read_text().splitlines()
    ]
    assert {e["task"] for e in evaluated} == {"sum_even", "sum_odd"}
    assert all(len(e["phrasings"]) == 1 for e in evaluated)  # as they were written, for the probe
    trained = list(training_examples(sources["t"], selected.sources["t"]))
    assert trained
    asked = {e["question"] for e in evaluated}
    assert not any(e.question in asked or asked & set(e.demonstrations) for e in trained)
    assert {e.task for e in trained} == {"sum_even"}


# --- the probe of phrasing -------------------------------------------------------------------------------------------


def test_the_probe_asks_in_the_unseen_wordings_with_their_own_answers(tmp_path, shared_data):
    source = reader(
        tmp_path, BOOLQ, shared_data / "raw-annotated/super_glue_boolq.jsonl", unseen_patterns=("held_out",)
    )
    examples = list(source)[:20]
    asked = phrasing_variants(Material(sets={"seen": examples}))["reworded"]
    assert len(asked) == 20
    for e in examples:
        [other] = asked[e.id]
        assert other.messages[0].content == e.phrasings[0].prompt
        assert exact_match(e.phrasings[0].answer, other.answers)
    read = example_from_dict(json.loads(json.dumps(example_to_dict(examples[0]))))
    assert read == examples[0]
    assert isinstance(read.phrasings[0], Phrasing)


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "patterns, words",
    [
        ("patterns: []", "patterns: Tuple should have at least 1 item"),
        ("paterns: []", "paterns: unknown key. Did you mean 'patterns'"),
        ("patterns: [{name: a, input: '{q}', target: x}]", r"no \{answer\} or \{letter\}.*declare kind: inversion"),
        ("patterns: [{name: a, input: '{q} {answer}', target: '{answer}'}]", r"the input shows \{answer\}"),
        ("answer: {field: y}\npatterns: [{name: a, input: '{y}', target: '{answer}'}]", r"shows \{y\}, which holds the answer"),
        ("patterns: [{name: a, kind: inversion, input: '{q}', target: '{answer}'}]", "an inversion gives a field of the input"),
        ("patterns: [{name: a, kind: cot, input: '{q}', target: '{answer}'}]", "no slot for a rationale"),
        ("patterns: [{name: a, input: '{q', target: '{answer}'}]", "brace without its partner"),
        ("patterns: [{name: a, input: '{q!r}', target: '{answer}'}]", "more than the name of a field"),
        ("patterns: [{name: a, input: '{q} {options}', target: '{answer}'}]", "neither labels nor choices"),
        ("patterns: [{name: a, input: 'q', target: '{answer}'}]", "all records would ask the same"),
        ("answer: {labels: [a]}\npatterns: [{name: a, input: '{q}', target: '{answer}'}]", "two or more different names"),
        ("metric: bleu\npatterns: [{name: a, input: '{q}', target: '{answer}'}]", "'bleu' is no metric"),
        ("few_shot: [{example: '{target} {input}'}]\npatterns: [{name: a, input: '{q}', target: '{answer}'}]", "stands before"),
    ],
)  # fmt: skip
def test_mistakes_in_the_file(tmp_path, patterns, words):
    with pytest.raises(UserError, match=r"data\.sources\.t\.patterns: .*cannot be used: .*" + words):
        reader(tmp_path, patterns, rows=sums(1))


def test_mistakes_in_the_config_and_records(tmp_path):
    with pytest.raises(UserError, match="no pattern is called 'plane'.*Did you mean 'plain'"):
        reader(tmp_path, SUMS, rows=sums(1), unseen_patterns=("plane",))
    with pytest.raises(UserError, match="leave none of 1 patterns to train on"):
        reader(tmp_path, SUMS, rows=sums(1), unseen_patterns=("plain",))
    rows = [
        {"a": 1, "sum": 1},
        {"a": 1, "b": 2},
        {"a": 1, "b": None, "sum": 2},
        {"a": 1, "b": {"c": 1}, "sum": 2},
        *sums(1),
    ]
    found = list(reader(tmp_path, SUMS, rows=rows))
    assert [f.reason if isinstance(f, BadRecord) else f.output for f in found] == [
        "no pattern fits: the record has no b", "field 'sum' is missing (the record has a, b)", "no pattern fits: the record has no b",
        "no pattern fits: the record has no b", "0",
    ]  # fmt: skip
    labels = "answer: {labels: ['no', 'yes']}\npatterns: [{name: a, input: '{q}', target: '{answer}'}]"
    found = list(
        reader(
            tmp_path,
            labels,
            rows=[{"q": "x", "answer": -1}, {"q": "x", "answer": "yes"}, {"q": "x", "answer": 0}],
        )
    )
    assert found[0].reason == "field 'answer' holds '-1', which is none of the labels"
    assert [f.output for f in found[1:]] == ["yes", "no"]


def test_braces_of_a_record_are_text(tmp_path):
    row = {"a": "{answer} {b", "b": "}", "sum": "{{x}}"}
    [e] = reader(tmp_path, SUMS.replace("{a} and", "{{{a}}} and"), rows=[row])
    assert (e.messages[0].content, e.output) == ("{{answer} {b} and }?", "{{x}}")
