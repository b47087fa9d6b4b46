"""Seed instructions -> new ones: show some of the pool, ask for more, keep what is sound and new, and go on from there.

A round builds its prompts from the pool as it stands when the round begins and takes the answers in the order of the
requests, so that the pool never depends on which answer arrived first. A journal's line is a round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from
from typing import Any, TypedDict

from sft_dist.client import (
    BudgetSpentError,
    Completion,
    CompletionRequest,
    RefusedError,
    UnavailableError,
    map_in_order,
    unusable,
)
from sft_dist.construct.heuristics import instruction_fault
from sft_dist.construct.journal import Journal
from sft_dist.construct.novelty import NoveltyPool
from sft_dist.construct.seed_examples import SeedExample, bits
from sft_dist.construct.stage import AHEAD, left_undone
from sft_dist.construct.teacher import Teacher
from sft_dist.construct.templates import LIST_SAMPLING, LIST_STOP, split_list
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop
from sft_dist.core.rng import generator

STALLED_ROUNDS = 10  # in a row that add nothing


@dataclass(frozen=True, kw_only=True, slots=True)
class Instruction:
    """A generated instruction. `ancestors` are the seeds it descends from, as bits."""

    text: str
    ancestors: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How instructions are bootstrapped.

    Attributes:
        human: Seeds shown in a request; more take the place of generated ones that are not there yet.
        machine: Generated instructions shown in a request.
        round_requests: Requests that see the same pool.
        threshold: ROUGE-L F-measure above which an instruction is not new.
        max_tokens: Of an answer.
        sampling: Over Self-Instruct's own.
        prompt: (instructions shown, chat=whether a chat model is asked) -> the request's text.
        english: Whether instructions must begin with an ASCII character.
    """

    human: int
    machine: int
    round_requests: int
    threshold: float
    max_tokens: int
    sampling: Mapping[str, Any]
    prompt: Callable[..., str]
    english: bool = True


class _Round(TypedDict):
    kept: list[tuple[str, list[int], list[int]]]  # text, seeds shown, generated instructions shown
    dropped: list[tuple[str, str, str]]  # text, reason, detail


async def bootstrap(
    teacher: Teacher, journal: Journal, seeds: Sequence[SeedExample], *, plan: Plan, count: int
) -> tuple[list[Instruction], list[tuple[str, Drop]]]:
    """Return `count` new instructions in the order in which they were made, and what was not kept.

    Raises:
        UserError: When the budget is spent, or ten rounds in a row add nothing.
        UnavailableError: When the server is down.
    """
    pool = NoveltyPool(plan.threshold)
    pool.extend(s.instruction for s in seeds)
    made: list[Instruction] = []
    dropped: list[tuple[str, Drop]] = []
    idle = 0

    def take(line: _Round) -> None:
        nonlocal idle
        idle = 0 if line["kept"] else idle + 1
        before = [i.ancestors for i in made]
        for text, humans, machines in line["kept"]:
            ancestors = bits(humans)
            for number in machines:
                ancestors |= before[number]
            made.append(Instruction(text=text, ancestors=ancestors))
        dropped.extend((text, Drop(reason, detail)) for text, reason, detail in line["dropped"])

    for line in journal:
        take(line)
        pool.extend(text for text, _, _ in line["kept"])
    for number in count_from(journal.done):
        if len(made) >= count:
            break
        if idle >= STALLED_ROUNDS:
            raise UserError(
                f"the last {idle} rounds ({idle * plan.round_requests} requests) added no new instruction, so generation stands still at "
                f"{len(made):,} of {count:,}; lower `count` to {len(made)}, or begin again with more seeds, other sampling or a higher threshold"
            )
        teacher.progress(f"instructions: {len(made):,} of {count:,}")
        try:
            line = await _round(teacher, seeds, made, pool, plan, number)
        except (BudgetSpentError, UnavailableError) as error:
            raise left_undone(
                error, f"instructions stand at {len(made):,} of {count:,}", teacher.key
            ) from None
        journal.append(line)
        take(line)
    return made[:count], dropped


async def _round(
    teacher: Teacher,
    seeds: Sequence[SeedExample],
    made: Sequence[Instruction],
    pool: NoveltyPool,
    plan: Plan,
    number: int,
) -> _Round:
    """Run one round; the pool grows by what it keeps."""
    line = _Round(kept=[], dropped=[])
    shown = [
        _draw(teacher.seed, i, len(seeds), len(made), plan)
        for i in range(number * plan.round_requests, (number + 1) * plan.round_requests)
    ]

    async def ask(numbered: tuple[int, tuple[list[int], list[int], list[int]]]) -> Completion | Drop:
        i, (humans, machines, order) = numbered
        texts = [seeds[h].instruction for h in humans] + [made[m].text for m in machines]
        request = _request(teacher, plan, [texts[o] for o in order], number * plan.round_requests + i)
        try:
            return await teacher.client.complete(request)
        except RefusedError as error:
            return Drop("refused_by_server", str(error))

    async for (_, (humans, machines, _)), answer in map_in_order(
        enumerate(shown), ask, ahead=AHEAD * teacher.client.concurrency
    ):
        why = answer if isinstance(answer, Drop) else unusable(answer.choices[0])
        if why or isinstance(answer, Drop):
            # a list that was cut off is dropped whole, as published: its last task would be half a task
            assert why is not None
            line["dropped"].append(("", why.reason, why.detail))
            continue
        for text in split_list(answer.choices[0].text):
            fault = instruction_fault(text, english=plan.english) or _similar(text, pool)
            if fault:
                line["dropped"].append((text, fault.reason, fault.detail))
            else:
                pool.add(text)
                line["kept"].append((text, humans, machines))
    return line


def _draw(
    seed: int, request: int, seeds: int, made: int, plan: Plan
) -> tuple[list[int], list[int], list[int]]:
    """Return which seeds and which generated instructions a request shows, and in what order."""
    rng = generator(seed, "bootstrap", request)
    machines = rng.permutation(made)[: plan.machine].tolist() if plan.machine else []
    humans = rng.permutation(seeds)[: plan.human + plan.machine - len(machines)].tolist()
    return humans, machines, rng.permutation(len(humans) + len(machines)).tolist()


def _request(teacher: Teacher, plan: Plan, shown: list[str], number: int) -> CompletionRequest:
    stop = {} if teacher.chat else {"stop": LIST_STOP}
    return teacher.request(
        plan.prompt(shown, chat=teacher.chat),
        item=f"instructions/{number}",
        max_tokens=plan.max_tokens,
        sampling={**LIST_SAMPLING, **stop, **plan.sampling},
    )


def _similar(text: str, pool: NoveltyPool) -> Drop | None:
    match = pool.similar(text)
    return match and Drop("not_new", f"ROUGE-L {match.score:.2f} with instruction {match.number} of the pool")
