"""kind: flan: one pattern a record, by share, seed and question; exemplars that are never examples."""

from __future__ import annotations

import json
import random
import string
from collections import Counter

import pytest

from sft_dist.config import RunConfig
from sft_dist.config.sources import FlanSource
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_jsonl
from sft_dist.core.records import BadRecord, Example
from sft_dist.holdout import Holdout, split
from sft_dist.selection.files import TRAIN
from sft_dist.selection.sides import select
from sft_dist.sources import open_source
from sft_dist.sources.flan import patterns
from sft_dist.sources.flan.questions import draw_layout, read_question
from sft_dist.sources.flan.reader import FITS, PATTERNS, FlanReader


def legs(number, animal, each):
    """A record one can compute."""
    return {
        "question": f"How many legs have {number} {animal}s?",
        "answer": str(number * each),
        "rationale": f"One {animal} has {each} legs. {number} times {each} is {number * each}",
    }


LEGS = [legs(n, a, k) for n in (2, 3, 4) for a, k in (("bird", 2), ("cat", 4), ("ant", 6))]
SKY = {
    "question": "What is the sky like at noon?\nOptions:\n(A) black\n(B) blue",
    "answer": "(B)",
    "rationale": "The sun is up, and its light is scattered",
}
NONE = {
    "question": "How tall is it?\nOptions:\n(A) 3\n(B) none of these",
    "answer": "(B)",
    "rationale": "We cannot know",
}


