"""What both forms of the card say in words."""

from __future__ import annotations

from sft_dist.report.text import DASH, percent

SET_NAMES = {"seen": "unseen inputs of trained tasks", "heldout": "held-out tasks"}

# Reason of a drop -> what it means.
REASONS = {
    "answer_repeats_prompt": "the answer is a piece of the prompt",
    "answer_too_short": "the answer is too short",
    "broken_text": "wrongly decoded characters",
    "control_characters": "control characters",
    "eval_input": "the input is evaluated in another task",
    "eval_record": "another example of the same record is evaluated",
    "eval_surplus": "of a held-out task, beyond what is evaluated",
    "exact_duplicate": "an earlier example is equal",
    "heldout_origin": "made from what is held out",
    "ifd_low": "among the easiest of its task",
    "ifd_too_high": "the prompt does not help the answer",
    "leakage": "gives an evaluation example away",
    "near_duplicate": "an earlier example is nearly equal",
    "placeholder": "the answer is a placeholder",
    "prompt_too_short": "the prompt is too short",
    "refusal": "the answer refuses",
    "repetition": "the answer repeats itself",
    "script": "another script than the allowed ones",
    "too_many_chars": "too long",
    "truncated_answer": "the answer stops in the middle",
}

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
