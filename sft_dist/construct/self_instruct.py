"""Self-Instruct: bootstrap instructions, tell classifications from the rest, generate instances, keep the sound ones.

Stages on disk: instructions.jsonl, classification.jsonl, instances.jsonl; then examples.jsonl, dropped.jsonl, counts.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sft_dist.client import Completion, CompletionRequest, unusable
from sft_dist.construct.bootstrap import Instruction, Plan, bootstrap
from sft_dist.construct.heuristics import keep_instances
from sft_dist.construct.journal import Journal
from sft_dist.construct.output import Made, Output
from sft_dist.construct.seed_examples import SeedExample, bits, joint_origin, seeds_fingerprint, shots
from sft_dist.construct.stage import Outcome, Stage, outcomes
from sft_dist.construct.teacher import Teacher
from sft_dist.construct.templates import (
    INSTANCE_SAMPLING,
    LABEL_SAMPLING,
    parse_input_first,
    parse_output_first,
    says_yes,
)
from sft_dist.core.records import Drop, single_turn
from sft_dist.core.rng import generator

CLASSIFICATION_SHOTS, OTHER_SHOTS = 12, 19  # 31 in all, as published
INSTANCE_SHOTS = 8
SHOT_CHARS = 800


async def self_instruct(
    teacher: Teacher,
    folder: Path,
    seeds: list[SeedExample],
    *,
    name: str,
    count: int,
    human: int = 6,
    machine: int = 2,
    round_requests: int = 32,
    threshold: float = 0.7,
    max_instances: int = 5,
    max_tokens: int = 1024,
    sampling: Mapping[str, Any] | None = None,
) -> Made:
    """Generate instructions and their instances from a pool of seeds.

    Args:
        teacher: The model.
        folder: Where stages and output lie.
        seeds: From `group_seeds`. Those that say whether they are classifications serve as demonstrations.
        name: Task and source of the examples.
        count: Instructions; may be raised later.
        human: Seeds in a request for instructions.
        machine: Generated instructions in a request, once there are some.
        round_requests: Requests that see the same pool.
        threshold: ROUGE-L above which an instruction is not new.
        max_instances: Of one instruction.
        max_tokens: Of one answer.
        sampling: For instructions, over the published parameters.

    Raises:
        UserError: When the folder holds another set, the budget is spent, or nothing new comes any more.
        UnavailableError: When the server is down.
    """
    shown = _Shots(seeds, teacher.seed)
    plan = Plan(
        human=human, machine=machine, round_requests=round_requests, threshold=threshold, max_tokens=max_tokens,
        sampling=sampling or {}, prompt=teacher.prompts.tasks,
    )  # fmt: skip
    key = {
        "templates": teacher.prompts.version, "seeds": seeds_fingerprint(seeds), "teacher": teacher.identity(), "human": human, "machine": machine,
        "round_requests": round_requests, "threshold": threshold, "max_tokens": max_tokens, "sampling": dict(sampling or {}),
    }  # fmt: skip
    instructions, rejected = await bootstrap(
        teacher, Journal(folder / "instructions.jsonl", key), seeds, plan=plan, count=count
    )

    labels = Journal(folder / "classification.jsonl", key)
    await shown.label_stage(teacher).run(teacher, labels, instructions, count)
    kinds = [outcome is True for outcome in outcomes(labels)]
    pairs = list(zip(instructions, kinds[: len(instructions)], strict=True))

    instances = Journal(folder / "instances.jsonl", {**key, "max_instances": max_instances})
    stage = shown.instance_stage(teacher, max_instances=max_instances, max_tokens=max_tokens)
    await stage.run(teacher, instances, pairs, count)

    with Output(folder) as output:
        for text, why in rejected:
            output.drop(why, text)
        for (instruction, classification), outcome in zip(pairs, outcomes(instances), strict=False):
            kept = (
                outcome
                if isinstance(outcome, Drop)
                else keep_instances([tuple(p) for p in outcome], most=max_instances)
            )
            if isinstance(kept, Drop):
                output.drop(kept, instruction.text)
                continue
            origin = joint_origin(seeds, instruction.ancestors | shown.members(classification=classification))
            for given, answer in kept:
                output.keep(
                    single_turn(
                        task=name,
                        source=name,
                        instruction=instruction.text,
                        input=given,
                        output=answer,
                        origin=origin,
                    )
                )
    return output.made()


class _Shots:
    """Seeds that serve as demonstrations, and the two stages that show them."""

    def __init__(self, seeds: list[SeedExample], seed: int) -> None:
        self._seeds = seeds
        yes = shots(seeds, classification=True, most=CLASSIFICATION_SHOTS, most_chars=SHOT_CHARS)
        no = shots(seeds, classification=False, most=OTHER_SHOTS, most_chars=SHOT_CHARS)
        self._label = generator(seed, "shots").permutation(yes + no).astype(int).tolist()
        self._yes = yes[:INSTANCE_SHOTS]
        # seeds of which nobody said what they are: most tasks are open
        self._no = (no or shots(seeds, classification=None, most=INSTANCE_SHOTS, most_chars=SHOT_CHARS))[
            :INSTANCE_SHOTS
        ]

    def members(self, *, classification: bool) -> int:
        """Return the seeds that an instruction of this kind has been shown beside, as bits."""
        return bits(self._label) | bits(self._yes if classification else self._no)

    def label_stage(self, teacher: Teacher) -> Stage[Instruction]:
        """Return the stage whose outcome says whether an instruction is a classification."""
        shown = [(self._seeds[i].instruction, bool(self._seeds[i].is_classification)) for i in self._label]

        def ask(item: Instruction, name: str, attempt: int) -> CompletionRequest:
            stop = {} if teacher.chat else {"stop": ["\n", "Task:"]}
            return teacher.request(
                teacher.prompts.classification(shown, item.text),
                item=name,
                attempt=attempt,
                max_tokens=8,
                sampling={**LABEL_SAMPLING, **stop},
            )

        def read(_: Instruction, completion: Completion) -> Outcome:
            return says_yes(completion.choices[0].text)  # anything else is a no, as published

        return Stage(name="classification", id_of=lambda i, _: str(i), ask=ask, read=read)

    def instance_stage(
        self, teacher: Teacher, *, max_instances: int, max_tokens: int
    ) -> Stage[tuple[Instruction, bool]]:
        """Return the stage whose outcome is the list of an instruction's (input, output) pairs."""

        def ask(item: tuple[Instruction, bool], name: str, attempt: int) -> CompletionRequest:
            instruction, classification = item
            numbers = self._yes if classification else self._no
            shown = [(self._seeds[i].instruction, self._seeds[i].instances) for i in numbers]
            prompt = teacher.prompts.output_first if classification else teacher.prompts.input_first
            stop = {} if teacher.chat else {"stop": ["Task:", f"Example {max_instances + 1}"]}
            return teacher.request(
                prompt(shown, instruction.text, most=max_instances),
                item=name,
                attempt=attempt,
                max_tokens=max_tokens,
                sampling={**INSTANCE_SAMPLING, **stop},
            )

        def read(item: tuple[Instruction, bool], completion: Completion) -> Outcome:
            choice = completion.choices[0]
            if why := unusable(choice, allow_length=True):
                return why
            pairs = (parse_output_first if item[1] else parse_input_first)(choice.text)
            if choice.finish_reason == "length":
                pairs = pairs[:-1]  # the last one is cut off
            return pairs or Drop(
                "no_instance", "the answer holds no whole instance in the form that was asked for"
            )

        return Stage(name="instances", id_of=lambda i, _: str(i), ask=ask, read=read)
