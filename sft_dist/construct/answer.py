"""Prompts that exist -> answers of the teacher. Stage on disk: answers.jsonl; then examples.jsonl, dropped.jsonl, counts.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from sft_dist.client import Completion, CompletionRequest, unusable
from sft_dist.construct.journal import Journal
from sft_dist.construct.output import Made, Output
from sft_dist.construct.seed_examples import training_only
from sft_dist.construct.stage import Outcome, Stage, outcomes
from sft_dist.construct.teacher import Teacher
from sft_dist.construct.templates import ANSWER_STOP, answer_prompt
from sft_dist.construct.verified import Verification
from sft_dist.core.records import Drop, Example, Message, make_example
from sft_dist.holdout import Holdout, descend


async def answer(
    teacher: Teacher,
    folder: Path,
    examples: Callable[[], Iterable[Example]],
    holdout: Holdout,
    *,
    name: str,
    fingerprint: str,
    count: int | None = None,
    max_tokens: int = 2048,
    sampling: Mapping[str, Any] | None = None,
    attempts: int = 2,
    verification: Verification | None = None,
) -> Made:
    """Answer the last user turn of each example anew.

    Args:
        teacher: The model.
        folder: Where the stage and the output lie.
        examples: Yields the training examples, the same in every call; they are never held in memory.
        holdout: The decision; see `training_only`.
        name: Source of the new examples; their task is that of the example whose prompt they answer.
        fingerprint: Of the examples.
        count: Prompts, at most, the first ones; may be raised later.
        max_tokens: Of one answer.
        sampling: Parameters of the server.
        attempts: At an answer that is cut off or empty.
        verification: By what answers are kept, and how many are asked for instead of `attempts`; None: the first answer is kept.

    Raises:
        UserError: When an example is held out, the folder holds another set, or the budget is spent.
        UnavailableError: When the server is down.
    """
    key = {
        "templates": teacher.prompts.version, "examples": fingerprint, "teacher": teacher.identity(), "max_tokens": max_tokens,
        "sampling": dict(sampling or {}), "attempts": attempts, **(verification.key() if verification else {}),
    }  # fmt: skip
    journal = Journal(folder / "answers.jsonl", key)
    stage = answer_stage(teacher, max_tokens=max_tokens, sampling=sampling or {}, attempts=attempts)
    if verification is not None:
        stage = _verified(stage, verification)

    def prompts() -> Iterable[Example]:
        return islice(training_only(examples(), holdout), count)

    await stage.run(teacher, journal, prompts(), count)
    with Output(folder) as output:
        for example, outcome in zip(prompts(), outcomes(journal), strict=False):
            if isinstance(outcome, Drop):
                output.drop(outcome, example.instruction)
                continue
            for text in [outcome] if verification is None else outcome:
                output.keep(with_answer(example, text, source=name, origin=descend([example])))
    return output.made()


def _verified(stage: Stage[Example], verification: Verification) -> Stage[Example]:
    """Return the stage with answers that are asked for until enough of them pass; its outcome is a list of theirs."""

    def ask(example: Example, name: str, attempt: int) -> CompletionRequest | Drop:
        return verification.missing(example) or stage.ask(example, name, attempt)

    return replace(
        stage, ask=ask, attempts=verification.samples, verify=verification.verify(), keep=verification.keep
    )


def answer_stage(
    teacher: Teacher, *, max_tokens: int, sampling: Mapping[str, Any], attempts: int
) -> Stage[Example]:
    """Return the stage whose outcome is [answer, reasoning or null] to the last user turn of an example."""

    def ask(example: Example, name: str, attempt: int) -> CompletionRequest | Drop:
        turns = _turns(example)
        if not turns or turns[-1].role != "user":
            return Drop("no_question", "there is no user turn to answer")
        if example.tools or any(t.role == "tool" or t.tool_calls for t in turns):
            return Drop("tools", "a conversation with tools cannot be answered without running them")
        if not teacher.chat and len(turns) > 1:
            return Drop("several_turns", "a plain language model is asked with a single turn")
        stop = {} if teacher.chat else {"stop": ANSWER_STOP}
        prompt = tuple({"role": t.role, "content": t.content} for t in turns)
        own = teacher.prompts.answer(example.instruction, example.input) if len(turns) == 1 else None
        return teacher.request(
            own or (prompt if teacher.chat else answer_prompt(example.instruction, example.input)),
            item=name,
            attempt=attempt,
            max_tokens=max_tokens,
            sampling={**stop, **sampling},
        )

    def read(_: Example, completion: Completion) -> Outcome:
        choice = completion.choices[0]
        return unusable(choice) or [choice.text.strip(), choice.reasoning]

    return Stage(name="answers", id_of=lambda i, e: f"{i}/{e.id}", ask=ask, read=read, attempts=attempts)


def with_answer(example: Example, outcome: Outcome, *, source: str, origin: tuple[str, ...]) -> Example:
    """Return the example with the answer of an `answer_stage` in place of its last."""
    text, reasoning = outcome
    return make_example(
        task=example.task,
        source=source,
        messages=(*_turns(example), Message(role="assistant", content=text, reasoning_content=reasoning)),
        origin=origin,
        input_start=example.input_start,
        question=example.question if example.checks else None,
        checks=example.checks,
    )


def _turns(example: Example) -> tuple[Message, ...]:
    """Return the turns up to the last user turn."""
    users = [i for i, m in enumerate(example.messages) if m.role == "user"]
    return example.messages[: users[-1] + 1] if users else ()
