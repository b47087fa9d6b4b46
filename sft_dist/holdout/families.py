"""Instructions and declared families of tasks -> which held-out tasks have a relative among the trained ones.

A model that is trained on "Which of these is an animal?" has nearly met "Which of these is a city?": what it scores there says
little of tasks that are new to it. Near and far tasks are therefore told apart before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.words import rouge_l, words
from sft_dist.holdout.holdout import COMPARED_WORDS

INSTRUCTIONS = 8  # of each task, that are compared: the distinct ones with the smallest hashes


def near_tasks(
    held: Iterable[str],
    instructions: Mapping[str, Sequence[str]],
    families: Mapping[str, Sequence[str]],
    *,
    similarity: float,
) -> dict[str, str]:
    """Return of each held-out task that is near why it is.

    Args:
        held: The held-out tasks.
        instructions: Some instructions of every task, trained ones too.
        families: Family -> task names or globs.
        similarity: ROUGE-L of two instructions from which on two tasks are related, unless both have a family.

    Raises:
        UserError: A name of a family matches no task.
    """
    family = _families(families, instructions)
    found_words = {t: [words(i)[:COMPARED_WORDS] for i in found] for t, found in instructions.items()}
    held_out = set(held)
    trained = sorted(set(instructions) - held_out)
    out: dict[str, str] = {}
    for task in sorted(held_out & set(instructions)):
        own = family.get(task)
        if own and (relative := next((t for t in trained if family.get(t) == own), None)):
            out[task] = f"the trained task {relative} is of its family, {own}"
            continue
        others = [t for t in trained if not (own and t in family)]
        score, relative = max(
            ((_likeness(found_words[task], found_words[t], similarity), t) for t in others), default=(0.0, "")
        )
        if score >= similarity:
            out[task] = f"its instruction is like that of the trained task {relative} (ROUGE-L {score:.2f})"
    return out


def _families(families: Mapping[str, Sequence[str]], tasks: Iterable[str]) -> dict[str, str]:
    """Return the family of each task that has one."""
    out: dict[str, str] = {}
    known = sorted(tasks)
    for family, patterns in families.items():
        for pattern in patterns:
            found = [t for t in known if fnmatchcase(t, pattern)]
            if known and not found:
                raise UserError(
                    f"data.holdout.families.{family} names {pattern!r}, which no source holds, so no task would be of that family by it; "
                    f"check the name.{nearest(pattern, known)}"
                )
            out.update(dict.fromkeys(found, family))
    return out


def _likeness(ours: Sequence[list[str]], theirs: Sequence[list[str]], least: float) -> float:
    """Return the largest ROUGE-L F-measure of two instructions; 0 when it is below `least`."""
    best = 0.0
    for a in ours:
        for b in theirs:
            if 2 * min(len(a), len(b)) >= max(best, least) * (len(a) + len(b)):  # else it cannot be as much
                best = max(best, rouge_l(a, b))
    return best if best >= least else 0.0
