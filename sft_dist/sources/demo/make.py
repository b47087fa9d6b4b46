"""A random stream -> (INPUT, OUTPUT), one function a task, or one that returns it for the tasks of a family."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from sft_dist.sources.demo.words import (
    ADJECTIVES,
    ANIMALS,
    BAD,
    CITIES,
    COLOURS,
    DAYS,
    GOOD,
    NAMES,
    OBJECTS,
    OPPOSITES,
    PLACES,
    REVIEWED,
    RHYMES,
    TOPICS,
    VERBS,
)

Rng = random.Random
Pair = tuple[str, str]


def plural(noun: str) -> str:
    """Return the regular English plural of a noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")


def _words(rng: Rng, low: int, high: int) -> list[str]:
    """Draw `low` to `high` different nouns."""
    return rng.sample(OBJECTS + ANIMALS, rng.randint(low, high))


def _list(items: Sequence[object]) -> str:
    """Return the line that shows a list. The label puts a space before every item, so that none is spelled apart."""
    return f"List: {' '.join(map(str, items))}"


def _numbers(rng: Rng, count: int) -> list[int]:
    return rng.sample(range(10, 100), count)


# Lists of words


def first_word(rng: Rng) -> Pair:
    """The first of three to six words."""
    words = _words(rng, 3, 6)
    return _list(words), words[0]


def last_word(rng: Rng) -> Pair:
    """The last of three to six words."""
    words = _words(rng, 3, 6)
    return _list(words), words[-1]


def reverse_words(rng: Rng) -> Pair:
    """Three or four words, backwards."""
    words = _words(rng, 3, 4)
    return _list(words), " ".join(reversed(words))


def sort_words(rng: Rng) -> Pair:
    """Three words, alphabetically."""
    words = _words(rng, 3, 3)
    return _list(words), " ".join(sorted(words))


def remove_word(rng: Rng) -> Pair:
    """A list and one of its words; the list without it."""
    words = _words(rng, 3, 4)
    removed = rng.choice(words)
    return f"{_list(words)}\nWord: {removed}", " ".join(w for w in words if w != removed)


def count_words(rng: Rng) -> Pair:
    """Two to seven words; how many there are."""
    words = _words(rng, 2, 7)
    return _list(words), str(len(words))


def contains(rng: Rng) -> Pair:
    """A list and a word; yes or no, equally often."""
    words = _words(rng, 4, 6)
    inside = rng.random() < 0.5
    word = words.pop() if not inside else rng.choice(words)
    return f"{_list(words)}\nWord: {word}", "yes" if inside else "no"


def repeated_word(rng: Rng) -> Pair:
    """A shuffled list in which one word stands twice; that word."""
    words = _words(rng, 4, 5)
    repeated = rng.choice(words)
    words.append(repeated)
    rng.shuffle(words)
    return _list(words), repeated


def find(kind: Sequence[str]) -> Callable[[Rng], Pair]:
    """One word of `kind` among things; that word."""

    def make(rng: Rng) -> Pair:
        words = rng.sample(OBJECTS, rng.randint(3, 5))
        found = rng.choice(kind)
        words.insert(rng.randint(0, len(words)), found)
        return _list(words), found

    return make


def second_word(rng: Rng) -> Pair:
    """The second of three to six words."""
    words = _words(rng, 3, 6)
    return _list(words), words[1]


def not_contains(rng: Rng) -> Pair:
    """A list and a word; yes when the word is missing, no when it is there, equally often."""
    text, there = contains(rng)
    return text, "no" if there == "yes" else "yes"


def copy_words(rng: Rng) -> Pair:
    """Three or four words; the same words."""
    words = _words(rng, 3, 4)
    return _list(words), " ".join(words)


def swap_ends(rng: Rng) -> Pair:
    """Three or four words; the same with the first and the last exchanged."""
    words = _words(rng, 3, 4)
    return _list(words), " ".join([words[-1], *words[1:-1], words[0]])


def longest_word(rng: Rng) -> Pair:
    """Three or four words of which one is longer than the others; that word."""
    while True:
        words = _words(rng, 3, 4)
        longest = max(words, key=len)
        if sum(len(w) == len(longest) for w in words) == 1:
            return _list(words), longest


def with_commas(rng: Rng) -> Pair:
    """Three or four words; the same with commas between them."""
    words = _words(rng, 3, 4)
    return _list(words), ", ".join(words)


def same_lists(rng: Rng) -> Pair:
    """Two lists of two or three words; same or different, equally often."""
    words = _words(rng, 2, 3)
    other = list(words)
    same = rng.random() < 0.5
    if not same:
        other[rng.randrange(len(other))] = rng.choice([w for w in OBJECTS if w not in words])
    return f"{_list(words)}\n{_list(other)}", "same" if same else "different"


def capital_words(rng: Rng) -> Pair:
    """Two to four animals, in capital letters."""
    words = rng.sample(ANIMALS, rng.randint(2, 4))
    return _list(words), " ".join(words).upper()


