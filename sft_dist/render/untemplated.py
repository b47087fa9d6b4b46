"""Examples that no template touches -> drafts and tokens: raw text, segments of text, token ids."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sft_dist.core.records import Drop, Example, Span, TextWeight, Tokens
from sft_dist.render.draft import Part, Rendering, Segment
from sft_dist.render.resolve import pattern, splitter
from sft_dist.render.tokenizer import TextTokenizer


def write_text(example: Example, tokenizer: TextTokenizer) -> Rendering | Drop:
    """Return a text as a draft.

    Of form `text` nothing in it is a control token, and it stands between the tokenizer's beginning (where it writes one) and
    its end of text. Of form `segments` control tokens that it spells are real, and nothing is added.

    Args:
        example: Of form `text` or `segments`.
        tokenizer: Any.
    """
    raw = example.form == "text"
    if raw and tokenizer.eos_id is None:
        return Drop(
            "no_end_of_text", "the tokenizer has no eos_token, so a text would have no end; use one that has"
        )
    parts: list[Part] = []
    if raw and tokenizer.bos_id is not None and tokenizer.adds_bos:
        parts.append(Part(tokenizer.bos_id, 0.0, 0, False))
    controls = pattern(tokenizer.control)
    weight = 0.0
    for text, weight in _pieces(example):
        payloads = (text,) if raw else splitter(controls, tokenizer)(text)
        parts += [Part(p, weight, 0, True) for p in payloads]
    if raw and tokenizer.eos_id is not None:
        parts.append(Part(tokenizer.eos_id, weight, 0, True))
    if not any(p.weight for p in parts):
        return Drop("no_target", "nothing of the text carries loss")
    return Rendering(parts, [])


def read_tokens(example: Example, vocab_size: int) -> Tokens | Drop:
    """Return the document that an example of form `tokens` lists.

    Args:
        example: Its content is the ids, a space between them.
        vocab_size: Ids from here on do not exist.
    """
    ids, weights = [], []
    for text, weight in _pieces(example):
        words = text.split()
        ids += [int(w) for w in words]
        weights += [weight] * len(words)
    if max(ids) >= vocab_size:
        return Drop(
            "unknown_token",
            f"token {max(ids)} is none of the tokenizer's {vocab_size:,}; the data was made with another one",
        )
    spans: list[Span] = []
    for at, weight in enumerate(weights):
        if not weight or not at:  # nothing predicts the first token
            continue
        last = spans[-1] if spans else None
        if last is not None and last.weight == weight and last.start + last.length == at:
            spans[-1] = last._replace(length=last.length + 1)
        else:
            spans.append(Span(at, 1, weight))
    if not spans:
        return Drop("no_target", "no token carries loss")
    return Tokens(ids=np.array(ids, dtype=np.int32), spans=tuple(spans))


def token_segments(tokens: Tokens, tokenizer: TextTokenizer) -> list[Segment]:
    """Return a document of ids piece by piece, for people to look at."""
    borders = sorted({0, len(tokens.ids), *(b for s in tokens.spans for b in (s.start, s.start + s.length))})
    weights = {s.start: s.weight for s in tokens.spans}
    out = []
    for start, end in pairwise(borders):
        ids = tuple(int(i) for i in tokens.ids[start:end])
        out.append(
            Segment(
                text=tokenizer.decode(ids),
                role="assistant",
                weight=weights.get(start, 0.0),
                ids=ids,
                control=False,
                turn=0,
            )
        )
    return out


def _pieces(example: Example) -> list[tuple[str, float]]:
    """Return (text, loss weight) of the pieces of the one turn."""
    [m] = example.messages
    base = (1.0 if m.weight is None else m.weight) * example.weight
    out, position = [], 0
    for w in (*m.content_weights, TextWeight(len(m.content), len(m.content), 0.0)):
        out += [
            (m.content[position : w.start], base),
            (m.content[w.start : w.end], w.weight * example.weight),
        ]
        position = w.end
    return [(text, weight) for text, weight in out if text]
