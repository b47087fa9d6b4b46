"""The tasks of the demo instruction set: the phrasings of each instruction and what draws its (INPUT, OUTPUT)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sft_dist.sources.demo import make
from sft_dist.sources.demo.words import ANIMALS, CITIES


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One task. `make` draws (INPUT, OUTPUT); every phrasing in `instructions` asks for the same thing."""

    name: str
    instructions: tuple[str, ...]
    make: Callable[[make.Rng], make.Pair]


TASKS: tuple[Task, ...] = (
    Task(
        name="first_word",
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
        make=make.fields,
        instructions=(
            "Extract name, age and city as fields.",
            "Write the facts as name=, age= and city=.",
            "Turn the sentence into a record.",
            "Convert the text to key=value pairs.",
            "Fill in the fields name, age and city.",
        ),
    ),
)