def capital_last_word(rng: Rng) -> Pair:
    """The last of three to five animals, in capital letters."""
    words = rng.sample(ANIMALS, rng.randint(3, 5))
    return _list(words), words[-1].upper()


# Lists of mixed kinds


def mixed(kind: str, position: int) -> Callable[[Rng], Pair]:
    """Two words of `kind` among two each of the other kinds; the first (0) or last (-1) of `kind`."""

    def make(rng: Rng) -> Pair:
        kinds = {
            "number": [str(n) for n in _numbers(rng, 2)],
            "name": rng.sample(NAMES, 2),
            "colour": rng.sample(COLOURS, 2),
        }
        items = [item for values in kinds.values() for item in values]
        rng.shuffle(items)
        return _list(items), [item for item in items if item in kinds[kind]][position]

    return make


# Sentences


def _purchase(rng: Rng) -> dict[str, str]:
    """Draw a sentence and its parts."""
    parts = {
        "who": rng.choice(NAMES),
        "where": rng.choice(CITIES),
        "colour": rng.choice(COLOURS),
        "what": rng.choice(OBJECTS),
        "day": rng.choice(DAYS),
        "verb": rng.choice(("bought", "found", "lost", "sold")),
    }
    form = rng.choice(
        (
            "{who} {verb} the {colour} {what} in {where} on {day}.",
            "On {day} {who} {verb} the {colour} {what} in {where}.",
            "In {where}, {who} {verb} the {colour} {what} on {day}.",
            "The {colour} {what} that {who} {verb} on {day} is in {where}.",
        )
    )
    return {**parts, "text": f"Text: {form.format(**parts)}"}


def extract(part: str) -> Callable[[Rng], Pair]:
    """A sentence about a person, a thing and a place; the `part` that is asked for."""

    def make(rng: Rng) -> Pair:
        parts = _purchase(rng)
        return parts["text"], parts[part]

    return make


def _facts(rng: Rng) -> tuple[dict[str, str], str]:
    """Draw who lives where, as facts and as text."""
    count = rng.randint(2, 3)
    facts = dict(zip(rng.sample(NAMES, count), rng.sample(CITIES, count), strict=True))
    return facts, "Text: " + " ".join(f"{name} lives in {city}." for name, city in facts.items())


def lookup(rng: Rng) -> Pair:
    """Two or three facts and a question; the city where the person lives."""
    facts, text = _facts(rng)
    name = rng.choice(list(facts))
    return f"{text}\nQuestion: Where does {name} live?", facts[name]


def opposite(rng: Rng) -> Pair:
    """A sentence that ends with an adjective; its opposite."""
    pairs = [*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())]
    word, opposite = rng.choice(pairs)
    form = rng.choice(("The {colour} {what} is {word}.", "{who} has the {colour} {what} that is {word}."))
    text = form.format(colour=rng.choice(COLOURS), what=rng.choice(OBJECTS), who=rng.choice(NAMES), word=word)
    return f"Text: {text}", opposite


def plural_phrase(rng: Rng) -> Pair:
    """A phrase about one thing; the same about two."""
    adjectives = f"{rng.choice(ADJECTIVES)} {rng.choice(COLOURS)}"
    noun = rng.choice(OBJECTS + ANIMALS)
    return f"Text: one {adjectives} {noun}", f"two {adjectives} {plural(noun)}"


def past_tense(rng: Rng) -> Pair:
    """A habit in the present tense; the same in the past."""
    base, past = rng.choice(list(VERBS.items()))
    name, place, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS)
    return (
        f"Text: I {base} with {name} at the {place} every {day}.",
        f"I {past} with {name} at the {place} last {day}.",
    )


def sentiment(rng: Rng) -> Pair:
    """A review of two things with two words of praise or blame; positive or negative."""
    good = rng.random() < 0.5
    words = rng.sample(GOOD if good else BAD, 2)
    first, second = rng.sample(REVIEWED, 2)
    form = rng.choice(
        (
            "The {first} was {a} and the {second} was {b}.",
            "{who} found the {first} {a}, and the {second} {b} too.",
            "The {first} in {where} was {a}. So {b} was the {second}!",
        )
    )
    text = form.format(
        first=first, second=second, a=words[0], b=words[1], who=rng.choice(NAMES), where=rng.choice(CITIES)
    )
    return f"Text: {text}", "positive" if good else "negative"


def mood(rng: Rng) -> Pair:
    """Words of praise or blame without a sentence; positive or negative."""
    good = rng.random() < 0.5
    return _list(rng.sample(GOOD if good else BAD, rng.randint(3, 5))), "positive" if good else "negative"


def topic(rng: Rng) -> Pair:
    """A sentence with two words of one topic; the topic."""
    topic = rng.choice(list(TOPICS))
    first, second = rng.sample(TOPICS[topic], 2)
    form = rng.choice(
        (
            "{who} wrote about the {first} and the {second} on {day}.",
            "In {where} we talked about {first} and then about {second}.",
            "The {first} in {where} and the {second} were in the news.",
        )
    )
    text = form.format(
        first=first, second=second, who=rng.choice(NAMES), where=rng.choice(CITIES), day=rng.choice(DAYS)
    )
    return f"Text: {text}", topic


