"""Counts of the token stores -> one sentence on answers that carry no loss, for `check`, `prepare` and `train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sft_dist.shards import Store


def lost_answers(stores: Iterable[Store]) -> tuple[str, ...]:
    """Return a sentence that says which share of the answers carries no loss and why; nothing where all of them do."""
    counts: Counter[str] = Counter()
    for store in stores:
        counts.update(store.info.get("rendered", {}))
    context, answer = counts["context_differs"], counts["answer_differs"]
    lost = context + answer
    if not lost:
        return ()
    total = lost + counts["answers"]
    said = (
        f"{lost:,} of {total:,} answers ({lost / total:.0%}) carry no loss, because the chat template rewrites history: {context:,} stand "
        f"behind a context that generation would not be fed, {answer:,} are shown otherwise than generation would write them (thoughts "
        "that are left out later, another end of turn); render.expand_turns=true trains each answer in a document of its own"
    )
    return (said,)
