"""Counts of the token stores -> a sentence each on answers without loss and without thoughts, for `check`, `prepare`, `train`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sft_dist.config.data import RenderConfig
from sft_dist.shards import Store


def lost_answers(stores: Iterable[Store], render: RenderConfig) -> tuple[str, ...]:
    """Say which share of the answers carries no loss, or is trained without its thoughts, and why; nothing where none is."""
    counts: Counter[str] = Counter()
    for store in stores:
        counts.update(store.info.get("rendered", {}))
    context, answer, unthought = (
        counts[c] for c in ("context_differs", "answer_differs", "thoughts_dropped")
    )
    said = []
    if lost := context + answer:
        total = lost + counts["answers"]
        remedy = (
            "not even in a document of its own can they be trained"
            if render.expand_turns
            else "render.expand_turns=true trains each answer in a document of its own"
        )
        said.append(
            f"{lost:,} of {total:,} answers ({lost / total:.0%}) carry no loss, because the chat template rewrites history: {context:,} "
            f"stand behind a context that generation would not be fed, {answer:,} are shown otherwise than generation would write them "
            f"(thoughts that are left out later, another end of turn); {remedy}"
        )
    if unthought and render.thinking != "strip":
        said.append(
            f"{unthought:,} of {counts['answers']:,} trained answers are trained without the thoughts that their records have, because the "
            "chat template has no place for them or its generation prompt closes the think block; where the template has a variable "
            "for thinking, set it in render.template_kwargs (such as {thinking: true}); render.thinking=strip says that it is meant"
        )
    return tuple(said)
