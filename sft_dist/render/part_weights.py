"""Drafts whose turns have several loss weights -> the same drafts, cut where the weight changes.

A template writes a turn as if it had one weight. Where a record marks parts of a turn, the parts are found in what
was written: the content stands at the end of an answer or before its first call, a call begins where the rendering
with one call less begins to differ. What cannot be found is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from operator import eq

from sft_dist.core.records import Drop
from sft_dist.render.conversation import Conversation, Turn
from sft_dist.render.draft import Answer, Part, Rendering

Draft = Callable[[Conversation], Rendering | Drop]
Piece = tuple[
    int, float
]  # (where it ends, loss weight), counted in characters and control tokens of the answer


def weigh_parts(draft: Rendering, conversation: Conversation, render: Draft) -> Rendering | Drop:
    """Return the draft with the loss weights that the parts of its turns have.

    Args:
        draft: As a template wrote it.
        conversation: What it was written from.
        render: Lays out another conversation with the same template.
    """
    marked = [i for i, t in enumerate(conversation.turns) if t.parts is not None]
    answers = {a.turn: a for a in draft.answers}
    cut: list[tuple[int, int, list[Part]]] = []  # (first part, behind the last, what takes their place)
    for i in marked:
        t, answer = conversation.turns[i], answers.get(i)
        if t.role == "assistant":
            if answer is None:
                continue  # carries no loss: its context is not what generation would be fed
            pieces = _pieces_of_answer(draft, conversation, answer, render)
            first, last = answer.content, answer.end
        else:
            found = _content_of_turn(draft, t, i)
            if found is None:
                return _refused(t, i, "its content cannot be told from the template's text")
            first, last = found
            pieces = _pieces_of_turn(draft.parts[first:last], t)
        if isinstance(pieces, str):
            return _refused(t, i, pieces)
        cut.append((first, last, list(_cut(draft.parts[first:last], pieces))))
    return _rebuilt(draft, sorted(cut, key=lambda c: c[0]))


def _refused(t: Turn, i: int, why: str) -> Drop:
    return Drop("part_weights", f"turn {i} ({t.role}) has several loss weights, and {why}")


def _pieces_of_answer(
    draft: Rendering, conversation: Conversation, answer: Answer, render: Draft
) -> list[Piece] | str:
    t = conversation.turns[answer.turn]
    assert t.parts is not None
    written = _atoms(draft.parts[answer.content : answer.end])
    body = len(written) - 1  # the last is the token that ends the turn
    starts = []  # of the calls
    for n in range(len(t.calls)):
        fewer = t._replace(calls=t.calls[:n], call_ids=t.call_ids[:n], parts=None)
        shorter = render(
            replace(conversation.head(answer.turn), turns=(*conversation.turns[: answer.turn], fewer))
        )
        last = shorter.answers[-1] if isinstance(shorter, Rendering) and shorter.answers else None
        if last is None or last.turn != answer.turn:
            if n == 0 and not t.content and not t.reasoning:
                starts.append(0)
                continue
            return "the template does not show where its calls begin"
        assert isinstance(shorter, Rendering)
        starts.append(_common(written, _atoms(shorter.parts[last.content : last.end])))
    if starts != sorted(set(starts)):
        return "the template does not write its calls one after the other"
    bounds = [*starts, body]
    found = _find_content(written[: bounds[0]], t.content)
    if found is None:
        return "its content cannot be told from the template's text"
    start, core, end = found
    pieces = _content_pieces(t, start, core, end)
    first = pieces[0][1] if pieces else t.parts.calls[0] if t.parts.calls else t.parts.end
    out = [(start, t.parts.reasoning if t.reasoning else first), *pieces]
    out += [(upto, weight) for upto, weight in zip(bounds[1:], t.parts.calls, strict=True)]
    return (
        [*out, (len(written), t.parts.end)]
        if t.calls
        else [*out, (body, t.parts.end), (len(written), t.parts.end)]
    )


def _pieces_of_turn(parts: Sequence[Part], t: Turn) -> list[Piece] | str:
    written = _atoms(parts)
    ends = isinstance(written[-1], int)
    found = _find_content(written[: len(written) - ends], t.content)
    if found is None:
        return "its content cannot be told from the template's text"
    assert t.parts is not None
    return [*_content_pieces(t, *found), (len(written), t.parts.end)]


def _content_of_turn(draft: Rendering, t: Turn, i: int) -> tuple[int, int] | None:
    """Return (first, behind the last) part of the content of a turn that is no answer, its end-of-turn token included."""
    said = [
        n
        for n, p in enumerate(draft.parts)
        if p.turn == i
        and not p.body
        and isinstance(p.payload, str)
        and p.payload.strip() == t.content.strip()
    ]
    if len(said) != 1 or draft.parts[said[0]].weight != t.weight:
        return None
    n = said[0]
    after = draft.parts[n + 1] if n + 1 < len(draft.parts) else None
    ends = (
        after is not None and after.turn == i and isinstance(after.payload, int) and after.weight == t.weight
    )
    return n, n + 1 + ends


def _atoms(parts: Sequence[Part]) -> list[int | str]:
    """Return control tokens and single characters."""
    return [a for p in parts for a in ((p.payload,) if isinstance(p.payload, int) else p.payload)]


def _common(one: Sequence[int | str], other: Sequence[int | str]) -> int:
    """Return how many items two sequences begin with alike."""
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))


def _find_content(atoms: Sequence[int | str], content: str) -> tuple[int, int, int] | None:
    """Return where the content starts, where its first character that is not white space stands, and where it ends."""
    begin = max((n + 1 for n, a in enumerate(atoms) if isinstance(a, int)), default=0)
    text = "".join(str(a) for a in atoms[begin:])
    core, kept = content.strip(), text.rstrip()
    if not kept.endswith(core):
        return None
    at = len(kept) - len(core)
    lead = content[: len(content) - len(content.lstrip())] if core else ""
    tail = content[len(content.rstrip()) :] if core else ""
    before = _common(lead[::-1], text[:at][::-1])
    behind = _common(tail, text[at + len(core) :])
    return begin + at - before, begin + at, begin + at + len(core) + behind


def _content_pieces(t: Turn, start: int, core: int, end: int) -> list[Piece]:
    """Return the pieces of the content, whose first character that is not white space stands at `core`."""
    assert t.parts is not None
    lead = len(t.content) - len(t.content.lstrip())
    out = [(min(max(core + w.end - lead, start), end), w.weight) for w in t.parts.content]
    return [*out[:-1], (end, out[-1][1])] if out else []


def _cut(parts: Sequence[Part], pieces: Sequence[Piece]) -> Iterator[Part]:
    """Yield the parts, cut where a piece ends, each with the weight of its piece."""
    at = 0
    for part in parts:
        length = 1 if isinstance(part.payload, int) else len(part.payload)
        position = at
        for end, weight in pieces:
            stop = min(end, at + length)
            if stop > position:
                whole = isinstance(part.payload, int)
                payload = part.payload if whole else str(part.payload)[position - at : stop - at]
                yield part._replace(payload=payload, weight=weight)
                position = stop
        at += length


def _rebuilt(draft: Rendering, cut: Sequence[tuple[int, int, list[Part]]]) -> Rendering:
    """Return the draft with stretches of parts replaced, and its answers where they are now."""
    parts: list[Part] = []
    position = 0
    shifts: list[tuple[int, int]] = []  # (old place, by how much everything from there on moved)
    for first, last, new in cut:
        parts += [*draft.parts[position:first], *new]
        position = last
        shifts.append((last, len(parts) - last))
    parts += draft.parts[position:]

    def place(old: int) -> int:
        return old + next((by for last, by in reversed(shifts) if old >= last), 0)

    answers = [Answer(a.turn, place(a.start), place(a.content), place(a.end)) for a in draft.answers]
    return Rendering(parts, answers, draft.lost)
