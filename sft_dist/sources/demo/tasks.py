"""The tasks of the demo instruction set: phrasings of the instruction, and (INPUT, OUTPUT) from a random stream."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task. `make` draws (INPUT, OUTPUT); every phrasing in `instructions` asks for the same thing."""

    name: str
    instructions: tuple[str, ...]
    make: Callable[[Rng], Pair]


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


def _first_word(rng: Rng) -> Pair:
    words = _words(rng, 3, 6)
    return _list(words), words[0]


def _last_word(rng: Rng) -> Pair:
    words = _words(rng, 3, 6)
    return _list(words), words[-1]


def _reverse_words(rng: Rng) -> Pair:
    words = _words(rng, 3, 4)
    return _list(words), " ".join(reversed(words))


def _sort_words(rng: Rng) -> Pair:
    words = _words(rng, 3, 3)
    return _list(words), " ".join(sorted(words))


def _remove_word(rng: Rng) -> Pair:
    words = _words(rng, 3, 4)
    removed = rng.choice(words)
    return f"{_list(words)}\nWord: {removed}", " ".join(w for w in words if w != removed)


def _count_words(rng: Rng) -> Pair:
    words = _words(rng, 2, 7)
    return _list(words), str(len(words))


def _contains(rng: Rng) -> Pair:
    words = _words(rng, 4, 6)
    inside = rng.random() < 0.5
    word = words.pop() if not inside else rng.choice(words)
    return f"{_list(words)}\nWord: {word}", "yes" if inside else "no"


def _repeated_word(rng: Rng) -> Pair:
    words = _words(rng, 4, 5)
    repeated = rng.choice(words)
    words.append(repeated)
    rng.shuffle(words)
    return _list(words), repeated


def _find(kind: Sequence[str]) -> Callable[[Rng], Pair]:
    def make(rng: Rng) -> Pair:
        words = rng.sample(OBJECTS, rng.randint(3, 5))
        found = rng.choice(kind)
        words.insert(rng.randint(0, len(words)), found)
        return _list(words), found

    return make


def _capital_words(rng: Rng) -> Pair:
    words = rng.sample(ANIMALS, rng.randint(2, 4))
    return _list(words), " ".join(words).upper()


def _capital_last_word(rng: Rng) -> Pair:
    words = rng.sample(ANIMALS, rng.randint(3, 5))
    return _list(words), words[-1].upper()


# Lists of mixed kinds


def _mixed(kind: str, position: int) -> Callable[[Rng], Pair]:
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


def _extract(part: str) -> Callable[[Rng], Pair]:
    def make(rng: Rng) -> Pair:
        parts = _purchase(rng)
        return parts["text"], parts[part]

    return make


def _facts(rng: Rng) -> tuple[dict[str, str], str]:
    """Draw who lives where, as facts and as text."""
    count = rng.randint(2, 3)
    facts = dict(zip(rng.sample(NAMES, count), rng.sample(CITIES, count), strict=True))
    return facts, "Text: " + " ".join(f"{name} lives in {city}." for name, city in facts.items())


def _lookup(rng: Rng) -> Pair:
    facts, text = _facts(rng)
    name = rng.choice(list(facts))
    return f"{text}\nQuestion: Where does {name} live?", facts[name]


def _opposite(rng: Rng) -> Pair:
    pairs = [*OPPOSITES.items(), *((b, a) for a, b in OPPOSITES.items())]
    word, opposite = rng.choice(pairs)
    form = rng.choice(("The {colour} {what} is {word}.", "{who} has the {colour} {what} that is {word}."))
    text = form.format(colour=rng.choice(COLOURS), what=rng.choice(OBJECTS), who=rng.choice(NAMES), word=word)
    return f"Text: {text}", opposite


def _plural(rng: Rng) -> Pair:
    adjectives = f"{rng.choice(ADJECTIVES)} {rng.choice(COLOURS)}"
    noun = rng.choice(OBJECTS + ANIMALS)
    return f"Text: one {adjectives} {noun}", f"two {adjectives} {plural(noun)}"


def _past(rng: Rng) -> Pair:
    base, past = rng.choice(list(VERBS.items()))
    name, place, day = rng.choice(NAMES), rng.choice(PLACES), rng.choice(DAYS)
    return (
        f"Text: I {base} with {name} at the {place} every {day}.",
        f"I {past} with {name} at the {place} last {day}.",
    )


