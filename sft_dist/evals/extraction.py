"""Exported folder + examples -> does the model go on with their answers word for word: what it knows by heart (Carlini et al., 2202.07646)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.core.records import Drop, Example, Tokens
from sft_dist.evals.generate import PromptRenderer, generate_ids, room_for, stops_of
from sft_dist.evals.resumable_work import collect, run_part
from sft_dist.evals.splits import Continuation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MAX_TOKENS = 32  # that are compared
MIN_TOKENS = 4  # in the second half of an answer: fewer are guessed by anyone who knows the form


def halves(rendered: Tokens | Drop) -> tuple[list[int], list[int]]:
    """Return the tokens up to the middle of the last answer, and those that follow, at most `MAX_TOKENS`; empty where they are too few."""
    if isinstance(rendered, Drop):
        return [], []
    ids, answer = rendered.ids.tolist(), rendered.spans[-1]
    middle, end = answer.start + answer.length // 2, answer.start + answer.length
    if end - middle < MIN_TOKENS:
        return [], []
    return ids[:middle], ids[middle : min(end, middle + MAX_TOKENS)]


def continuation_part(
    model: PreTrainedModel,
    examples: Sequence[Example],
    renderer: PromptRenderer,
    folder: Path,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    label: str = "continuing answers",
) -> None:
    """Go on with the answers of this process's slice, greedily, into its part of `folder`; what is there is kept.

    The arguments are those of `generate.generate_part`.
    """
    mine = examples[rank::world_size]
    split = {e.id: halves(r) for e, r in zip(mine, renderer.render(mine), strict=True)}
    stop_ids, room = stops_of(model, renderer), room_for(model, MAX_TOKENS)

    def work(batch: Sequence[Example]) -> Iterable[Mapping[str, Any]]:
        able = [e.id for e in batch if split[e.id][1]]
        said = generate_ids(
            model,
            [split[i][0][-room:] for i in able],
            stop_ids=stop_ids,
            pad_id=stop_ids[0],
            max_new_tokens=MAX_TOKENS,
        )
        found = dict(zip(able, said, strict=True))
        for e in batch:
            wanted = split[e.id][1]
            yield {
                "id": e.id,
                "equal": found.get(e.id, [])[: len(wanted)] == wanted and bool(wanted),
                "tokens": len(wanted),
            }

    run_part(
        folder,
        examples,
        work,
        rank=rank,
        world_size=world_size,
        batch_size=batch_size,
        length=lambda e: len(split[e.id][0]),
        label=label,
    )


def collect_continuations(
    folder: Path, examples: Sequence[Example], *, world_size: int = 1, timeout_s: float = 3600.0
) -> dict[str, Continuation]:
    """Wait for the parts of every process and return what came of each example, by id."""
    records = collect(folder, (e.id for e in examples), world_size=world_size, timeout_s=timeout_s)
    return {i: Continuation(**r) for i, r in records.items()}
