"""Leakage in both directions, and what is no leakage: definitions, templates, labels."""

from __future__ import annotations

from sft_dist.core.records import Message, make_example, single_turn
from sft_dist.filters.decontamination import ContaminationIndex, question

FIRST = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "the",
    "lazy",
    "dog",
    "while",
    "seven",
    "silent",
    "owls",
    "watch",
    "from",
    "the",
    "old",
    "oak",
    "tree",
]
OTHER = [f"w{i}" for i in range(200)]
DEFINITION = "In this task you are given a sentence and you must say how many animals it names in total."


def example(input, output="three", instruction=DEFINITION, task="count"):  # noqa: A002
    return single_turn(task=task, source="s", instruction=instruction, input=input, output=output)


def prompt(text, output="yes", task="t"):
    return single_turn(task=task, source="s", instruction=text, output=output)


def index(*examples, ngram=8, coverage=0.5):
    return ContaminationIndex(examples, ngram=ngram, coverage=coverage)


def found(leaks):
    return [(x.item, round(x.coverage, 3), x.how) for x in leaks]


def test_an_evaluation_input_inside_a_training_example():
    known = index(example(" ".join(FIRST)), example(" ".join(OTHER[:20])))
    [leak] = known(prompt(f"Read this. {' '.join(FIRST)}! What did they watch?"))
    assert leak == (0, 1.0, "eval_in_training", " ".join(FIRST))
    # 10 of 19 words in a row: 0.526; 9 of 19: 0.474
    assert found(known(prompt(" ".join([*FIRST[:10], *OTHER[30:60]])))) == [(0, 0.526, "eval_in_training")]
    assert known(prompt(" ".join([*FIRST[:9], *OTHER[30:60]]))) == []
    assert known(prompt(" ".join([*FIRST[:7], "x", *FIRST[7:12], "y", *FIRST[12:]]))) == []  # no 8 in a row
    assert known(prompt(" ".join(FIRST[:9] + OTHER[30:60] + FIRST[9:]))) != []  # both halves, in two places


def test_a_training_input_inside_an_evaluation_example():
    known = index(example(" ".join(FIRST + OTHER[:60])))
    assert found(known(prompt(" ".join(FIRST)))) == [(0, 1.0, "training_in_eval")]
    assert found(known(prompt(" ".join(FIRST[:9] + OTHER[100:108])))) == [(0, 0.529, "training_in_eval")]
    assert known(prompt(" ".join(FIRST[:9] + OTHER[100:110]))) == []


def test_a_long_answer_gives_an_example_away():
    story = " ".join(OTHER[:40])
    known = index(prompt("Write a story about an owl.", story))
    assert found(known(prompt("Continue it.", f"{story} The end."))) == [
        (0, round(40 / 46, 3), "eval_in_training")
    ]


def test_instructions_do_not_count():
    known = index(example("red apple and green pear on the small table"))
    assert known(example("blue whale and grey wolf in the large picture")) == []
    assert known(example("blue whale", instruction=f"{DEFINITION} Count well.")) == []


def test_demonstrations_count():
    known = index(example("red apple and green pear on the small table"))
    shown = example("blue whale", instruction="Count. red apple and green pear on the small table")
    assert found(known(shown)) == [(0, 1.0, "eval_in_training")]


def test_templates_do_not_count():
    wrapper = "Please read the following short question very carefully and then answer it with yes or no: {}"
    evaluated = [prompt(wrapper.format(" ".join(OTHER[10 * i : 10 * i + 10]))) for i in range(4)]
    known = index(*evaluated)
    assert known(prompt(wrapper.format("is this an entirely new question that nobody evaluates now"))) == []
    [leak] = known(prompt(f"Something else. {' '.join(OTHER[10:20])}", "no"))
    assert (leak.item, leak.coverage) == (1, 1.0)
    # of two inputs alone nobody could say what is template: the same wrapper would count
    assert index(*evaluated[:2])(prompt(wrapper.format("is this new"))) != []


def test_what_many_training_inputs_share_is_template():
    suffix = "given the above question please answer with reasoning first and only then decide"
    known = [prompt(f"{' '.join(OTHER[:10])} {suffix}")]
    training = [prompt(f"question number {i} {suffix}") for i in range(20)]
    assert index(*known)(training[0]) != []
    aware = ContaminationIndex(known, ngram=8, coverage=0.5, training=[training])
    assert aware(training[0]) == []
    assert found(aware(prompt(" ".join(OTHER[:10])))) == [(0, 1.0, "eval_in_training")]
    # ten of them may share a passage
    assert ContaminationIndex(known, ngram=8, coverage=0.5, training=[training[:10]])(training[0]) != []


def test_what_a_training_template_adds_does_not_hide_the_question():
    """8 words of 26 are the evaluated question; the other 18 stand under every question of the source."""
    suffix = "please think about it step by step and then tell me what the right answer would be"
    others = [prompt(f"{' '.join(OTHER[8 * k : 8 * k + 8])} {suffix}") for k in range(12)]
    evaluated = example(" ".join(OTHER[100:160] + FIRST[:8]))  # exemplars, then the question
    leaking = prompt(f"{' '.join(FIRST[:8])} {suffix}")
    known = ContaminationIndex([evaluated], ngram=8, coverage=0.5, training=[others])
    assert found(known(leaking)) == [(0, 1.0, "training_in_eval")]
    assert ContaminationIndex([evaluated], ngram=8, coverage=0.5)(leaking) == []


def test_labels_do_not_count():
    label = "the premise does not say enough to decide whether it is true"
    known = index(*(example(OTHER[i], label) for i in range(2)))
    assert known(example("zebra", label)) == []
    [leak] = index(example(OTHER[0], label))(example("zebra", label))
    assert leak.how == "eval_in_training"


def test_short_items_match_only_whole_and_with_the_answer():
    known = index(example("France", "Paris"), example("Spain", "Madrid"))
    assert found(known(prompt("france!", "paris."))) == [(0, 1.0, "same_question")]
    assert known(example("France", "euro")) == []
    assert known(prompt("What is the capital of France?", "Paris")) == []


def test_every_item_is_reported_the_most_covered_first():
    known = index(example(" ".join(FIRST)), example(" ".join(OTHER[:20])))
    both = known(prompt(" ".join([*OTHER[:15], "x", *FIRST])))
    assert found(both) == [(0, 1.0, "eval_in_training"), (1, 0.75, "eval_in_training")]


def test_thirteen_words():
    text = " ".join(FIRST[:12] + OTHER[:30])
    assert index(example(" ".join(FIRST)), ngram=8)(prompt(text)) != []
    assert index(example(" ".join(FIRST)), ngram=13)(prompt(text)) == []


def test_question_of_a_conversation():
    turns = [
        Message(role=r, content=c)
        for r, c in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    assert question(make_example(task="t", source="s", messages=tuple(turns))) == "a\nc"
    assert index()(prompt("anything")) == []
