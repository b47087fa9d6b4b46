"""Drafts (parts with a loss weight) -> Tokens (ids and spans).

A draft is the rendered conversation as a list of parts: control tokens by id, everything else as text. Neighbouring
texts are encoded as one, so ids equal those of the whole rendered string, except where a *cut* is needed for exact
masks: at the start of an answer and wherever the loss weight changes. All text of a batch is encoded in one call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from tokenizers import Tokenizer

from sft_dist.core.records import Role, Span, Tokens
from sft_dist.render.draft import Part, Rendering, Segment
from sft_dist.render.tokenizer import TextTokenizer, encode_chunks

BORDER_CHARS = 24  # a merge across a border never reaches further in practice
KNOWN_CHARS = 64  # template text and one-word answers come again and again
KNOWN_TEXTS = 1 << 16


def runs(parts: Sequence[Part]) -> Iterator[tuple[int | str, float, bool, int]]:
    """Yield (payload, weight, body, number of parts) of what is encoded as one: a control token, or joined texts."""
    texts: list[str] = []
    weight, body = 0.0, False
    for p in parts:
        payload = p.payload
        if texts and (type(payload) is int or p.weight != weight or p.body is not body):
            yield "".join(texts), weight, body, len(texts)
            texts = []
        if type(payload) is int:
            yield payload, p.weight, p.body, 1
        else:
            texts.append(payload)  # type: ignore[arg-type]  # not an int
            weight, body = p.weight, p.body
    if texts:
        yield "".join(texts), weight, body, len(texts)


class CachedEncoder:
    """One way to encode text, with a memory for short texts and for those that a batch repeats."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._pending: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Return the list that holds the text's ids after the next `flush`."""
        found = self._known.get(text)
        return self._pending.setdefault(text, []) if found is None else found

    def flush(self) -> None:
        """Encode all that is pending in one call."""
        pending, self._pending = self._pending, {}
        if not pending:
            return
        encoded = encode_chunks(self.tokenizer, list(pending))
        for waiting, ids in zip(pending.values(), encoded, strict=True):
            waiting.extend(ids)
        if len(self._known) > KNOWN_TEXTS:
            self._known.clear()
        self._known |= {text: ids for text, ids in pending.items() if len(text) <= KNOWN_CHARS}


