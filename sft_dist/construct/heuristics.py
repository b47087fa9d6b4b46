"""Published heuristics: which generated instructions, instances and answers are not kept, and why."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from sft_dist.construct.novelty import IDEOGRAPH
from sft_dist.core.records import Drop

# Self-Instruct: what a text model cannot do, or does too often.
UNFIT_WORDS = (
    "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot", "go to",
)  # fmt: skip
_UNFIT = re.compile(r"\b(" + "|".join(UNFIT_WORDS) + r")\b", re.IGNORECASE)
FEWEST_WORDS, MOST_WORDS = 4, 150
_WORD = re.compile(rf"{IDEOGRAPH}|(?:(?!{IDEOGRAPH})\S)+")

# Evol-Instruct: words of the request that leak into its answer.
LEAKED = (
    "given prompt", "rewritten prompt", "new prompt", "created prompt",
    "#given prompt#", "#rewritten prompt#", "#created prompt#",
)  # fmt: skip
REFUSAL_WORDS = 80  # an apology longer than this is an answer that holds one
_STOP_TEXT = """
a about above after again against all am an and any are as at be because been before being below between both but by can
could did do does doing down during each few for from further had has have having he her here hers him his how i if in into
is it its itself just me more most my no nor not now of off on once only or other our ours out over own same she should so
some such than that the their theirs them then there these they this those through to too under until up very was we were
what when where which while who whom why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())


def instruction_fault(text: str, *, english: bool = True) -> Drop | None:
    """Return why a generated instruction is not kept (Self-Instruct); `english`: it must begin with an ASCII character."""
    words = len(_WORD.findall(text))
    if not FEWEST_WORDS <= words <= MOST_WORDS:
        return Drop("length", f"{words} words, not {FEWEST_WORDS} to {MOST_WORDS}")
    if found := _UNFIT.search(text):
        return Drop("unfit_word", f"{found[0]!r} asks for what text cannot be")
    if text.startswith("Write a program"):
        return Drop("write_a_program", "begins with 'Write a program'")
    if text[0] in string.punctuation:
        return Drop("begins_with_punctuation", f"begins with {text[0]!r}")
    if english and not text[0].isascii():
        return Drop("begins_non_ascii", f"begins with {text[0]!r}")
    return None


def keep_instances(instances: Sequence[tuple[str, str]], *, most: int) -> list[tuple[str, str]] | Drop:
    """Return the (input, output) pairs of one instruction that are kept (Self-Instruct), at most `most`.

    An input that has several outputs makes the whole instruction doubtful: nothing of it is kept.
    """
    sound = [
        (given, output)
        for given, output in instances
        if output and given != output and not given.endswith(":") and not output.endswith(":")
    ]
    if not sound:
        return Drop("no_instance", f"none of {len(instances)} instances has an output of its own")
    distinct = list(dict.fromkeys(sound))
    inputs = [given for given, _ in distinct if given]
    if len(set(inputs)) < len(inputs):
        return Drop("contradiction", "one input has several outputs")
    return distinct[:most]


def evolved_fault(text: str, original: str) -> Drop | None:
    """Return why a rewritten instruction is not kept (Evol-Instruct)."""
    if not text:
        return Drop("empty", "the rewritten instruction is empty")
    if " ".join(text.split()).casefold() == " ".join(original.split()).casefold():
        return Drop("no_gain", "the instruction came back unchanged")
    folded = text.casefold()
    if leaked := next((w for w in LEAKED if w in folded and w not in original.casefold()), None):
        return Drop("leaked_words", f"{leaked!r} comes from the request")
    return None


def answer_fault(text: str) -> Drop | None:
    """Return why an answer shows that the instruction cannot be answered (Evol-Instruct)."""
    words = re.findall(r"\w+", text.casefold())
    if "sorry" in words and len(words) < REFUSAL_WORDS:
        return Drop("refusal", f"{len(words)} words with an apology")
    if all(w in STOP_WORDS for w in words):
        return Drop("no_content", "only punctuation and stop words")
    return None
