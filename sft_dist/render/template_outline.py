"""A rendering with holes: where contents, control tokens and answers lie in the text that a chat template wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from sft_dist.render.conversation import Conversation
from sft_dist.render.draft import Answer, LostAnswer, Part, Rendering

# Private-use characters: no template treats them specially, and records hardly hold them.
OPEN, CLOSE, MARK = "\ue0f1", "\ue0f2", "\ue0f3"
SLOT = re.compile(f"{OPEN}(\\d+){CLOSE}")

Kind: TypeAlias = Literal["frame", "turn", "think"]


class Region(NamedTuple):
    """Characters of an answer: from the end of the generation prompt to the end of the end-of-turn token.

    `content` is where an empty think block at its head ends; equal to `start` where there is none.
    """

    turn: int
    start: int
    content: int
    end: int


class Extract(NamedTuple):
    """A rendering with holes that gives a document its text, from one hole on.

    Attributes:
        turns: How many turns are rendered.
        generation: Whether the generation prompt ends it.
        literals: Template text around the holes, one more than holes.
        slots: Hole numbers in order: 2i the content, 2i+1 the reasoning of turn i.
        skip: How many of the holes come before what is taken.
    """

    turns: int
    generation: bool
    literals: tuple[str, ...]
    slots: tuple[int, ...]
    skip: int = 0

    @classmethod
    def of(cls, text: str, turns: int, generation: bool, start: int = 0) -> Extract:
        """Cut a sentinel rendering at its holes; what is taken begins at character `start`."""
        literals = tuple(t.replace(MARK, "") for t in SLOT.split(text)[::2])
        slots = tuple(int(m.group(1)) for m in SLOT.finditer(text))
        return cls(turns, generation, literals, slots, sum(1 for _ in SLOT.finditer(text, 0, start)))


class Atom(NamedTuple):
    """A piece of an outline: a control token's id, template text, or (`slot`) a hole for record text."""

    payload: int | str
    slot: int | None
    turn: int
    kind: Kind
    body: bool


@dataclass(frozen=True, slots=True)
class TemplateOutline:
    """A rendering with holes, and what is needed to fill them.

    Attributes:
        atoms: The rendering in order.
        answers: As in a draft, counted in atoms.
        extracts: The renderings that it consists of: the whole conversation, or the generation prompt of its last answer
            and that answer.
        lost: Assistant turns that cannot carry loss.
        thoughts: Hole of thoughts that generation writes and the template nowhere shows; None where there are none.
    """

    atoms: tuple[Atom, ...]
    answers: tuple[Answer, ...]
    extracts: tuple[Extract, ...]
    lost: tuple[LostAnswer, ...]
    thoughts: int | None = None

    def parts(self, conversation: Conversation, filled: Sequence[str], train_empty_think: bool) -> Rendering:
        """Put contents and weights in; an empty content gives no part."""
        turns, lost = conversation.turns, {t.turn for t in self.lost}
        texts = iter(filled)
        parts: list[Part] = []
        index: list[int] = []  # atom -> part
        for atom in self.atoms:
            index.append(len(parts))
            payload = atom.payload if atom.slot is None else ""
            if atom.slot is not None and atom.slot == self.thoughts:
                payload = (turns[atom.turn].reasoning or "").strip("\n")
            elif atom.slot is not None:
                payload = next(texts)
            if payload == "":
                continue
            if atom.kind == "frame":
                weight = conversation.frame_weight
            elif atom.turn in lost or (atom.kind == "think" and not train_empty_think):
                weight = 0.0
            else:
                weight = turns[atom.turn].weight
            fed = atom.kind == "think" and not train_empty_think  # not the assistant's own words, then
            parts.append(Part(payload, weight, atom.turn, atom.body and not fed))
        index.append(len(parts))
        answers = [
            Answer(
                a.turn,
                index[a.start],
                index[a.start] if train_empty_think else index[a.content],
                index[a.end],
            )
            for a in self.answers
        ]
        return Rendering(parts, answers, self.lost)


