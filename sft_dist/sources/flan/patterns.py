"""The families of patterns that `kind: flan` asks with: data only, in our own wording.

Braces are slots: {question} (with its options, if they are shown), {answer}, {rationale}; {stem} is the question
without options.
"""

from __future__ import annotations

from typing import NamedTuple


class Pattern(NamedTuple):
    """A prompt and the answer that is trained on it."""

    prompt: str
    target: str


class FewShot(NamedTuple):
    """How solved questions and the open one stand in one prompt.

    Attributes:
        intro: Comes first; may be empty.
        question: One question, with the slot {question}.
        answer: What stands between a question and its answer. The prompt ends with it, trailing blanks removed.
        gap: Between two questions.
    """

    intro: str
    question: str
    answer: str
    gap: str


class OptionList(NamedTuple):
    """How answer options are listed: a head line, a line for each, and how the answer names one."""

    head: str
    line: str
    answer: str


_DIRECT = "{answer}"

ANSWER: tuple[Pattern, ...] = (
    Pattern("{question}", _DIRECT),
    Pattern("Answer this question.\n\n{question}", _DIRECT),
    Pattern("Question: {question}\nAnswer:", _DIRECT),
    Pattern("{question}\n\nReply with the answer only.", _DIRECT),
    Pattern("Here is a question for you.\n{question}\nWhat is the right answer?", _DIRECT),
    Pattern("Please answer briefly, without an explanation: {question}", _DIRECT),
    Pattern(
        "A student was asked the following in a quiz:\n\n{question}\n\nWrite down the correct answer.",
        _DIRECT,
    ),
    Pattern("Question\n{question}\n\nYour final answer", _DIRECT),
    Pattern("I need a short answer to this: {question}", _DIRECT),
    Pattern("Work this out silently and state just the result.\n\n{question}", _DIRECT),
)

COT: tuple[Pattern, ...] = (
    Pattern("{question}\n\nReason first, then answer.", "{rationale}\nAnswer: {answer}"),
    Pattern(
        "{question}\nShow how you arrive at your answer before you state it.",
        "{rationale}\nThat makes the answer {answer}.",
    ),
    Pattern(
        "Solve this and write out your thoughts on the way.\n\n{question}",
        "{rationale}\n\nFinal answer: {answer}",
    ),
    Pattern("Question: {question}\nThoughts, then answer:", "{rationale}\nHence the answer: {answer}"),
    Pattern(
        "Read the question, explain your thinking in a few sentences, and end with the answer.\n\n{question}",
        "{rationale} The answer, then, is {answer}.",
    ),
    Pattern(
        "{question}\n\nDo not jump to the answer: collect the facts that matter and draw the conclusion from them.",
        "{rationale}\nConclusion: {answer}",
    ),
    Pattern(
        "You are a tutor. Explain to a learner how one gets the answer to this question, and give it at the end.\n{question}",
        "{rationale}\n\nThis is why the answer is {answer}.",
    ),
    Pattern("{question}\n\nReasoning and result:", "Reasoning: {rationale}\nResult: {answer}"),
    Pattern(
        "I want to see each step that leads to the answer.\n\nQuestion: {question}",
        "{rationale}\nFrom these steps the answer follows: {answer}",
    ),
)

EXPLAIN: tuple[Pattern, ...] = (
    Pattern("Question: {question}\nAnswer: {answer}\nWhy is this the answer?", "{rationale}"),
    Pattern('{question}\n\nThe correct answer is "{answer}". Explain why.', "{rationale}"),
    Pattern("Justify the answer to the question below.\n\n{question}\nAnswer: {answer}", "{rationale}"),
    Pattern(
        "Someone asks: {question}\nYou reply: {answer}\nThey want to know how you know. What do you say?",
        "{rationale}",
    ),
    Pattern(
        "Write the reasoning that leads from this question to its answer.\nQ: {question}\nA: {answer}",
        "{rationale}",
    ),
    Pattern("{question}\n{answer}\n\nGive the explanation that is missing here.", "{rationale}"),
    Pattern(
        "A quiz book has this entry:\n\n{question}\nSolution: {answer}\n\nAdd a note that proves the solution right.",
        "{rationale}",
    ),
    Pattern(
        'Which facts or steps support the answer "{answer}" to this question?\n\n{question}', "{rationale}"
    ),
)

INVERSION: tuple[Pattern, ...] = (
    Pattern("Explanation: {rationale}\nAnswer: {answer}\nWhich question do they belong to?", "{stem}"),
    Pattern('Write a question whose answer is "{answer}", for this reason:\n\n{rationale}', "{stem}"),
    Pattern("The text below solves a problem. State the problem.\n\n{rationale}\nResult: {answer}", "{stem}"),
    Pattern("{rationale}\n\nThe answer was {answer}. What had been asked?", "{stem}"),
    Pattern(
        "Recover the exam question from the model solution.\n\nSolution: {rationale}\nFinal answer: {answer}\n\nExam question:",
        "{stem}",
    ),
    Pattern("Someone explained: {rationale}\nand concluded: {answer}\nWhat was the question?", "{stem}"),
    Pattern("Answer: {answer}\nBackground: {rationale}\n\nMake up the question that fits both.", "{stem}"),
    Pattern(
        'I have an answer, "{answer}", and how one gets there, but I lost the question. Please write it.\n\n{rationale}',
        "{stem}",
    ),
)

FEW_SHOT: tuple[FewShot, ...] = (
    FewShot("", "Q: {question}\n", "A: ", "\n\n"),
    FewShot("", "Question: {question}\n", "Answer: ", "\n\n"),
    FewShot(
        "Answer the last question in the way the ones before it are answered.", "{question}\n", "-> ", "\n\n"
    ),
    FewShot(
        "Some solved questions, then an open one.", "Question\n{question}\n\n", "Answer\n", "\n\n----\n\n"
    ),
    FewShot("", "[question] {question}\n", "[answer] ", "\n\n"),
    FewShot("Continue the list.", "* {question}\n", "  ", "\n"),
    FewShot(
        "Look at these examples and solve the next one alike.", "Problem: {question}\n", "Solution: ", "\n\n"
    ),
    FewShot("", "User asks: {question}\n", "Reply: ", "\n\n###\n\n"),
    FewShot(
        "A quiz with its answers; the last answer is missing.", "{question}\n\n", "Right answer: ", "\n\n\n"
    ),
)

LETTERED: tuple[OptionList, ...] = (
    OptionList("Options:", "({letter}) {text}", "({letter})"),
    OptionList("Choices:", "({letter}) {text}", "({letter})"),
    OptionList("Possible answers:", "- ({letter}) {text}", "({letter})"),
    OptionList("Pick the letter of the right one.", "({letter}) {text}", "({letter})"),
)

LISTED: tuple[OptionList, ...] = (
    OptionList("Options:", "- {text}", "{text}"),
    OptionList("Choose from:", "- {text}", "{text}"),
    OptionList("Possible answers:", "* {text}", "{text}"),
    OptionList("It is one of these.", "- {text}", "{text}"),
)
