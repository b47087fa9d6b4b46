"""Evol-Instruct: instructions rewritten again and again, in depth or in breadth; failed rewritings are eliminated.

Stages on disk, for each epoch: evolve-1.jsonl, compare-1.jsonl, answers-1.jsonl; then examples.jsonl, dropped.jsonl, counts.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sft_dist.client import Completion, CompletionRequest, unusable
from sft_dist.construct.answer import answer_stage, with_answer
from sft_dist.construct.heuristics import answer_fault, evolved_fault
from sft_dist.construct.journal import Journal
from sft_dist.construct.output import Made, Output
from sft_dist.construct.seed_examples import is_single_turn, training_only
from sft_dist.construct.stage import Outcome, Stage, outcomes
from sft_dist.construct.teacher import Teacher
from sft_dist.construct.templates import (
    EVOLVE_SAMPLING,
    LABEL_SAMPLING,
    says_equal,
)
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example, Message, make_example
from sft_dist.core.rng import derive
from sft_dist.holdout import Holdout, descend


async def evolve(
    teacher: Teacher,
    folder: Path,
    examples: Iterable[Example],
    holdout: Holdout,
    *,
    name: str,
    epochs: int = 4,
    count: int | None = None,
    max_tokens: int = 2048,
    sampling: Mapping[str, Any] | None = None,
    attempts: int = 2,
) -> Made:
    """Evolve the instructions of examples, and answer what comes of them.

    Each epoch rewrites every instruction of the pool once, by an operation drawn by seed. A rewriting that says nothing new, is
    refused, empty or holds words of the request is eliminated, and its instruction goes into the next epoch as it was.

    Args:
        teacher: The model.
        folder: Where stages and output lie.
        examples: Training examples and prompts; those of several turns are left out. They are held in memory.
        holdout: The decision; see `training_only`.
        name: Task and source of the new examples.
        epochs: Rewritings of each instruction; may be raised later.
        count: Instructions, at most, the first ones.
        max_tokens: Of one answer.
        sampling: For rewriting.
        attempts: At an answer that is cut off or empty.

    Raises:
        UserError: When an example is held out, the folder holds another set, or the budget is spent.
        UnavailableError: When the server is down.
    """
    pool = list(islice(_prompts(examples, holdout, name), count))
    key = {
        "templates": teacher.prompts.version, "examples": fingerprint([[e.id, e.origin] for e in pool]), "teacher": teacher.identity(),
        "max_tokens": max_tokens, "sampling": dict(sampling or {}), "attempts": attempts,
    }  # fmt: skip
    finished: list[tuple[Example | Drop, str]] = []  # with the text that a Drop is about
    for epoch in range(1, epochs + 1):
        rewritten = Journal(folder / f"evolve-{epoch}.jsonl", key)
        stage = _evolve_stage(
            teacher, epoch, max_tokens=max_tokens, sampling=sampling or {}, attempts=attempts
        )
        await stage.run(teacher, rewritten, pool, len(pool))
        results = [_rewritten(e, o) for e, o in zip(pool, outcomes(rewritten), strict=True)]

        compared = Journal(folder / f"compare-{epoch}.jsonl", key)
        pairs = zip(pool, results, strict=True)
        await _compare_stage(teacher, epoch).run(teacher, compared, pairs, len(pool))
        results = [o if isinstance(o, Drop) else r for r, o in zip(results, outcomes(compared), strict=True)]

        answered = Journal(folder / f"answers-{epoch}.jsonl", key)
        answers = _answer_stage(teacher, epoch, max_tokens=max_tokens, attempts=attempts)
        await answers.run(teacher, answered, results, len(pool))
        for i, (result, outcome) in enumerate(zip(results, outcomes(answered), strict=True)):
            if isinstance(result, Drop) or isinstance(outcome, Drop):
                asked = pool[i] if isinstance(result, Drop) else result
                finished.append((outcome, asked.instruction))
            else:
                finished.append((with_answer(result, outcome, source=name, origin=result.origin), ""))
                pool[i] = result
    with Output(folder) as output:
        for item, text in finished:
            if isinstance(item, Drop):
                output.drop(item, text)
            else:
                output.keep(item)
    return output.made()


def _prompts(examples: Iterable[Example], holdout: Holdout, name: str) -> Iterable[Example]:
    """Yield one prompt without an answer for each single-turn example: its whole user turn."""
    for example in training_only(examples, holdout):
        if is_single_turn(example):
            text = next(m.content for m in example.messages if m.role == "user").strip()
            if text:
                yield _prompt(text, name, descend([example]))


def _prompt(text: str, name: str, origin: tuple[str, ...]) -> Example:
    return make_example(task=name, source=name, messages=(Message(role="user", content=text),), origin=origin)


def _rewritten(original: Example, outcome: Outcome) -> Example | Drop:
    return outcome if isinstance(outcome, Drop) else _prompt(outcome, original.task, original.origin)


def _evolve_stage(
    teacher: Teacher, epoch: int, *, max_tokens: int, sampling: Mapping[str, Any], attempts: int
) -> Stage[Example]:
    """Return the stage whose outcome is the rewritten instruction."""
    operations = teacher.prompts.operations

    def ask(original: Example, name: str, attempt: int) -> CompletionRequest:
        operation = operations[derive(teacher.seed, "operation", name) % len(operations)]
        return teacher.request(
            teacher.prompts.evolve(operation, original.instruction),
            item=name,
            attempt=attempt,
            max_tokens=max_tokens,
            sampling={**EVOLVE_SAMPLING, **sampling},
        )

    def read(original: Example, completion: Completion) -> Outcome:
        choice = completion.choices[0]
        text = choice.text.strip()
        return unusable(choice) or evolved_fault(text, original.instruction) or text

    return Stage(name=f"evolve-{epoch}", id_of=lambda i, _: str(i), ask=ask, read=read, attempts=attempts)


def _compare_stage(teacher: Teacher, epoch: int) -> Stage[tuple[Example, Example | Drop]]:
    """Return the stage whose outcome is a Drop for what was dropped before or says nothing new, else true."""

    def ask(item: tuple[Example, Example | Drop], name: str, attempt: int) -> CompletionRequest | Drop:
        original, result = item
        if isinstance(result, Drop):
            return result
        return teacher.request(
            teacher.prompts.same(original.instruction, result.instruction),
            item=name,
            attempt=attempt,
            max_tokens=8,
            sampling=LABEL_SAMPLING,
        )

    def read(_: tuple[Example, Example | Drop], completion: Completion) -> Outcome:
        if says_equal(completion.choices[0].text):
            return Drop("no_gain", "the teacher finds the rewritten instruction equal to the original")
        return True

    return Stage(name=f"compare-{epoch}", id_of=lambda i, _: str(i), ask=ask, read=read)


def _answer_stage(teacher: Teacher, epoch: int, *, max_tokens: int, attempts: int) -> Stage[Example | Drop]:
    """Return the stage whose outcome is an answer that shows that the instruction can be answered."""
    plain = answer_stage(teacher, max_tokens=max_tokens, sampling={}, attempts=attempts)

    def ask(result: Example | Drop, name: str, attempt: int) -> CompletionRequest | Drop:
        return result if isinstance(result, Drop) else plain.ask(result, name, attempt)

    def read(result: Example | Drop, completion: Completion) -> Outcome:
        assert not isinstance(result, Drop)
        outcome = plain.read(result, completion)
        return outcome if isinstance(outcome, Drop) else answer_fault(outcome[0]) or outcome

    return Stage(name=f"answers-{epoch}", id_of=lambda i, _: str(i), ask=ask, read=read, attempts=attempts)