def reader(tmp_path, rows, variants, **options):
    (tmp_path / "legs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    shares = {variants: 1.0} if isinstance(variants, str) else variants
    return FlanReader(
        "legs",
        path=str(tmp_path / "legs.jsonl"),
        variants=shares,
        **{"shots": 2, "exemplar_pool": 4, **options},
    )


def parts(e):
    return e.task, e.messages[0].content, e.output


# --- by eye: each variant, its first pattern -------------------------------------------------------------------------


@pytest.fixture
def first_pattern(monkeypatch):
    """Every draw of a pattern or layout gives the first of its table, so that a prompt can be written down here."""
    monkeypatch.setattr("sft_dist.sources.flan.reader._draw", lambda table, chance: table[0])
    monkeypatch.setattr("sft_dist.sources.flan.questions.LETTERED", patterns.LETTERED[:1])
    monkeypatch.setattr("sft_dist.sources.flan.questions.LISTED", patterns.LISTED[:1])


BIRDS = "How many legs have 4 birds?"


@pytest.mark.parametrize(
    "variant, task, prompt, output",
    [
        ("zero_shot", "legs", BIRDS, "8"),
        (
            "cot",
            "legs/cot",
            f"{BIRDS}\n\nReason first, then answer.",
            "One bird has 2 legs. 4 times 2 is 8.\nAnswer: 8",
        ),
        (
            "explain",
            "legs/explain",
            f"Question: {BIRDS}\nAnswer: 8\nWhy is this the answer?",
            "One bird has 2 legs. 4 times 2 is 8.",
        ),
        (
            "inversion",
            "legs/inversion",
            "Explanation: One bird has 2 legs. 4 times 2 is 8.\nAnswer: 8\nWhich question do they belong to?",
            BIRDS,
        ),
    ],
)
def test_without_exemplars(tmp_path, first_pattern, variant, task, prompt, output):
    examples = list(reader(tmp_path, LEGS, variant))
    assert len(examples) == 9
    assert parts(examples[6]) == (task, prompt, output)
    record = examples[6].origin[0]
    assert record.startswith("record:")
    assert examples[6].origin[1:] == (() if variant == "zero_shot" else ("task:legs",))
    assert examples[6].references == (("8",) if variant == "zero_shot" else ())


def test_few_shot(tmp_path, first_pattern):
    # a pool of two, so that both are shown
    examples = list(reader(tmp_path, [LEGS[0], LEGS[4], LEGS[8]], "few_shot", exemplar_pool=2))
    assert [parts(e) for e in examples] in [
        [("legs", f"{one}\n\n{two}\n\nQ: How many legs have 4 ants?\nA:", "24")]
        for a, b in [("Q: How many legs have 2 birds?\nA: 4", "Q: How many legs have 3 cats?\nA: 12")]
        for one, two in [(a, b), (b, a)]
    ]


def test_few_shot_with_reasoning(tmp_path, first_pattern):
    [e] = reader(tmp_path, [LEGS[0], LEGS[8]], "cot_few_shot", shots=1, exemplar_pool=1)
    assert parts(e) == (
        "legs/cot",
        "Q: How many legs have 2 birds?\nA: One bird has 2 legs. 2 times 2 is 4.\nAnswer: 4\n\nQ: How many legs have 4 ants?\nA:",
        "One ant has 6 legs. 4 times 6 is 24.\nAnswer: 24",
    )


@pytest.mark.parametrize(
    "options, prompts",
    [
        ({"without_options": 1.0}, {("What is the sky like at noon?", "blue")}),
        (
            {"without_options": 0.0},
            {
                ("What is the sky like at noon?\nOptions:\n(A) black\n(B) blue", "(B)"),
                ("What is the sky like at noon?\nOptions:\n- black\n- blue", "blue"),
            },
        ),
    ],
)
def test_with_and_without_options(tmp_path, first_pattern, options, prompts):
    seen = {
        parts(e)[1:] for seed in range(12) for e in reader(tmp_path, [SKY], "zero_shot", seed=seed, **options)
    }
    assert seen == prompts


def test_an_inversion_asks_for_the_question_without_options(tmp_path, first_pattern):
    [e] = reader(tmp_path, [SKY], "inversion")
    assert "Answer: blue\n" in e.messages[0].content
    assert e.output == "What is the sky like at noon?"


# --- patterns --------------------------------------------------------------------------------------------------------


def slots(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize(
    "family, prompt, target",
    [
        ("ANSWER", {"question"}, {"answer"}),
        ("COT", {"question"}, {"rationale", "answer"}),
        ("EXPLAIN", {"question", "answer"}, {"rationale"}),
        ("INVERSION", {"rationale", "answer"}, {"stem"}),
    ],
)
def test_each_family_has_eight_patterns_with_their_slots(family, prompt, target):
    table = getattr(patterns, family)
    assert len({p.prompt for p in table}) == len(table) >= 8
    assert all((slots(p.prompt), slots(p.target)) == (prompt, target) for p in table)


def test_few_shot_layouts():
    assert len(set(patterns.FEW_SHOT)) == len(patterns.FEW_SHOT) >= 8
    assert all(slots(p.question) == {"question"} and p.answer and p.gap for p in patterns.FEW_SHOT)
    assert set(PATTERNS) == set(FITS) == set(FlanSource.model_fields["variants"].default)


# --- the draw --------------------------------------------------------------------------------------------------------

MANY = [legs(n, a, k) for n in range(2, 130) for a, k in (("bird", 2), ("cat", 4), ("ant", 6), ("goat", 4))]


def test_shares_of_variants_hold(tmp_path):
    shares = {"zero_shot": 0.5, "cot": 0.25, "inversion": 0.25, "explain": 0.0}
    tasks = Counter(e.task for e in reader(tmp_path, MANY, shares))
    assert tasks.total() == 512
    assert abs(tasks["legs"] - 256) < 45  # 4 standard deviations
    assert abs(tasks["legs/cot"] - 128) < 40
    assert set(tasks) == {"legs", "legs/cot", "legs/inversion"}


def test_all_patterns_of_a_family_are_used(tmp_path):
    heads = Counter(e.output.rsplit("\n", 1)[-1].rstrip("0123456789.") for e in reader(tmp_path, MANY, "cot"))
    assert len(heads) >= 8


def test_the_draw_depends_on_seed_and_question_alone(tmp_path):
    shares = {"zero_shot": 1.0, "cot": 1.0, "explain": 1.0}
    first = {e.id for e in reader(tmp_path, MANY, shares)}
    assert {e.id for e in reader(tmp_path, MANY[::-1], shares)} == first
    assert len({e.id for e in reader(tmp_path, MANY, shares, seed=1)} & first) < 100


def test_few_shot_is_the_same_each_time(tmp_path):
    source = reader(tmp_path, MANY, {"few_shot": 1.0, "cot_few_shot": 1.0})
    assert list(source) == list(source)
    assert list(source) != list(reader(tmp_path, MANY, {"few_shot": 1.0, "cot_few_shot": 1.0}, seed=1))


def test_records_without_a_rationale_get_the_other_variants(tmp_path):
    bare = [{"question": r["question"], "answer": r["answer"]} for r in MANY]
    source = reader(tmp_path, bare, {"zero_shot": 0.1, "cot": 0.5, "inversion": 0.4})
    assert Counter(e.task for e in source) == {"legs": 512}
    [bad] = {r.reason for r in reader(tmp_path, bare, "cot")}
    assert bad == "none of the variants cot fits: it has no usable rationale"


# --- exemplars -------------------------------------------------------------------------------------------------------


def test_an_exemplar_is_never_an_example_nor_its_own(tmp_path):
    rows = [*MANY, *MANY[:10]]  # the exemplars come again at the end
    source = reader(tmp_path, rows, {"zero_shot": 1.0, "few_shot": 1.0, "cot_few_shot": 1.0}, exemplar_pool=8)
    examples = list(source)
    assert len(examples) == 512 - 8 + 2
    assert source.skipped == {"exemplar": {"legs": 16}}
    pool = {r["question"] for r in MANY[:8]}
    shown = Counter()
    for e in examples:
        questions = [r["question"] for r in MANY if r["question"] in e.messages[0].content]
        own, exemplars = [q for q in questions if q not in pool], [q for q in questions if q in pool]
        assert len(own) == 1
        assert len(exemplars) in (0, 2)
        shown.update(exemplars)
    assert set(shown) == pool  # each serves


def test_exemplars_come_from_the_task_of_the_example(tmp_path):
    rows = [{**r, "animal": a} for r in MANY for a in ("bird", "cat") if a in r["question"]]
    for e in reader(tmp_path, rows, "few_shot", task="{animal}", exemplar_pool=2):
        other = "cat" if e.task == "bird" else "bird"
        assert e.messages[0].content.count(e.task) == 3
        assert other not in e.messages[0].content


def test_examples_descend_from_their_exemplars(tmp_path):
    rows = [{**r, "from": "zoo" if i < 2 else "farm"} for i, r in enumerate(LEGS)]
    source = reader(tmp_path, rows, "few_shot", dataset="{from}", exemplar_pool=2)
    examples = list(source)
    assert all({"dataset:farm", "dataset:zoo", "task:legs"} < set(e.origin) for e in examples)
    # whatever of the exemplars is held out: none of their descendants is trained on
    assert {split(e, Holdout(datasets=frozenset({"zoo"}))).reason for e in examples} == {"heldout_origin"}
    ids = [o for o in examples[0].origin if ":" not in o]
    assert len(ids) == 2
    assert {split(e, Holdout(ids=frozenset(ids[:1]))).reason for e in examples} == {"heldout_origin"}
    assert {split(e, Holdout()) for e in examples} == {"train"}


def test_a_held_out_task_takes_its_derived_tasks_along(tmp_path):
    examples = list(reader(tmp_path, MANY, {"zero_shot": 1.0, "cot": 1.0, "inversion": 1.0, "explain": 1.0}))
    sides = {
        (e.task, getattr(split(e, Holdout(tasks=frozenset({"legs"}))), "reason", None)) for e in examples
    }
    assert sides == {
        ("legs", "eval_surplus"),
        *((f"legs/{k}", "heldout_origin") for k in ("cot", "inversion", "explain")),
    }


def test_no_exemplars_are_reserved_without_few_shot_variants(tmp_path):
    assert len(list(reader(tmp_path, LEGS, {"zero_shot": 1.0, "few_shot": 0.0}))) == 9


def test_pools_that_cannot_work(tmp_path, caplog):
    with pytest.raises(UserError, match="exemplar_pool=1 holds less than the 2 exemplars"):
        reader(tmp_path, LEGS, "few_shot", exemplar_pool=1)
    with pytest.raises(UserError, match="all records serve as exemplars"):
        list(reader(tmp_path, LEGS, "few_shot", exemplar_pool=9))
    with pytest.raises(UserError, match="gives no variant a share"):
        reader(tmp_path, LEGS, {"cot": 0.0})


# --- records ---------------------------------------------------------------------------------------------------------


def question(**fields):
    return read_question(
        fields,
        question="question",
        answer="answer",
        rationale="rationale",
        options="options" if "options" in fields else None,
    )


@pytest.mark.parametrize(
    "fields, stem, options, right",
    [
        ({**SKY}, "What is the sky like at noon?", ("black", "blue"), 1),
        ({"question": "Which?\nOptions:\n- (A) x\n- (B) y", "answer": "A"}, "Which?", ("x", "y"), 0),
        ({"question": "Which?\nOptions:\n(A) x\n(B) y", "answer": "y"}, "Which?", ("x", "y"), 1),
        ({"question": "Which?", "answer": "y", "options": ["x", "y"]}, "Which?", ("x", "y"), 1),
        ({"question": "Which?", "answer": "B.", "options": ["x", "y"]}, "Which?", ("x", "y"), 1),
        ({"question": "Which?", "answer": 7}, "Which?", (), None),
        ({"question": "Which?\nOptions:\nmany", "answer": "y"}, "Which?\nOptions:\nmany", (), None),
        (
            {"question": "Which?\nOptions:\n(A) x\n(A) y", "answer": "(A)"},
            "Which?\nOptions:\n(A) x\n(A) y",
            (),
            None,
        ),
        (
            {"question": "Which?\nOptions:\n(A) x\n(B) y", "answer": "z"},
            "Which?\nOptions:\n(A) x\n(B) y",
            (),
            None,
        ),
    ],
)
def test_options_are_found(fields, stem, options, right):
    q = question(**fields)
    assert (q.stem, q.options, q.right) == (stem, options, right)


def test_several_answers(tmp_path):
    row = {"question": "Name a colour.", "answer": ["red", "blue"]}
    [e] = reader(tmp_path, [row], "zero_shot")
    assert (e.output, e.references) == ("red", ("red", "blue"))


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"answer": "x"}, "field 'question' is missing (the record has answer"),
        ({"question": " ", "answer": "x"}, "field 'question' is empty"),
        ({"question": "q"}, "field 'answer' is missing"),
        ({"question": "q", "answer": ""}, "field 'answer' holds an empty text"),
        ({"question": "q", "answer": True}, "field 'answer' holds a boolean"),
        ({"question": "q", "answer": "x", "rationale": 3}, "field 'rationale' holds a number"),
    ],
)
def test_what_cannot_be_read_is_a_bad_record(tmp_path, row, reason):
    [bad, good] = reader(tmp_path, [row, LEGS[0]], "zero_shot")
    assert isinstance(bad, BadRecord)
    assert isinstance(good, Example)
    assert bad.line == 1
    assert bad.reason.startswith(reason)


