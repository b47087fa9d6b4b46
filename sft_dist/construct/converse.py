"""Prompts that exist -> conversations of several turns: the teacher answers, goes on as the user, answers again.

Stages on disk, for each turn: answers-1.jsonl, users-1.jsonl, answers-2.jsonl, ...; then examples.jsonl, dropped.jsonl, counts.json. A
conversation ends where the teacher says that the user has no more to ask, or where a turn cannot be used: what came before is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from sft_dist.client import Completion, CompletionRequest, unusable
from sft_dist.construct.answer import answer_stage, with_answer
from sft_dist.construct.journal import Journal
from sft_dist.construct.output import Made, Output
from sft_dist.construct.seed_examples import training_only
from sft_dist.construct.stage import Outcome, Stage, outcomes
from sft_dist.construct.teacher import Teacher
from sft_dist.construct.templates import NEXT_SAMPLING, next_turn
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example, Message, make_example
from sft_dist.holdout import Holdout, descend


async def converse(
    teacher: Teacher,
    folder: Path,
    examples: Iterable[Example],
    holdout: Holdout,
    *,
    name: str,
    turns: int = 3,
    count: int | None = None,
    max_tokens: int = 1024,
    sampling: Mapping[str, Any] | None = None,
    attempts: int = 2,
) -> Made:
    """Make a conversation from each example.

    Args:
        teacher: A chat model.
        folder: Where stages and output lie.
        examples: Training examples and prompts; they are held in memory. Their last answer is made anew.
        holdout: The decision; see `training_only`.
        name: Source of the conversations; their task is that of the example.
        turns: Answers in a conversation, at most; may be raised later.
        count: Prompts, at most, the first ones.
        max_tokens: Of one turn.
        sampling: Of answers.
        attempts: At a turn that is cut off or empty.

    Raises:
        UserError: When an example is held out, the folder holds another set, or the budget is spent.
        UnavailableError: When the server is down.
    """
    pool = list(islice(training_only(examples, holdout), count))
    key = {
        "templates": teacher.prompts.version, "examples": fingerprint([[e.id, e.origin] for e in pool]), "teacher": teacher.identity(),
        "max_tokens": max_tokens, "sampling": dict(sampling or {}), "attempts": attempts,
    }  # fmt: skip
    answered: list[Example | None] = [None] * len(pool)
    asked: list[Example | Drop] = list(pool)
    why: list[Drop | None] = [None] * len(pool)
    for turn in range(1, turns + 1):
        answers = Journal(folder / f"answers-{turn}.jsonl", key)
        stage = _passing(
            answer_stage(teacher, max_tokens=max_tokens, sampling=sampling or {}, attempts=attempts),
            f"answers-{turn}",
        )
        await stage.run(teacher, answers, asked, len(pool))
        for i, (prompt, outcome) in enumerate(zip(asked, outcomes(answers), strict=True)):
            if isinstance(prompt, Drop) or isinstance(outcome, Drop):
                why[i] = why[i] or outcome
                asked[i] = outcome
            else:
                asked[i] = answered[i] = with_answer(prompt, outcome, source=name, origin=descend([pool[i]]))
        if turn == turns:
            break
        users = Journal(folder / f"users-{turn}.jsonl", key)
        goes_on = _passing(_user_stage(teacher, max_tokens=max_tokens, attempts=attempts), f"users-{turn}")
        await goes_on.run(teacher, users, asked, len(pool))
        for i, (so_far, outcome) in enumerate(zip(asked, outcomes(users), strict=True)):
            asked[i] = (
                outcome
                if isinstance(so_far, Drop) or isinstance(outcome, Drop)
                else _with_user(so_far, outcome)
            )
    with Output(folder) as output:
        for prompt, made, drop in zip(pool, answered, why, strict=True):
            if made is not None:
                output.keep(made)
            elif drop is not None:
                output.drop(drop, prompt.instruction)
    return output.made()


def _passing(stage: Stage[Example], name: str) -> Stage[Example | Drop]:
    """Return the stage for conversations some of which have ended: those keep why."""

    def ask(item: Example | Drop, label: str, attempt: int) -> CompletionRequest | Drop:
        return item if isinstance(item, Drop) else stage.ask(item, label, attempt)

    def read(item: Example | Drop, completion: Completion) -> Outcome:
        assert not isinstance(item, Drop)
        return stage.read(item, completion)

    return Stage(name=name, id_of=lambda i, _: str(i), ask=ask, read=read, attempts=stage.attempts)


def _user_stage(teacher: Teacher, *, max_tokens: int, attempts: int) -> Stage[Example]:
    """Return the stage whose outcome is the user's next turn."""

    def ask(so_far: Example, name: str, attempt: int) -> CompletionRequest:
        spoken = [(m.role, m.content) for m in so_far.messages if m.role in ("user", "assistant")]
        return teacher.request(
            teacher.prompts.next_turn(spoken),
            item=name,
            attempt=attempt,
            max_tokens=max_tokens,
            sampling=NEXT_SAMPLING,
        )

    def read(_: Example, completion: Completion) -> Outcome:
        choice = completion.choices[0]
        return unusable(choice) or next_turn(choice.text) or Drop("ended", "the user has no more to ask")

    return Stage(name="users", id_of=lambda i, _: str(i), ask=ask, read=read, attempts=attempts)


def _with_user(so_far: Example, text: str) -> Example:
    return make_example(
        task=so_far.task,
        source=so_far.source,
        messages=(*so_far.messages, Message(role="user", content=text)),
        origin=so_far.origin,
        input_start=so_far.input_start,
    )