def build(
    full: str,
    regions: Sequence[Region],
    lost: Sequence[LostAnswer],
    n_turns: int,
    *,
    extracts: Sequence[Extract],
    thoughts: int | None,
    controls: re.Pattern[str],
    id_of: Callable[[str], int],
    stops: Sequence[str],
) -> TemplateOutline:
    """Cut a rendering at contents, control tokens and answer borders.

    Args:
        full: A rendering with sentinels (OPEN number CLOSE) for contents and MARK before control tokens that are
            record text.
        regions: Where the answers lie.
        lost: Assistant turns without a region.
        n_turns: Turns of the conversation; template text after the last content belongs to turn `n_turns`.
        extracts: The renderings that `full` consists of.
        thoughts: Hole of thoughts that none of them has.
        controls: Pattern of control tokens, a MARK before them included.
        id_of: Control token -> id.
        stops: Control tokens that end a turn.
    """
    borders = {p for r in regions for p in (r.start, r.content, r.end)}
    slots = [(m.start(), int(m.group(1))) for m in SLOT.finditer(full)]
    atoms: list[Atom] = []
    at: dict[int, int] = {}  # border in characters -> atom
    for begin, end, kind in _pieces(full, sorted(borders), controls):
        at[begin] = len(atoms)
        text = full[begin:end]
        slot = int(text[1:-1]) if kind == "slot" else None
        payload: int | str = (
            id_of(text) if kind == "control" else text.replace(MARK, "") if slot is None else ""
        )
        region = next((r for r in regions if r.start <= begin < r.end), None)
        if region:
            role: Kind = "think" if begin < region.content else "turn"
            atoms.append(Atom(payload, slot, region.turn, role, True))
        elif kind == "control" and text in stops and atoms and atoms[-1].slot is not None:
            atoms.append(Atom(payload, None, atoms[-1].turn, "turn", False))  # a user's end of turn
        else:
            turn = next((s // 2 for start, s in slots if start >= begin), n_turns)
            atoms.append(Atom(payload, slot, turn, "frame" if slot is None else "turn", False))
    at[len(full)] = len(atoms)
    return TemplateOutline(
        atoms=tuple(atoms),
        answers=tuple(Answer(r.turn, at[r.start], at[r.content], at[r.end]) for r in regions),
        extracts=tuple(extracts),
        lost=tuple(lost),
        thoughts=thoughts,
    )


def _pieces(full: str, borders: Sequence[int], controls: re.Pattern[str]) -> Iterator[tuple[int, int, str]]:
    """Yield (start, end, kind) of control tokens, holes and the text between, cut at the borders as well."""
    found = [(m.start(), m.end(), "slot") for m in SLOT.finditer(full)]
    found += [(m.start(), m.end(), "control") for m in controls.finditer(full) if m.group()[0] != MARK]
    position = 0
    for start, end, kind in [*sorted(found), (len(full), len(full), "end")]:
        cuts = [b for b in borders if position < b < start]
        for a, b in zip([position, *cuts], [*cuts, start], strict=True):
            if b > a:
                yield a, b, "text"
        if end > start:
            yield start, end, kind
        position = end


def fill(true: str, extract: Extract, contents: Mapping[int, str]) -> list[str] | None:
    """Return what stands in each hole that is taken of the true rendering, or None if the contents do not explain it."""
    if not true.startswith(extract.literals[0]):
        return None
    position = len(extract.literals[0])
    out = []
    last = len(extract.slots) - 1
    for i, (slot, literal) in enumerate(zip(extract.slots, extract.literals[1:], strict=True)):
        for variant in _variants(contents[slot]):
            end = position + len(variant)
            if true.startswith(variant, position) and (
                true[end:] == literal if i == last else true.startswith(literal, end)
            ):
                break
        else:
            return None
        out.append(variant)
        position = end + len(literal)
    return out[extract.skip :] if position == len(true) else None


def _variants(text: str) -> Iterator[str]:
    """Yield what templates make of a content: itself, or trimmed, or inside a JSON string."""
    yield text
    yield text.strip()
    for characters in (None, "\n"):
        yield text.lstrip(characters)
        yield text.rstrip(characters)
    yield text.strip("\n")
    yield json.dumps(text, ensure_ascii=False)[1:-1]