def test_options_that_do_not_hold_the_answer(tmp_path):
    rows = [
        {"question": "q?", "answer": "z", "options": ["x", "y"]},
        {"question": "q?", "answer": "x", "options": "x, y"},
    ]
    reasons = [r.reason for r in reader(tmp_path, rows, "zero_shot", options_field="options")]
    assert reasons == [
        "field 'answer' holds 'z', which is none of the options",
        "field 'options' holds text, not a list of up to 26 texts to choose from",
    ]


@pytest.mark.parametrize(
    "fields, rationale_shown, bare, lettered",
    [
        (SKY, True, True, {True, False}),
        (NONE, True, False, {True, False}),  # the answer speaks of the options
        ({**SKY, "question": "Which of these is it?\nOptions:\n(A) x\n(B) y"}, True, False, {True, False}),
        ({**SKY, "question": "It is usually\nOptions:\n(A) x\n(B) y"}, True, False, {True, False}),
        (
            {**SKY, "rationale": "So B fits"},
            True,
            False,
            {True},
        ),  # the rationale names an option by its letter
        ({**SKY, "rationale": "So B fits"}, False, True, {True, False}),
        ({**SKY, "rationale": "It is a thing. A sky is blue"}, True, True, {True, False}),  # an article
    ],
)
def test_options_are_left_out_only_where_that_makes_sense(fields, rationale_shown, bare, lettered):
    q = question(**fields)
    chance = random.Random(0)
    drawn = [
        draw_layout([q], chance, with_rationale=rationale_shown, without_options=share)
        for share in (1.0, 0.0)
        for _ in range(40)
    ]
    assert (None in drawn[:40]) == bare
    assert {"{letter}" in d.answer for d in drawn[40:]} == lettered


