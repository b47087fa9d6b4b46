"""The tasks of the demo instruction set: the phrasings of each instruction and what draws its (INPUT, OUTPUT).

A task trains, or is held out: *near* when a trained task is of its family, else *far*. A near task may have a contrast: what
the trained sibling would answer to the same input. A model that gives that answer plays back what it was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sft_dist.sources.demo import make
from sft_dist.sources.demo.words import ANIMALS, CITIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task.

    Attributes:
        name: Unique.
        family: Tasks that ask for nearly the same.
        instructions: Phrasings, each of which asks for the same thing.
        unseen: Further phrasings, which no example has: for the phrasing probe.
        make: Draws (INPUT, OUTPUT).
        sibling: Of a near task with a contrast: the trained task.
        sibling_answer: (INPUT, OUTPUT) -> what the sibling answers to the same input.
    """

    name: str
    family: str
    instructions: tuple[str, ...]
    make: Callable[[make.Rng], make.Pair]
    unseen: tuple[str, ...] = ()
    sibling: str | None = None
    sibling_answer: Callable[[str, str], str] | None = None


MIXED_SIBLINGS = {"first_colour": "last_colour", "last_name": "first_name"}
"""Held-out pairs of a position and a kind -> the trained pair of the other position."""

TASKS: tuple[Task, ...] = (
    Task(
        name="first_word",
        family="position",
        unseen=("Say the word at the start of the list.", "The first word, please."),
        make=make.first_word,
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
        family="position",
        unseen=("Say the word at the end of the list.", "The last word, please."),
        make=make.last_word,
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
        family="reverse",
        unseen=("Put the list into the opposite order.", "Write the list from its last word to its first."),
        make=make.reverse_words,
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
        family="sort",
        unseen=("Bring the words into the order of the alphabet.", "Sort the list from A to Z."),
        make=make.sort_words,
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
        family="remove",
        unseen=("Write the list again, but not the word.", "Give the other words of the list."),
        make=make.remove_word,
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
        family="count",
        unseen=("What is the number of words in the list?", "Say how many words the list has."),
        make=make.count_words,
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
        family="contains",
        unseen=("Is the word one of the list?", "Does the word occur in the list? Yes or no."),
        make=make.contains,
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
        family="repeated",
        unseen=("Which word is there more than once?", "Say the word that the list has twice."),
        make=make.repeated_word,
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
        family="find",
        unseen=("Say which one is an animal.", "Give the animal of the list."),
        make=make.find(ANIMALS),
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
        family="find",
        make=make.find(CITIES),
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
        family="capitals",
        unseen=("Use capital letters for all the words.", "Write everything in upper case."),
        make=make.capital_words,
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
        family="capitals",
        sibling="capital_words",
        sibling_answer=lambda text, _: " ".join(make.items_of(text)).upper(),
        make=make.capital_last_word,
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
            family="mixed",
            unseen=(
                f"Say which {kind} is the {position} one.",
                f"Look for the {position} {kind} of the list.",
            ),
            sibling=MIXED_SIBLINGS.get(f"{position}_{kind}"),
            sibling_answer=make.other_item(kind, -1 if position == "first" else 0)
            if f"{position}_{kind}" in MIXED_SIBLINGS
            else None,
            make=make.mixed(kind, 0 if position == "first" else -1),
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
        family="extract",
        unseen=("Say who the person in the text is.", "Give the name of the person."),
        make=make.extract("who"),
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
        family="extract",
        unseen=("Say where it was.", "Give the city of the sentence."),
        make=make.extract("where"),
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
        family="extract",
        unseen=("Say which colour the object has.", "Give the colour of the thing."),
        make=make.extract("colour"),
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
        family="lookup",
        unseen=("Find the city that is asked for.", "Where is it? Read the text."),
        make=make.lookup,
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
        family="opposite",
        unseen=("Write the opposite of the adjective.", "Say the opposite of the last word."),
        make=make.opposite,
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
        family="plural",
        unseen=("Write the phrase for two things.", "Change it into the plural with two."),
        make=make.plural_phrase,
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
        family="tense",
        unseen=("Write the sentence in the past.", "Say the sentence so that it happened last week."),
        make=make.past_tense,
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
        family="sentiment",
        unseen=("Say whether the opinion is positive or negative.", "Is the sentiment positive or negative?"),
        make=make.sentiment,
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
        family="sentiment",
        make=make.mood,
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
        family="topic",
        unseen=("Say what the text is about.", "Is it sport, food, weather or money?"),
        make=make.topic,
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
        family="rhyme",
        unseen=("Say which word of the list is the rhyme.", "Give the word that rhymes with the word."),
        make=make.rhyme,
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
        family="initials",
        unseen=("Give the initials, with points.", "Write the first letters of the words."),
        make=make.initials,
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
        family="extreme",
        unseen=("Say which number is the biggest.", "Give the largest of the numbers."),
        make=make.largest,
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
        family="fields",
        unseen=("Give the fields name, age and city.", "Write name, age and city as a record."),
        make=make.fields,
        instructions=(
            "Extract name, age and city as fields.",
            "Write the facts as name=, age= and city=.",
            "Turn the sentence into a record.",
            "Convert the text to key=value pairs.",
            "Fill in the fields name, age and city.",
        ),
    ),
    # Near: a trained task is of the same family.
    Task(
        name="second_word",
        family="position",
        make=make.second_word,
        instructions=(
            "Give the second word of the list.",
            "What is the second word here?",
            "Write only the second word.",
            "Which word comes second?",
        ),
        sibling="first_word",
        sibling_answer=lambda text, _: make.items_of(text)[0],
    ),
    Task(
        name="not_contains",
        family="contains",
        make=make.not_contains,
        instructions=(
            "Is the word missing from the list?",
            "Is the list without the word?",
            "Say yes if the list lacks the word, else no.",
            "Is the word absent from the list?",
        ),
        sibling="contains",
        sibling_answer=make.other_of("yes", "no"),
    ),
    Task(
        name="which_day",
        family="extract",
        make=make.extract("day"),
        instructions=(
            "On which day did it happen?",
            "Name the day.",
            "Which day does the sentence mention?",
            "When was it?",
        ),
        sibling="where",
        sibling_answer=make.city_of,
    ),
    Task(
        name="future_tense",
        family="tense",
        make=make.future_tense,
        instructions=(
            "Put the sentence into the future tense.",
            "Rewrite the sentence so that it happens next week.",
            "Change the verb to the future.",
            "Turn the sentence into the future.",
        ),
        sibling="past_tense",
        sibling_answer=make.past_of,
    ),
    Task(
        name="inverted_sentiment",
        family="sentiment",
        make=make.inverted_sentiment,
        instructions=(
            "Say negative if they liked it, positive if they did not.",
            "Label praise as negative and blame as positive.",
            "Give the opposite of the sentiment.",
            "Which of positive and negative is the review not?",
        ),
        sibling="sentiment",
        sibling_answer=make.other_of("positive", "negative"),
    ),
    Task(
        name="last_letters",
        family="initials",
        make=make.last_letters,
        instructions=(
            "Write the last letters of the words.",
            "Make an acronym from the last letters.",
            "Give the last letter of every word.",
            "Shorten this to its last letters.",
        ),
        sibling="initials",
        sibling_answer=make.initials_of,
    ),
    Task(
        name="smallest_number",
        family="extreme",
        make=make.smallest,
        instructions=(
            "Which number is the smallest?",
            "Give the least number.",
            "Find the minimum.",
            "What is the lowest number?",
        ),
        sibling="largest_number",
        sibling_answer=lambda text, _: str(max(map(int, make.items_of(text)))),
    ),
    # Far: no trained task is of the family.
    Task(
        name="copy_words",
        family="copy",
        make=make.copy_words,
        instructions=(
            "Copy the list.",
            "Write the words again as they are.",
            "Repeat all words in the same order.",
            "Say the whole list.",
        ),
    ),
    Task(
        name="swap_ends",
        family="swap",
        make=make.swap_ends,
        instructions=(
            "Exchange the first and the last word.",
            "Swap the two ends of the list.",
            "Let the first and the last word change places.",
            "Write the list with its ends swapped.",
        ),
    ),
    Task(
        name="longest_word",
        family="longest",
        make=make.longest_word,
        instructions=(
            "Which word is the longest?",
            "Give the word with the most letters.",
            "Find the longest word.",
            "Name the word that has more letters than the others.",
        ),
    ),
    Task(
        name="with_commas",
        family="commas",
        make=make.with_commas,
        instructions=(
            "Put commas between the words.",
            "Separate the words by commas.",
            "Write the list with commas.",
            "Join the words with commas.",
        ),
    ),
    Task(
        name="same_lists",
        family="same",
        make=make.same_lists,
        instructions=(
            "Are the two lists the same or different?",
            "Compare the lists: same or different?",
            "Say same if both lists are equal, else different.",
            "Do the lists match? Answer same or different.",
        ),
    ),
    Task(
        name="total",
        family="sum",
        make=make.total,
        instructions=(
            "Add the numbers.",
            "What is the sum?",
            "Give the total of the two numbers.",
            "How much are they together?",
        ),
    ),
    Task(
        name="parity",
        family="parity",
        make=make.parity,
        instructions=(
            "Is the number even or odd?",
            "Say even or odd.",
            "Can the number be halved? Say even, else odd.",
            "Tell whether the number is even or odd.",
        ),
    ),
    Task(
        name="next_day",
        family="calendar",
        make=make.next_day,
        instructions=(
            "Which day comes after the day of the text?",
            "Give the day after.",
            "What was the next day?",
            "Name the following day of the week.",
        ),
    ),
    Task(
        name="spell",
        family="spelling",
        make=make.spell,
        instructions=(
            "Spell the last word with hyphens.",
            "Put hyphens between the letters of the last word.",
            "Write the last word letter by letter, with hyphens.",
            "Split the last word into letters with hyphens.",
        ),
    ),
    Task(
        name="negation",
        family="negation",
        make=make.negation,
        instructions=(
            "Negate the sentence.",
            "Say that it is not so.",
            "Write the opposite statement with not.",
            "Put not into the sentence.",
        ),
    ),
)

DEMO_NEAR = (
    "second_word", "not_contains", "find_city", "capital_last_word", "first_colour", "last_name", "which_day", "future_tense", "word_mood",
    "inverted_sentiment", "last_letters", "smallest_number",
)  # fmt: skip
"""Held out by conf/experiment/demo.yaml, with a trained task in the family."""

DEMO_FAR = (
    "copy_words", "swap_ends", "longest_word", "with_commas", "same_lists", "total", "parity", "next_day", "spell", "negation",
)  # fmt: skip
"""Held out with the whole family."""

FAMILIES: dict[str, tuple[str, ...]] = {
    family: tuple(t.name for t in TASKS if t.family == family)
    for family in dict.fromkeys(t.family for t in TASKS)
}