def _sentiment(rng: Rng) -> Pair:
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


def _mood(rng: Rng) -> Pair:
    good = rng.random() < 0.5
    return _list(rng.sample(GOOD if good else BAD, rng.randint(3, 5))), "positive" if good else "negative"


def _topic(rng: Rng) -> Pair:
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


def _rhyme(rng: Rng) -> Pair:
    family, *others = rng.sample(RHYMES, 4)
    word, answer = rng.sample(family, 2)
    choices = [answer, *(rng.choice(f) for f in others)]
    rng.shuffle(choices)
    return f"{_list(choices)}\nWord: {word}", answer


def _initials(rng: Rng) -> Pair:
    words = [w.capitalize() for w in _words(rng, 3, 4)]
    return f"Text: {' '.join(words)}", "".join(f"{w[0]}." for w in words)


def _largest(rng: Rng) -> Pair:
    numbers = _numbers(rng, 3)
    return _list(numbers), str(max(numbers))


def _fields(rng: Rng) -> Pair:
    name, age, city = rng.choice(NAMES), rng.randint(10, 99), rng.choice(CITIES)
    return f"Text: {name} is {age} years old and lives in {city}.", f"name={name} age={age} city={city}"


TASKS: tuple[Task, ...] = (
    Task(
        name="first_word",
        make=_first_word,
        instructions=(
            "Give the first word of the list.",
            "What is the first word here?",
            "Write only the first word.",
            "Which word comes first?",
            "Repeat the first word of this list.",
        ),
    ),
    Task(
        name="last_word",
        make=_last_word,
        instructions=(
            "Give the last word of the list.",
            "What is the last word here?",
            "Write only the last word.",
            "Which word comes last?",
            "Repeat the last word of this list.",
        ),
    ),
    Task(
        name="reverse_words",
        make=_reverse_words,
        instructions=(
            "Write the words in reverse order.",
            "Reverse the order of the words.",
            "Give these words backwards, the last one first.",
            "Turn the list of words around.",
            "List the words from the end to the start.",
        ),
    ),
    Task(
        name="sort_words",
        make=_sort_words,
        instructions=(
            "Sort the words alphabetically.",
            "Put the words into alphabetical order.",
            "Order these words from A to Z.",
            "Write the list in alphabetical order.",
            "Arrange the words as in a dictionary.",
        ),
    ),
    Task(
        name="remove_word",
        make=_remove_word,
        instructions=(
            "Write the list without the given word.",
            "Remove the word from the list.",
            "Delete the word and give the rest of the list.",
            "Copy the list but leave out the word.",
            "Take the word away from the list.",
        ),
    ),
    Task(
        name="count_words",
        make=_count_words,
        instructions=(
            "How many words are there?",
            "Count the words.",
            "Give the number of words.",
            "How long is this list?",
            "Tell me the count of words.",
        ),
    ),
    Task(
        name="contains",
        make=_contains,
        instructions=(
            "Is the word in the list?",
            "Does the list contain the word?",
            "Say yes if the list has the word, else no.",
            "Can you find the word in the list?",
            "Check whether the list includes the word.",
        ),
    ),
    Task(
        name="repeated_word",
        make=_repeated_word,
        instructions=(
            "Which word occurs twice?",
            "Find the word that is repeated.",
            "One word is there two times. Which?",
            "Give the duplicate word.",
            "Name the word that appears more than once.",
        ),
    ),
    Task(
        name="find_animal",
        make=_find(ANIMALS),
        instructions=(
            "Which of these is an animal?",
            "Find the animal.",
            "Name the animal among the things.",
            "One of them is alive. Which?",
            "Pick out the animal.",
        ),
    ),
    Task(
        name="find_city",
        make=_find(CITIES),
        instructions=(
            "Which of these is a city?",
            "Find the city.",
            "Name the city among the things.",
            "One of them is a city. Which?",
            "Pick out the city.",
        ),
    ),
    Task(
        name="capital_words",
        make=_capital_words,
        instructions=(
            "Write the words in capital letters.",
            "Put everything into capitals.",
            "Change the words to upper case.",
            "Give the list in capital letters.",
            "Make all letters capitals.",
        ),
    ),
    Task(
        name="capital_last_word",
        make=_capital_last_word,
        instructions=(
            "Write the last word in capital letters.",
            "Give only the last word, in capitals.",
            "Change the last word to upper case.",
            "Give the last word in capital letters.",
            "Which word comes last? Use capitals.",
        ),
    ),
    *(
        Task(
            name=f"{position}_{kind}",
            make=_mixed(kind, 0 if position == "first" else -1),
            instructions=(
                f"Give the {position} {kind} of the list.",
                f"What is the {position} {kind} here?",
                f"Write only the {position} {kind}.",
                f"Which {kind} comes {position}?",
                f"Repeat the {position} {kind} of this list.",
            ),
        )
        for kind in ("number", "name", "colour")
        for position in ("first", "last")
    ),
    Task(
        name="who",
        make=_extract("who"),
        instructions=(
            "Who is the sentence about?",
            "Name the person.",
            "Which person does the sentence mention?",
            "Who did it?",
            "Find the person in the sentence.",
        ),
    ),
    Task(
        name="where",
        make=_extract("where"),
        instructions=(
            "Where did it happen?",
            "Name the city.",
            "Which city does the sentence mention?",
            "In which city was it?",
            "Find the place in the sentence.",
        ),
    ),
    Task(
        name="what_colour",
        make=_extract("colour"),
        instructions=(
            "What colour is the thing?",
            "Name the colour.",
            "Which colour does the sentence mention?",
            "Tell me the colour of the object.",
            "Find the colour in the sentence.",
        ),
    ),
    Task(
        name="lookup",
        make=_lookup,
        instructions=(
            "Answer the question about the city.",
            "Read the facts and name the city.",
            "Use the text to find where the person lives.",
            "Look up the home of the person.",
            "Read and answer with a city.",
        ),
    ),
    Task(
        name="opposite",
        make=_opposite,
        instructions=(
            "Give the opposite of the last word.",
            "What is the opposite of how it is?",
            "Say the contrary of the last adjective.",
            "Which word means the opposite of the last one?",
            "Name the opposite property.",
        ),
    ),
    Task(
        name="plural",
        make=_plural,
        instructions=(
            "Put the phrase into the plural, for two things.",
            "Write it for two instead of one.",
            "Change the phrase from one to two.",
            "Make it plural with the number two.",
            "Say it when there are two.",
        ),
    ),
    Task(
        name="past_tense",
        make=_past,
        instructions=(
            "Put the sentence into the past tense.",
            "Rewrite the sentence so that it happened last week.",
            "Change the verb to the past.",
            "Say that it happened in the past.",
            "Turn the sentence into the past.",
        ),
    ),
    Task(
        name="sentiment",
        make=_sentiment,
        instructions=(
            "Is the review positive or negative?",
            "Classify the sentiment.",
            "What is the mood of this review?",
            "Did they like it? Say positive or negative.",
            "Label the opinion as positive or negative.",
        ),
    ),
    Task(
        name="word_mood",
        make=_mood,
        instructions=(
            "Are the words positive or negative?",
            "Classify the mood of the words.",
            "What is the sentiment of this list?",
            "Do they sound good? Say positive or negative.",
            "Label the list as positive or negative.",
        ),
    ),
    Task(
        name="topic",
        make=_topic,
        instructions=(
            "Which topic is it: sport, food, weather or money?",
            "Classify the topic.",
            "What is the text about: sport, food, weather or money?",
            "Name the subject of the text.",
            "Label the theme of the text.",
        ),
    ),
    Task(
        name="rhyme",
        make=_rhyme,
        instructions=(
            "Which word of the list rhymes with the given word?",
            "Find the rhyme.",
            "Choose the word that rhymes.",
            "Pick the word that sounds alike at the end.",
            "Give the rhyming word.",
        ),
    ),
    Task(
        name="initials",
        make=_initials,
        instructions=(
            "Write the initials of the words.",
            "Make an acronym from the first letters.",
            "Abbreviate the name by its initials.",
            "Give the first letter of every word.",
            "Shorten this to initials.",
        ),
    ),
    Task(
        name="largest_number",
        make=_largest,
        instructions=(
            "Which number is the largest?",
            "Give the biggest number.",
            "Find the maximum.",
            "Name the greatest of the numbers.",
            "What is the highest number?",
        ),
    ),
    Task(
        name="fields",
        make=_fields,
        instructions=(
            "Extract name, age and city as fields.",
            "Write the facts as name=, age= and city=.",
            "Turn the sentence into a record.",
            "Convert the text to key=value pairs.",
            "Fill in the fields name, age and city.",
        ),
    ),
)