# --- real data, and the rest of the system ---------------------------------------------------------------------------


def flan_source(shared_data):
    return {
        "kind": "flan",
        "path": str(shared_data / "flan-cot"),
        "columns": ["question", "answer", "rationale"],
        "unescape": True,
        "task": "{__file__}",
        "dataset": "{__file__}",
    }


def test_real_records(shared_data):
    source = open_source("flan", FlanSource(**flan_source(shared_data)))
    examples = list(source)
    assert len(examples) == 5873 - 3 * 32
    assert source.skipped == {"exemplar": {"aqua_train": 32, "qasc_train": 32, "strategyqa_train": 32}}
    tasks = Counter(e.task for e in examples)
    assert len(tasks) == 12
    assert not [e for e in examples if "{" in e.output and "{answer}" in e.output]
    lettered = [e for e in examples if e.task == "qasc_train" and e.output.startswith("(")]
    assert lettered
    assert all(f"{e.output} " in e.messages[0].content for e in lettered)
    listed = [e for e in examples if e.task == "qasc_train" and not e.output.startswith("(")]
    assert (
        sum(
            f"- {e.output}" in e.messages[0].content or f"* {e.output}" in e.messages[0].content
            for e in listed
        )
        > 100
    )


def test_no_question_is_asked_in_training_and_in_evaluation(shared_data, tmp_path):
    config = RunConfig.model_validate(
        {
            "name": "t",
            "data": {
                "sources": {"flan": flan_source(shared_data)},
                "holdout": {"examples_per_task": 5, "tasks": ["qasc_train"]},
            },
            "model": {"path": "none"},
        }
    )
    source = open_source("flan", config.data.sources["flan"])
    selected = select(config.data, {"flan": source}, tmp_path, lambda _: None, seed=config.seed)
    codes = selected.sources["flan"].codes
    trained = [e for e, code in zip(source, codes, strict=True) if code == TRAIN]
    assert len(trained) > 4000
    evaluated = [e for n in ("seen", "heldout") for e in read_jsonl(tmp_path / "eval" / f"{n}.jsonl")]
    records = {o for e in evaluated for o in e["origin"] if o.startswith("record:")}
    assert len(records) == 40 + 100  # 8 tasks of two datasets, and the held-out one
    assert not records & {o for e in trained for o in e.origin}
    assert not [e for e in trained if e.task.startswith("qasc") or "task:qasc_train" in e.origin]
