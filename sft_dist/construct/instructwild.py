"""InstructWild: prompts that people wrote -> new prompts like them -> answers.

Stages on disk: instructions.jsonl, answers.jsonl; then examples.jsonl, dropped.jsonl, counts.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_dist.construct.answer import answer_stage, with_answer
from sft_dist.construct.bootstrap import Plan, bootstrap
from sft_dist.construct.journal import Journal
from sft_dist.construct.output import Made, Output
from sft_dist.construct.seed_examples import SeedExample, joint_origin, seeds_fingerprint
from sft_dist.construct.stage import outcomes
from sft_dist.construct.teacher import Teacher
from sft_dist.core.records import Drop, Message, make_example


async def instructwild(
    teacher: Teacher,
    folder: Path,
    seeds: list[SeedExample],
    *,
    name: str,
    count: int,
    human: int = 5,
    round_requests: int = 32,
    threshold: float = 0.7,
    max_tokens: int = 1024,
    sampling: Mapping[str, Any] | None = None,
    attempts: int = 2,
) -> Made:
    """Generate prompts from collected ones, and answer them.

    Args:
        teacher: The model.
        folder: Where stages and output lie.
        seeds: The collected prompts, from `group_seeds`.
        name: Task and source of the examples.
        count: Prompts; may be raised later.
        human: Collected prompts in a request.
        round_requests: Requests that see the same pool.
        threshold: ROUGE-L above which a prompt is not new.
        max_tokens: Of one answer.
        sampling: Over the published parameters.
        attempts: At an answer that is cut off or empty.

    Raises:
        UserError: When the folder holds another set, the budget is spent, or nothing new comes any more.
        UnavailableError: When the server is down.
    """
    plan = Plan(
        human=human, machine=0, round_requests=round_requests, threshold=threshold, max_tokens=max_tokens,
        sampling=sampling or {}, prompt=teacher.prompts.wild, english=False,
    )  # fmt: skip
    key = {
        "templates": teacher.prompts.version, "seeds": seeds_fingerprint(seeds), "teacher": teacher.identity(), "human": human,
        "round_requests": round_requests, "threshold": threshold, "max_tokens": max_tokens, "sampling": dict(sampling or {}),
    }  # fmt: skip
    instructions, rejected = await bootstrap(
        teacher, Journal(folder / "instructions.jsonl", key), seeds, plan=plan, count=count
    )
    prompts = [
        make_example(
            task=name,
            source=name,
            messages=(Message(role="user", content=i.text),),
            origin=joint_origin(seeds, i.ancestors),
        )
        for i in instructions
    ]
    journal = Journal(folder / "answers.jsonl", {**key, "attempts": attempts})
    stage = answer_stage(teacher, max_tokens=max_tokens, sampling={}, attempts=attempts)
    await stage.run(teacher, journal, prompts, count)
    with Output(folder) as output:
        for text, why in rejected:
            output.drop(why, text)
        for prompt, outcome in zip(prompts, outcomes(journal), strict=False):
            if isinstance(outcome, Drop):
                output.drop(outcome, prompt.instruction)
            else:
                output.keep(with_answer(prompt, outcome, source=name, origin=prompt.origin))
    return output.made()
