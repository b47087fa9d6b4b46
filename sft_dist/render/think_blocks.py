"""Think blocks in generation prompts and answers: where one is opened, closed or empty, and an answer found behind another prompt."""

from __future__ import annotations

import re

from sft_dist.render.template_outline import SLOT

# What opens and closes thoughts; a block with nothing inside says that there are none.
THINK_TAGS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
_OPENED = [(re.compile(re.escape(o) + r"\s*\Z"), re.compile(rf"\s*{re.escape(c)}\n*")) for o, c in THINK_TAGS]
_EMPTY = re.compile("|".join(rf"\s*{re.escape(o)}\s*{re.escape(c)}\n*" for o, c in THINK_TAGS))
_EMPTY_AT_END = re.compile("|".join(rf"{re.escape(o)}\s*{re.escape(c)}\n*\Z" for o, c in THINK_TAGS))
_CLOSED = re.compile("|".join(rf"{re.escape(c)}\s*\Z" for _, c in THINK_TAGS))
_CLOSED_AT_START = re.compile("|".join(re.escape(c) for _, c in THINK_TAGS))


def opens(prompt: str) -> bool:
    """Whether a generation prompt ends in an open think block."""
    return any(opened.search(prompt) for opened, _ in _OPENED)


def closes(prompt: str) -> bool:
    """Whether a generation prompt ends in a closed think block, so that generation writes no thoughts."""
    return _CLOSED.search(prompt) is not None


def starts_closed(answer: str) -> bool:
    """Whether an answer begins with the end of a think block."""
    return _CLOSED_AT_START.match(answer) is not None


def empty_block(prompt: str, answer: str) -> int:
    """Return how long the empty think block at the head of an answer is, its opening perhaps in the prompt; 0 for none."""
    for opened, closed in _OPENED:
        if opened.search(prompt):
            found = closed.match(answer)
            return found.end() if found else 0
    found = _EMPTY.match(answer)
    return found.end() if found else 0


def aligned(prompt: str, alone: str) -> tuple[int, str] | None:
    """Return (where the answer begins, the prompt without its think block) for a rendering that shows another history.

    The text behind the last content before the answer is the same in both, but for a think block, open or empty, at the
    end of the prompt. Without sentinels nothing is found.
    """
    before = [*SLOT.finditer(prompt)]
    same = [m for m in SLOT.finditer(alone) if before and m.group() == before[-1].group()]
    if not same:
        return None
    tail, rest = prompt[before[-1].end() :], alone[same[-1].end() :]
    if rest.startswith(tail):
        return same[-1].end() + len(tail), prompt
    for pattern in (_EMPTY_AT_END, *(opened for opened, _ in _OPENED)):
        block = pattern.search(tail)
        if block and rest.startswith(tail[: block.start()]):
            return same[-1].end() + block.start(), prompt[: len(prompt) - len(tail) + block.start()]
    return None
