"""The prompts, in our own words on the published plans, and how their answers are taken apart. A change raises VERSION."""

from __future__ import annotations

import re
from collections.abc import Sequence

VERSION = 2

LAST_TASK = 16  # the number at which a list of tasks ends

# Self-Instruct's parameters; `sampling` of a set overrides them.
LIST_SAMPLING = {"temperature": 0.7, "top_p": 0.5, "presence_penalty": 2.0}
LABEL_SAMPLING = {"temperature": 0.0}
INSTANCE_SAMPLING = {"temperature": 0.0, "presence_penalty": 1.5}
EVOLVE_SAMPLING = {"temperature": 1.0, "top_p": 0.95}
NEXT_SAMPLING = {"temperature": 1.0}
LIST_STOP = [
    "\n\n",
    f"\n{LAST_TASK}",
    f"{LAST_TASK}.",
    f"{LAST_TASK} .",
]  # a plain model would go on for ever

_NUMBERED = re.compile(r"(?:^|\n)\s*\d+\s?[.)]\s+")
_EXAMPLE = re.compile(r"(?:^|\n)\s*Example\s*\d*\s*[.:]?[ \t]*(?=\n|$)")
_OUTPUT = re.compile(r"(?:^|\n)\s*Output\s*\d*\s*:")
_INPUT = re.compile(r"^\s*Input\s*\d*\s*:")
_NEXT_INPUT = re.compile(r"\n\s*Input\s*\d*\s*:")
_LABEL = "Class label:"
_BOLD = re.compile(r"\*\*(.+?)\*\*")


def tasks_prompt(shown: Sequence[str], *, chat: bool) -> str:
    """Return the request to continue a numbered list of tasks."""
    first = len(shown) + 1
    # a colon would ask for the task's input, not for the next task
    numbered = "\n".join(f"{i}. {text.rstrip(':')}" for i, text in enumerate(shown, 1))
    if not chat:
        return f"A list of many different tasks:\n\n{numbered}\n{first}."
    return (
        "This is the beginning of a list of tasks for a language model. "
        f"Continue it with the numbers {first} to {LAST_TASK - 1}. Let the new tasks differ from one another and from those above in "
        "topic, in the kind of work and in wording. Write each as one line that begins with its number, and nothing else.\n\n"
        f"{numbered}"
    )


def wild_prompt(shown: Sequence[str], *, chat: bool) -> str:
    """Return the request for new prompts like those that people were seen to write."""
    first = len(shown) + 1
    numbered = "\n".join(f"{i}. {text}" for i, text in enumerate(shown, 1))
    opening = "People sent these requests to an assistant, each on another matter:\n\n"
    if not chat:
        return f"{opening}{numbered}\n{first}."
    return (
        f"{opening}{numbered}\n\n"
        f"Write the requests {first} to {LAST_TASK - 1} that other people could send. Each must be complete in itself, possible to answer "
        "in text, and unlike the others in subject and form. One line each, beginning with its number, and nothing else."
    )


def split_list(text: str) -> list[str]:
    """Return the tasks of a continued list, each in one line, its first letter in upper case."""
    parts = _NUMBERED.split("\n" + text.strip() if _NUMBERED.match(text.lstrip()) else text)
    tasks = [" ".join(_BOLD.sub(r"\1", part).split()) for part in parts]
    return [t[0].upper() + t[1:] for t in tasks if t]


def classification_prompt(shown: Sequence[tuple[str, bool]], instruction: str) -> str:
    """Return the question whether an instruction asks for one of a few labels."""
    asked = "".join(f"Task: {text}\nClassification: {'Yes' if yes else 'No'}\n\n" for text, yes in shown)
    return (
        "A task is a classification if every answer to it is one of a small, fixed set of labels. "
        "Say for the last task whether it is one: Yes or No.\n\n"
        f"{asked}Task: {instruction}\nClassification:"
    )


def says_yes(text: str) -> bool:
    """Return whether an answer begins with yes."""
    return bool(re.match(r"\W*yes\b", text, re.IGNORECASE))


def input_first_prompt(
    shown: Sequence[tuple[str, Sequence[tuple[str, str]]]], instruction: str, *, most: int
) -> str:
    """Return the request for instances of an open task: an input, then its output."""
    blocks = [f"Task: {text}\n{_instances(instances)}" for text, instances in shown]
    return (
        f"Give up to {most} different examples of each task, with the input that it needs and the right output. "
        "A task that needs no input has an output only. Keep to the form shown.\n\n"
        f"{_form(blocks, 'Example 1' + chr(10) + 'Input: ...' + chr(10) + 'Output: ...')}Task: {instruction}\n"
    )