class Encoder:
    """Encodes drafts with one tokenizer.

    Args:
        tokenizer: Any.
        control: Added tokens that the template writes although they are not special (`<think>`, `<tool_call>`):
            outside an assistant's own words they count as control tokens, too.
    """

    def __init__(self, tokenizer: TextTokenizer, control: frozenset[str]) -> None:
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self._control = control
        added = tokenizer.added
        self._strips_right = frozenset(
            i for t, a in added.items() if a.rstrip and (i := tokenizer.id_of(t)) is not None
        )
        self._strips_left = frozenset(
            i for t, a in added.items() if a.lstrip and (i := tokenizer.id_of(t)) is not None
        )
        self._strips = bool(self._strips_left or self._strips_right)
        self._strict = bool(
            control - tokenizer.control
        )  # an assistant's words and all others are encoded apart
        self._prefix = tokenizer.prefix
        self._control_widths = {
            i: len(t.encode("utf-8")) for t in added if (i := tokenizer.id_of(t)) is not None
        }
        self._voices: dict[tuple[bool, bool], CachedEncoder] = {}
        self._only: CachedEncoder | None = None  # with most tokenizers all text is encoded alike
        if self._prefix is None and not self._strict:
            self._only = self._voices[True, False] = CachedEncoder(tokenizer.variant())
        self._control_ids: dict[int, list[int]] = {}
        apart = encode_chunks(tokenizer.variant(glued=True), ["\n\n", "x", "\n\nx"])
        self._splits_newlines = apart[0] + apart[1] != apart[2]  # as GPT-2's does before a word

    def _voice(self, body: bool, before: int | str | None) -> CachedEncoder:
        """Return the voice of a text: whose words they are and what precedes them decide."""
        if self._only is not None:
            return self._only
        prefix = self._prefix
        glued = prefix is not None and before is not None and (type(before) is str or prefix == "first")
        key = (body or not self._strict, glued)
        if key not in self._voices:
            control = frozenset() if key[0] else self._control
            self._voices[key] = CachedEncoder(self.tokenizer.variant(control=control, glued=glued))
        return self._voices[key]

    def encode(self, drafts: Sequence[Rendering]) -> list[Tokens]:
        """Return ids and spans of every draft.

        Raises:
            TypeError: A text is not Unicode (a lone surrogate).
        """
        borders: Counter[tuple[str, str, bool]] = Counter()
        trained: list[tuple[str, list[int]]] = []
        plans = [self._plan(draft, borders, trained) for draft in drafts]
        for voice in self._voices.values():
            voice.flush()
        self._count_borders(borders)
        out = [_assemble(plan) for plan in plans]
        self.counts["decode_differs"] += self._count_lossy(out, drafts, trained)
        return out

    def _count_lossy(
        self, tokens: Sequence[Tokens], drafts: Sequence[Rendering], trained: Sequence[tuple[str, list[int]]]
    ) -> int:
        """Count texts whose ids do not decode to them (unknown characters, a tokenizer that normalises).

        A byte-level tokenizer writes the bytes of a text in order, so there it suffices that none is missing; that
        costs a tenth of decoding.
        """
        widths = self.tokenizer.byte_widths
        if widths is None or self._strips:
            decoded = self.tokenizer.decode_batch([ids for _, ids in trained])
            return sum(d != text for d, (text, _) in zip(decoded, trained, strict=True))
        ids = np.concatenate([t.ids for t in tokens]) if tokens else np.zeros(0, dtype=np.int32)
        ends = np.cumsum([0, *(len(t.ids) for t in tokens)])
        total = np.concatenate([[0], np.cumsum(widths[ids])])
        control = self._control_widths
        said = [sum([control[p] if isinstance(p, int) else _n_bytes(p) for p, *_ in d.parts]) for d in drafts]
        return int(np.count_nonzero(np.diff(total[ends]) != said))

    def _plan(
        self, draft: Rendering, borders: Counter[tuple[str, str, bool]], trained: list[tuple[str, list[int]]]
    ) -> list[tuple[list[int], float]]:
        """Return (ids, weight) of every run; the ids of texts arrive when the voices are flushed."""
        plan: list[tuple[list[int], float]] = []
        before: int | str | None = None
        merged = list(runs(draft.parts))
        for i, (payload, weight, body, _) in enumerate(merged):
            if type(payload) is int:
                ids = self._control_ids.get(payload)
                if ids is None:
                    ids = self._control_ids[payload] = [payload]
                before = payload
            else:
                text = str(payload)
                if self._strips:
                    text = self._stripped(text, before, merged[i + 1][0] if i + 1 < len(merged) else None)
                    if not text:
                        continue
                if type(before) is str and (
                    text[0].isspace()
                    or not before[-1].isspace()
                    or (self._splits_newlines and before[-2:].isspace())
                ):  # else: a newline merges with nothing but white space
                    borders[before[-BORDER_CHARS:], text[:BORDER_CHARS], body] += 1
                ids = self._voice(body, before).ids(text)
                before = text
                if weight:
                    trained.append((text, ids))
            plan.append((ids, weight))
        return plan

    def _stripped(self, text: str, before: int | str | None, after: int | str | None) -> str:
        """Return the text without the white space that a neighbouring control token swallows."""
        if before in self._strips_right:
            text = text.lstrip()
        return text.rstrip() if after in self._strips_left else text

    def _count_borders(self, borders: Counter[tuple[str, str, bool]]) -> None:
        """Count cuts between two texts where the one-string encoding would have merged across."""
        for (left, right, body), n in borders.items():
            glued = self._voice(body, left).tokenizer
            apart, joined = encode_chunks(glued, [left, right]), encode_chunks(glued, [left + right])
            if apart[0] + apart[1] != joined[0]:
                self.counts["borders_that_differ"] += n

    def take_counts(self) -> Counter[str]:
        """Return the counts since the last call."""
        out, self.counts = self.counts, Counter()
        return out

    def segments(self, draft: Rendering, roles: Sequence[Role]) -> list[Segment]:
        """Return the draft's parts with their ids; the ids together are those of `encode`."""
        out: list[Segment] = []
        before: int | str | None = None
        merged = list(runs(draft.parts))
        at = 0
        dealt: list[tuple[int, ...]]
        for i, (payload, weight, body, n) in enumerate(merged):
            group = draft.parts[at : at + n]
            at += n
            if type(payload) is int:
                texts, dealt = [self.tokenizer.text_of(payload)], [(payload,)]
                before = payload
            else:
                texts = [str(p.payload) for p in group]
                whole = self._stripped(
                    str(payload), before, merged[i + 1][0] if i + 1 < len(merged) else None
                )
                skipped = str(payload).find(whole)
                dealt = _split_ids(texts, whole, skipped, self._voice(body, before).tokenizer)
                before = whole or before
            out += [
                Segment(
                    text=text,
                    role=roles[max(part.turn, 0)],
                    weight=weight,
                    ids=ids,
                    control=type(part.payload) is int,
                    turn=part.turn,
                )
                for part, text, ids in zip(group, texts, dealt, strict=True)
            ]
        return out


def _n_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def _assemble(plan: Sequence[tuple[list[int], float]]) -> Tokens:
    """Lay a draft's runs end to end; spans of equal weight that touch become one; token 0 is never a target."""
    ids: list[int] = []
    spans: list[Span] = []
    for run, weight in plan:
        start = len(ids) or 1
        ids += run
        if weight and len(ids) > start:
            last = spans[-1] if spans else None
            if last is not None and last.weight == weight and last.start + last.length == start:
                spans[-1] = Span(last.start, len(ids) - last.start, weight)
            else:
                spans.append(Span(start, len(ids) - start, weight))
    return Tokens(ids=np.array(ids, dtype=np.int32), spans=tuple(spans))


def _split_ids(texts: Sequence[str], whole: str, skipped: int, encoder: Tokenizer) -> list[tuple[int, ...]]:
    """Deal the ids of joined texts to the texts in which they start; `skipped` characters were stripped in front."""
    encoding = encoder.encode(whole, add_special_tokens=False) if whole else None
    groups: list[list[int]] = [[] for _ in texts]
    ends = np.cumsum([len(t) for t in texts])
    for token_id, (start, _) in zip(encoding.ids, encoding.offsets, strict=True) if encoding else ():
        groups[min(int(np.searchsorted(ends, start + skipped, side="right")), len(texts) - 1)].append(
            token_id
        )
    return [tuple(g) for g in groups]
