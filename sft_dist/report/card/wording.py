"""What both forms of the card say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sft_dist.filters import FILTERS
from sft_dist.filters.rules import Licences
from sft_dist.report.card.facts import RARE, REPEATED, SourceFacts
from sft_dist.report.formatting import DASH, count, percent

SET_NAMES = {
    "validation": "validation inputs of trained tasks",
    "seen": "unseen inputs of trained tasks",
    "heldout": "held-out tasks",
}

# Reason of a drop -> what it means. Rules on one record bring their own words: `reasons` in filters/rules.py.
REASONS = {
    "bad_json": "tools, calls or template variables are no JSON",
    "bad_weight": "a loss weight is negative or no number",
    "budget": "beyond the budget of examples",
    "double_bos": "the template writes the beginning-of-sequence token twice",
    "eval_input": "the input is evaluated in another task",
    "eval_record": "another example of the same record is evaluated",
    "eval_shown": "an input that is evaluated is shown in the prompt",
    "eval_surplus": "of a held-out task, beyond what is evaluated",
    "exact_duplicate": "an earlier example is equal",
    "heldout_copy": "the question and answer of a held-out task, under another name",
    "heldout_instruction": "generated, and asks what a held-out task asks",
    "heldout_origin": "made from what is held out",
    "leakage": "gives an evaluation example away",
    "listed": "its id is listed (data.filters.drop_ids)",
    "near_duplicate": "an earlier example is nearly equal",
    "no_end_of_text": "a text, and the tokenizer has no end-of-sequence token",
    "no_messages": "has no turns",
    "no_target": "nothing in it carries loss",
    "not_unicode": "holds a lone surrogate, which no tokenizer encodes",
    "part_weights": "parts of a turn have loss weights that cannot be told apart once they are joined",
    "score_high": "a score is above the most that is kept",
    "score_low": "a score is below the least that is kept",
    "score_missing": "has no score",
    "score_rank": "a score is not among the best of its task",
    "stop_token": "a turn holds no end-of-turn token, or several",
    "template_error": "the chat template refuses it",
    "template_mangles_content": "the chat template alters its content",
    "template_without_tools": "has tools, for which the chat template has no place",
    "unknown_token": "holds a token id that the tokenizer does not have",
    **Licences.reasons,
    **{reason: words for rule in FILTERS.values() for reason, words in rule.reasons.items()},
}

# What the renderer counts -> its head in a table, and what it means.
RENDERED = {
    "conversations": ("conversations", "examples that were laid out and encoded"),
    "answers": ("answers", "assistant turns that carry loss"),
    "context_differs": (
        "context differs",
        "answers without loss, because the template shows another context than generation would be fed",
    ),
    "answer_differs": (
        "answer differs",
        "answers without loss, because the template shows them otherwise than generation would write them, such as without thoughts",
    ),
    "expanded": ("expanded", "answers that are trained in a document of their own (render.expand_turns)"),
    "thoughts_dropped": (
        "thoughts dropped",
        "answers trained without their reasoning, by render.thinking or because the template has no place for it",
    ),
    "borders_that_differ": (
        "borders",
        "borders between turns where encoding the whole text at once would merge tokens over the border",
    ),
    "decode_differs": ("decoded text differs", "answers that the tokenizer does not give back as they were"),
}

# Groups of tasks -> the head of their column, and what is to be known of them.
GROUPS = {"categories": "category", "domains": "domain", "languages": "language"}
GROUP_NOTES = {"domains": "A task of several domains counts in each."}

# Files by id: a column of numbers each (`selection.id_files.IdFile`), and its head.
ID_FILES = {
    "ids": "ids in it",
    "unknown": "of no record here",
    "examples": "examples looked up",
    "missing": "not found",
}

# What is wrong with a mixture -> what it means, what to do.
WARNINGS = {
    "nothing_kept": (
        "read, but evaluated or dropped whole",
        "rejects/ of the data folder says why; loosen that rule of data.filters, or add examples",
    ),
    "never_drawn": (
        "stored, but not drawn in an epoch",
        "give their source a share or more epochs, or raise mix.task_min",
    ),
    "under_represented": (
        f"under-represented (less than {percent(RARE, 0)} % of an equal share of the epoch)",
        "lower mix.cap, flatten with mix.rate=temperature, or raise mix.task_min; better, add examples",
    ),
    "repeated": (
        f"repeated more than {REPEATED:.0f} times an epoch",
        "lower the share of their source or mix.task_min; better, add examples",
    ),
    "scarce": (
        f"under-represented even though repeated more than {REPEATED:.0f} times an epoch",
        "no mixture mends that: add examples, or leave them out",
    ),
}
TOO_SHORT = "too short to tell"
NOT_STATED = "not stated"
LISTED = 8  # names that a sentence lists

DIVERSITY_NOTE = (
    "The root verb is the first known imperative that begins a sentence or clause, or follows a word such as 'to', 'and' or "
    "'please'; its noun is the last word before the next preposition, conjunction or punctuation mark: a rule, not a parser. ROUGE-L (F1 over words, no "
    "stemming) compares each text of a seeded sample with all others of the sample. A prompt is the INPUT of a record that has "
    "one, else all user turns."
)


def share(part: float, whole: float) -> str:
    """1, 8 -> "12.5 %"."""
    return f"{percent(part / whole)} %" if whole else DASH


def ratio(part: float, whole: float) -> str:
    """3, 2 -> "1.50"."""
    return f"{part / whole:.2f}" if whole else DASH


def turns_line(turns: Mapping[int, int]) -> str:
    """{1: 90, 2: 8, 5: 2} -> "1 in 90.0 % of examples, 5 at most"."""
    if not turns:
        return DASH
    one = share(turns.get(1, 0), sum(turns.values()))
    return f"1 in {one} of examples, {max(turns)} at most"


def listed(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {count(more)} more" if more > 0 else "")


def warning(kind: str, warnings: Mapping[str, Sequence[str]]) -> str:
    """Return the sentence for what is wrong with tasks of one kind, with its remedy: none that makes another warning worse."""
    what, remedy = WARNINGS[kind]
    names = warnings[kind]
    if "repeated" in warnings and kind in ("under_represented", "never_drawn"):
        remedy = remedy.replace(", or raise mix.task_min", "")
    if kind == "repeated" and "under_represented" in warnings:
        remedy = remedy.replace(" or mix.task_min", "")
    tasks = "1 task" if len(names) == 1 else f"{count(len(names))} tasks"
    return f"{tasks} {what}; {remedy}:"


def skipped_lines(sources: Sequence[SourceFacts]) -> list[str]:
    """Return what the readers passed over, if anything: "p3: template skips 100; flan: exemplar 96"."""
    found = [
        f"{s.name}: " + ", ".join(f"{reason.replace('_', ' ')} {count(n)}" for reason, n in s.skipped.items())
        for s in sources
        if s.skipped
    ]
    return ["; ".join(found)] if found else []
