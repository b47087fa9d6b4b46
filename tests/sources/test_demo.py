"""The embedded instruction set: answers recomputed by other means, nothing repeated, nothing guessable."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from itertools import islice

import pytest

from sft_dist.config.load import load_config
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.sources.demo import DEMO_HELD_OUT, DemoReader, reader, words
from sft_dist.sources.demo.tasks import DEMO_FAR, DEMO_NEAR, FAMILIES, TASKS, Task

PER_TASK = 150


@pytest.fixture(scope="module")
def by_task() -> dict[str, list[Example]]:
    out: dict[str, list[Example]] = defaultdict(list)
    for example in DemoReader("demo", examples_per_task=PER_TASK, seed=0):
        out[example.task].append(example)
    return out


def read(**options: int) -> list[Example]:
    return list(DemoReader("demo", **{"examples_per_task": 5, "seed": 0, **options}))


# What is there


def test_tasks_and_phrasings():
    names = [t.name for t in TASKS]
    assert len(set(names)) == len(names)
    assert set(DEMO_HELD_OUT) < set(names)
    assert len(set(names) - set(DEMO_HELD_OUT)) >= 12
    for task in TASKS:
        assert len(set(task.instructions)) >= 4, task.name
    phrasings = Counter(phrase for t in TASKS for phrase in t.instructions)
    assert [p for p, n in phrasings.items() if n > 1] == [], "two tasks share a phrasing"


def test_every_task_has_its_number_and_takes_turns(by_task):
    assert {len(examples) for examples in by_task.values()} == {PER_TASK}
    assert list(by_task) == [t.name for t in TASKS]
    assert [e.task for e in islice(DemoReader("demo", examples_per_task=3, seed=1), len(TASKS))] == list(
        by_task
    )


def test_every_phrasing_is_used(by_task):
    for task in TASKS:
        assert {e.instruction for e in by_task[task.name]} == set(task.instructions)


def test_words_stand_in_one_list():
    lists = [
        words.NAMES,
        words.CITIES,
        words.COLOURS,
        words.DAYS,
        words.ANIMALS,
        words.OBJECTS,
        words.ADJECTIVES,
        words.PLACES,
        words.GOOD,
        words.BAD,
        words.REVIEWED,
        *words.TOPICS.values(),
        *words.RHYMES,
    ]
    assert [w for w, n in Counter(w for ws in lists for w in ws).items() if n > 1] == []


def test_an_example_shows_its_parts():
    example = read()[0]
    assert example.source == "demo"
    assert [m.role for m in example.messages] == ["user", "assistant"]
    assert example.messages[0].content == f"{example.instruction}\n\n{example.input}"


def test_thirty_families_of_which_ten_are_held_out_whole():
    trained = {t.family for t in TASKS if t.name not in DEMO_HELD_OUT}
    family = {t.name: t.family for t in TASKS}
    assert len(FAMILIES) >= 30
    assert len(trained) >= 20
    assert {family[n] for n in DEMO_NEAR} <= trained
    assert not {family[n] for n in DEMO_FAR} & trained
    assert len({family[n] for n in DEMO_FAR}) == len(DEMO_FAR) == 10
    assert len(DEMO_NEAR) >= 10


def test_unseen_phrasings_are_unseen():
    used = {phrase for t in TASKS for phrase in t.instructions}
    for task in TASKS:
        assert not set(task.unseen) & used, task.name
        assert bool(task.unseen) == (task.name not in DEMO_NEAR + DEMO_FAR) or task.family == "mixed"


def test_a_contrast_is_what_the_trained_sibling_answers(by_task):
    """Its other answer is right by the sibling's own check, and never the held-out task's answer unless both agree."""
    source = DemoReader("demo", examples_per_task=1, seed=0)
    contrasts = [t.name for t in TASKS if t.sibling]
    assert len(contrasts) >= 10
    assert set(contrasts) <= set(DEMO_NEAR)
    for task in contrasts:
        differ = 0
        for example in by_task[task]:
            sibling, answer = source.sibling_answer(example)
            assert sibling not in DEMO_HELD_OUT
            assert answer == CHECKS[sibling](example.input.split(": ", 1)[1])
            differ += answer != example.output
        assert differ > 0.9 * PER_TASK, task
    assert source.sibling_answer(by_task["topic"][0]) is None


# Determinism


def test_same_seed_same_examples_other_seed_others():
    assert read() == read()
    assert not {e.id for e in read()} & {e.id for e in read(seed=1)}


def test_more_examples_begin_with_the_fewer():
    assert read(examples_per_task=7)[: 5 * len(TASKS)] == read()


def test_generator_version_stands_for_the_content():
    """When this fails on purpose, raise GENERATOR_VERSION and write the new digest: stores must be rebuilt."""
    digest = hashlib.blake2b("".join(e.id for e in read()).encode(), digest_size=8).hexdigest()
    assert (reader.GENERATOR_VERSION, digest) == (4, "7faa36c0c34b612a")


def test_fingerprint_follows_the_options(monkeypatch):
    def fingerprint(n: int, seed: int) -> str:
        return DemoReader("demo", examples_per_task=n, seed=seed).fingerprint()

    assert len({fingerprint(5, 0), fingerprint(6, 0), fingerprint(5, 1)}) == 3
    assert fingerprint(5, 0) == fingerprint(5, 0)
    before = fingerprint(5, 0)
    monkeypatch.setattr(reader, "GENERATOR_VERSION", reader.GENERATOR_VERSION + 1)
    assert fingerprint(5, 0) != before


def test_there_are_no_files():
    assert DemoReader("demo", examples_per_task=5, seed=0).files() == []


# Nothing is repeated, nothing can be guessed


def test_inputs_are_distinct_so_that_a_split_by_input_separates(by_task):
    inputs = [e.input for examples in by_task.values() for e in examples]
    assert len(set(inputs)) == len(inputs) == PER_TASK * len(TASKS)
    keys = [" ".join(text.lower().split()) for text in inputs]
    assert len(set(keys)) == len(keys), "inputs that differ in case or white space only"


def test_equal_prompts_never_have_different_answers():
    """Across seeds and tasks: the prompt decides the answer."""
    answers: dict[str, str] = {}
    for seed in range(5):
        for example in read(examples_per_task=100, seed=seed):
            assert answers.setdefault(example.messages[0].content, example.output) == example.output


def test_the_majority_answer_is_no_answer(by_task):
    for task, examples in by_task.items():
        share = Counter(e.output for e in examples).most_common(1)[0][1] / PER_TASK
        assert share < 2 / 3, task


def test_texts_are_short(by_task):
    for task, examples in by_task.items():
        assert max(len(e.output.split()) for e in examples) <= 10, task
        assert max(len(e.messages[0].content.split()) for e in examples) <= 40, task
        assert all(e.output == e.output.strip() != "" for e in examples), task


def test_too_many_examples_is_an_error(monkeypatch):
    small = Task(
        name="bit", family="bit", instructions=("Copy.",), make=lambda rng: (bit := rng.choice("01"), bit)
    )
    monkeypatch.setattr(reader, "TASKS", (small,))
    assert sorted(e.output for e in read(examples_per_task=2)) == ["0", "1"]
    with pytest.raises(
        UserError, match=r"examples_per_task=3 .*'bit'.* lower data\.sources\.demo\.examples_per_task"
    ):
        read(examples_per_task=3)


# Answers, recomputed by other means


def of_kind(text: str, pattern: str) -> list[str]:
    return re.findall(pattern, text)


NUMBER, COLOUR, NAME = r"\b\d+\b", r"\b[a-z]+\b", r"\b[A-Z][a-z]+\b"

ANIMALS = {"horse", "dog", "cat", "cow", "goat", "lion", "tiger", "bear", "rabbit", "fox", "wolf", "duck"}
ANSWER_ENDINGS = [
    ("oon", "une"),
    ("ake",),
    ("ell",),
    ("ight", "ite"),
    ("ee", "ea"),
    ("ouse",),
    ("oat", "ote"),
    ("and",),
]
UNLIKE = {"box": "boxes", "glass": "glasses", "brush": "brushes", "watch": "watches", "dress": "dresses"} | {
    "bench": "benches", "torch": "torches", "dish": "dishes", "diary": "diaries", "lorry": "lorries", "fox": "foxes"
}  # fmt: skip
OPPOSITES = (
    "hot cold|big small|old new|slow fast|wet dry|cheap expensive|clean dirty|empty full|open closed|quiet loud|"
    "long short|thick thin"
)
PRAISE = r"\b(wonderful|great|lovely|excellent|perfect|charming|brilliant|delightful|superb|pleasant)\b"
TOPICS = {
    "sport": "goal|team|coach|match|referee|stadium",
    "food": "bread|soup|cheese|recipe|butter|salad",
    "weather": "storm|rain|snow|wind|cloud|thunder",
    "money": "bank|loan|price|tax|salary|invoice",
}


def list_and_word(text: str) -> tuple[list[str], str]:
    items, word = text.split("\nWord: ")
    return items.split(), word


def without(text: str) -> str:
    items, word = list_and_word(text)
    at = items.index(word)
    return " ".join(items[:at] + items[at + 1 :])


def home_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+) lives in (\w+)\.", text.partition("\n")[0]))


def opposite(text: str) -> str:
    word = text.rstrip(".").split()[-1]
    (pair,) = [p.split() for p in OPPOSITES.split("|") if word in p.split()]
    return pair[1 - pair.index(word)]


def ending(word: str) -> int:
    return next(i for i, ends in enumerate(ANSWER_ENDINGS) if word.endswith(ends))


def rhyme(text: str) -> str:
    items, word = list_and_word(text)
    (answer,) = [w for w in items if ending(w) == ending(word)]
    return answer


def plural(text: str) -> str:
    _, *middle, noun = text.split()
    return " ".join(["two", *middle, UNLIKE.get(noun, noun + "s")])


def past(text: str) -> str:
    verb = text.split()[1]
    regular = verb + ("d" if verb.endswith("e") else "ed")
    changed = {"cry": "cried", "hurry": "hurried", "study": "studied"}.get(verb, regular)
    return text.replace(f" {verb} ", f" {changed} ").replace(" every ", " last ")


def person(text: str) -> str:
    (name,) = re.findall(NAME, re.sub(r"\b[IiOo]n [A-Z][a-z]+|^The", "", text))
    return name


def topic(text: str) -> str:
    (name,) = {name for name, pattern in TOPICS.items() if re.search(rf"\b({pattern})\b", text)}
    return name


def sentiment(text: str) -> str:
    return "positive" if len(re.findall(PRAISE, text)) == 2 else "negative"


def fields(text: str) -> str:
    name, age, city = re.fullmatch(r"(\w+) is (\d+) years old and lives in (\w+)\.", text).groups()
    return f"name={name} age={age} city={city}"


CHECKS = {
    "first_word": lambda s: s[: s.index(" ")],
    "last_word": lambda s: s[s.rindex(" ") + 1 :],
    "reverse_words": lambda s: " ".join(s.split()[::-1]),
    "sort_words": lambda s: " ".join(sorted(s.split())),
    "remove_word": without,
    "count_words": lambda s: str(1 + s.count(" ")),
    "contains": lambda s: "yes" if list_and_word(s)[1] in list_and_word(s)[0] else "no",
    "repeated_word": lambda s: next(w for w in s.split() if s.split().count(w) == 2),
    "find_animal": lambda s: next(iter(set(s.split()) & ANIMALS)),
    "find_city": lambda s: re.search(r"[A-Z]\w+", s)[0],
    "capital_words": lambda s: s.swapcase(),
    "capital_last_word": lambda s: s[s.rindex(" ") + 1 :].swapcase(),
    "first_number": lambda s: of_kind(s, NUMBER)[0],
    "last_number": lambda s: of_kind(s, NUMBER)[-1],
    "first_name": lambda s: of_kind(s, NAME)[0],
    "last_name": lambda s: of_kind(s, NAME)[-1],
    "first_colour": lambda s: of_kind(s, COLOUR)[0],
    "last_colour": lambda s: of_kind(s, COLOUR)[-1],
    "who": person,
    "where": lambda s: re.search(r"\b[Ii]n ([A-Z]\w+)", s)[1],
    "what_colour": lambda s: re.search(r"\b[Tt]he (\w+)", s)[1],
    "lookup": lambda s: home_of(s)[re.search(r"does (\w+) live", s)[1]],
    "opposite": opposite,
    "plural": plural,
    "past_tense": past,
    "sentiment": sentiment,
    "word_mood": lambda s: "positive" if re.match(PRAISE, s) else "negative",
    "topic": topic,
    "rhyme": rhyme,
    "initials": lambda s: re.sub(r"[a-z]+ ?", ".", s),
    "largest_number": lambda s: str(max(map(int, s.split()))),
    "fields": fields,
    "second_word": lambda s: s.split(" ")[1],
    "not_contains": lambda s: "no" if list_and_word(s)[1] in list_and_word(s)[0] else "yes",
    "which_day": lambda s: re.search(r"[A-Z]\w+day", s)[0],
    "future_tense": lambda s: re.sub("I ", "I will ", s, count=1).replace(" every ", " next "),
    "inverted_sentiment": lambda s: "negative" if sentiment(s) == "positive" else "positive",
    "last_letters": lambda s: "".join(w[-1] + "." for w in s.split()),
    "smallest_number": lambda s: str(min(map(int, s.split()))),
    "copy_words": str,
    "swap_ends": lambda s: re.sub(r"^(\S+)(.*?)(\S+)$", r"\3\2\1", s),
    "longest_word": lambda s: max(s.split(), key=len),
    "with_commas": lambda s: s.replace(" ", ", "),
    "same_lists": lambda s: "same" if len(set(s.replace("List: ", "").split("\n"))) == 1 else "different",
    "total": lambda s: str(eval(s.replace(" ", "+"))),
    "parity": lambda s: "odd" if re.search(r"\d+", s)[0][-1] in "13579" else "even",
    "next_day": lambda s: dict(zip(words.DAYS, (*words.DAYS[1:], "Monday"), strict=True))[s[:-1].split()[-1]],
    "spell": lambda s: re.sub(r"(?<=.)(?=.)", "-", s.split()[-1]),
    "negation": lambda s: s.replace(" is ", " is not "),
}


def test_every_task_has_a_check():
    assert set(CHECKS) == {t.name for t in TASKS}


@pytest.mark.parametrize("task", CHECKS)
def test_answers_are_right(by_task, task):
    for example in by_task[task]:
        label, text = example.input.split(": ", 1)
        assert label in ("List", "Text")
        assert example.output == CHECKS[task](text), example.input


# The experiment that trains on it


def test_the_demo_experiment_holds_out_the_demo_tasks():
    config = load_config(["experiment=demo"])
    source = config.data.sources["demo"]
    assert source.kind == "demo"
    assert config.data.holdout.tasks == DEMO_HELD_OUT
    assert config.data.holdout.families == FAMILIES
    assert config.data.holdout.examples_per_task < source.examples_per_task / 10