def rhyme(rng: Rng) -> Pair:
    """A list and a word; the only one of the list that rhymes with it."""
    family, *others = rng.sample(RHYMES, 4)
    word, answer = rng.sample(family, 2)
    choices = [answer, *(rng.choice(f) for f in others)]
    rng.shuffle(choices)
    return f"{_list(choices)}\nWord: {word}", answer


def initials(rng: Rng) -> Pair:
    """Three or four capitalised words; their initials with points."""
    words = [w.capitalize() for w in _words(rng, 3, 4)]
    return f"Text: {' '.join(words)}", "".join(f"{w[0]}." for w in words)


def largest(rng: Rng) -> Pair:
    """Three two-digit numbers; the largest."""
    numbers = _numbers(rng, 3)
    return _list(numbers), str(max(numbers))


def fields(rng: Rng) -> Pair:
    """A sentence about a person; name, age and city as key=value pairs."""
    name, age, city = rng.choice(NAMES), rng.randint(10, 99), rng.choice(CITIES)
    return f"Text: {name} is {age} years old and lives in {city}.", f"name={name} age={age} city={city}"


def smallest(rng: Rng) -> Pair:
    """Three two-digit numbers; the smallest."""
    numbers = _numbers(rng, 3)
    return _list(numbers), str(min(numbers))


def total(rng: Rng) -> Pair:
    """Two two-digit numbers; their sum."""
    numbers = _numbers(rng, 2)
    return _list(numbers), str(sum(numbers))


def parity(rng: Rng) -> Pair:
    """A sentence with a number; even or odd."""
    number = rng.randint(10, 99)
    text = f"{rng.choice(NAMES)} has {number} {rng.choice(COLOURS)} {plural(rng.choice(OBJECTS))}."
    return f"Text: {text}", "odd" if number % 2 else "even"


def last_letters(rng: Rng) -> Pair:
    """Three or four capitalised words; the last letter of each with points."""
    words = [w.capitalize() for w in _words(rng, 3, 4)]
    return f"Text: {' '.join(words)}", "".join(f"{w[-1]}." for w in words)


def future_tense(rng: Rng) -> Pair:
    """A habit in the present tense; the same in the future."""
    base = rng.choice(list(VERBS))
    name, place, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS)
    rest = f"{base} with {name} at the {place}"
    return f"Text: I {rest} every {day}.", f"I will {rest} next {day}."


def inverted_sentiment(rng: Rng) -> Pair:
    """A review; negative for praise, positive for blame."""
    text, label = sentiment(rng)
    return text, "negative" if label == "positive" else "positive"


def next_day(rng: Rng) -> Pair:
    """A sentence with a day; the day after it."""
    day = rng.randrange(7)
    text = f"{rng.choice(NAMES)} came to {rng.choice(CITIES)} with a {rng.choice(COLOURS)} {rng.choice(OBJECTS)} on {DAYS[day]}."
    return f"Text: {text}", DAYS[(day + 1) % 7]


def spell(rng: Rng) -> Pair:
    """A phrase; its last word with hyphens between the letters."""
    word = rng.choice(OBJECTS + ANIMALS)
    return f"Text: {rng.choice(ADJECTIVES)} {rng.choice(COLOURS)} {word}", "-".join(word)


def negation(rng: Rng) -> Pair:
    """A sentence with is; its negation."""
    head = f"The {rng.choice(COLOURS)} {rng.choice(OBJECTS)} in {rng.choice(CITIES)} is"
    word = rng.choice(ADJECTIVES)
    return f"Text: {head} {word}.", f"{head} not {word}."


# What a trained sibling would answer to the input of a held-out task


def items_of(text: str) -> list[str]:
    """Return the items of the first list of an INPUT."""
    return text.partition("\n")[0].removeprefix("List: ").split()


def other_of(first: str, second: str) -> Callable[[str, str], str]:
    """Return the other one of two labels."""

    def answer(_: str, gold: str) -> str:
        return second if gold == first else first

    return answer


def other_item(kind: str, position: int) -> Callable[[str, str], str]:
    """Return the first (0) or last (-1) item of a kind in a mixed list."""
    among = {"name": NAMES, "colour": COLOURS}[kind]

    def answer(text: str, _: str) -> str:
        return [item for item in items_of(text) if item in among][position]

    return answer


def city_of(text: str, _: str) -> str:
    """Return the city of a sentence."""
    return next(w for w in text.replace(",", " ").replace(".", " ").split() if w in CITIES)


def past_of(text: str, _: str) -> str:
    """Return the sentence in the past."""
    text = text.removeprefix("Text: ").replace(" every ", " last ")
    base = text.split()[1]
    return text.replace(f"I {base} ", f"I {VERBS[base]} ", 1)


def initials_of(text: str, _: str) -> str:
    """Return the initials of the words."""
    return "".join(f"{w[0]}." for w in text.removeprefix("Text: ").split())