def output_first_prompt(
    shown: Sequence[tuple[str, Sequence[tuple[str, str]]]], instruction: str, *, most: int
) -> str:
    """Return the request for instances of a classification: each label first, then an input that has it."""
    blocks = [
        f"Task: {text}\n" + "".join(f"{_LABEL} {output}\n{given}\n" for given, output in instances)
        for text, instances in shown
    ]
    return (
        "Each task below sorts inputs into classes. Name its classes one after the other, "
        f"at most {most}, and write for each an input that belongs to it. A task that needs no input has labels only. "
        "Keep to the form shown.\n\n"
        f"{_form(blocks, _LABEL + ' ...' + chr(10) + '...')}Task: {instruction}\n"
    )


def _form(blocks: Sequence[str], empty: str) -> str:
    """Return the demonstrations, or the bare form where there is none."""
    return "".join(f"{b}\n" for b in blocks) if blocks else f"Form:\n{empty}\n\n"


def _instances(instances: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f"Example {i}\n" + (f"Input: {given}\n" if given else "") + f"Output: {output}\n"
        for i, (given, output) in enumerate(instances, 1)
    )


def parse_input_first(text: str) -> list[tuple[str, str]]:
    """Return the (input, output) pairs of an answer to `input_first_prompt`; parts without an output are left out.

    Of a part that goes on with another pair, without saying that it is another example, the first is taken.
    """
    if not _OUTPUT.search(text):
        return []
    parts = [p for p in _EXAMPLE.split(text.strip()) if p.strip()]
    pairs = []
    for part in parts:
        if _OUTPUT.search(part):
            given, output = _OUTPUT.split(part)[:2]
            pairs.append((_INPUT.sub("", given).strip(), _NEXT_INPUT.split(output)[0].strip()))
    return pairs


def parse_output_first(text: str) -> list[tuple[str, str]]:
    """Return the (input, label) pairs of an answer to `output_first_prompt`."""
    pairs = []
    for part in text.split(_LABEL)[1:]:
        label, _, given = part.strip().partition("\n")
        pairs.append((_INPUT.sub("", given).strip(), label.strip()))
    return pairs


IN_DEPTH = {
    "constraints": "Add one more condition or requirement that the answer has to meet.",
    "deepening": "Where it asks about something, ask for more depth and breadth on the same thing.",
    "concretising": "Replace what is general in it by something more specific.",
    "reasoning": "If a few simple steps of thought suffice to answer it, change it so that it explicitly calls for several steps.",
    "input": "Let it come with data of its own that the answer has to work on: a table, code, XML, JSON, SQL or shell commands.",
}
OPERATIONS = (*IN_DEPTH, "breadth")


def evolve_prompt(operation: str, instruction: str) -> str:
    """Return the request to make an instruction harder (in depth), or to write another of the same field (breadth)."""
    if operation == "breadth":
        task = (
            "Write one new instruction for a language model. It belongs to the same field as the instruction below but is rarer; "
            "it is about as long and as difficult; and a person could sensibly ask it and a model answer it."
        )
    else:
        task = (
            "Rewrite the instruction below so that a strong language model finds it somewhat harder to answer, while a person still "
            f"understands it and it still makes sense. Do this: {IN_DEPTH[operation]} Add 10 to 20 words at most"
            f"{', those data not counted' if operation == 'input' else ''}. Keep whatever tables, code or data it contains."
        )
    return f"{task} Write the instruction alone, without an introduction.\n\nInstruction:\n{instruction}\n\nResult:\n"


def same_prompt(first: str, second: str) -> str:
    """Return the question whether two instructions ask the same."""
    return (
        "Compare two instructions. They are equal if they have the same conditions and requirements and ask the same thing in the same "
        f"depth and breadth. Answer with one word: Equal or Different.\n\nFirst:\n{first}\n\nSecond:\n{second}\n\nAnswer:"
    )


def says_equal(text: str) -> bool:
    """Return whether an answer begins with equal."""
    return bool(re.match(r"\W*equal\b", text, re.IGNORECASE))


def answer_prompt(instruction: str, given: str = "") -> str:
    """Return the text that a plain language model continues with an answer."""
    context = f"### Input:\n{given}\n\n" if given else ""
    return f"An instruction, and a response that carries it out.\n\n### Instruction:\n{instruction}\n\n{context}### Response:\n"


ANSWER_STOP = ["\n### "]


ENDED = "END"


def next_turn_prompt(spoken: str) -> str:
    """Return the request for what a user says next."""
    return (
        "Below is a conversation of a user with an assistant. Write the user's next message: a question or request that follows from what "
        "was said, asks for something new, and can be answered in text. Write the message alone, as the user would. "
        f"If the user has nothing more to ask, write {ENDED}.\n\n{spoken}\n\nUser:"
    )


def conversation(spoken: Sequence[tuple[str, str]]) -> str:
    """Return (role, text) turns as text."""
    return "\n\n".join(f"{role.capitalize()}: {text}" for role, text in spoken)


def next_turn(text: str) -> str:
    """Return the user's turn that an answer to `next_turn_prompt` holds; empty where there is none."""
    said = re.sub(r"^\W*user:\s*", "", text.strip(), flags=re.IGNORECASE).strip()
    return "" if re.sub(r"\W", "", said).upper() == ENDED else said
