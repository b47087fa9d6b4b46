"""One pass over all sources -> the decision. It depends on what the sources hold and the seed, on no order."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import xxhash

from sft_dist.config.data import HoldoutConfig, ValidationConfig
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.process import logger
from sft_dist.core.records import Example
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.core.sets import SetName
from sft_dist.core.words import words
from sft_dist.holdout.families import INSTRUCTIONS, near_tasks
from sft_dist.holdout.holdout import (
    COMPARED_WORDS,
    DATASET,
    Asked,
    Holdout,
    fold,
    is_generated,
    shown_keys,
)
from sft_dist.sources.base import RECORD
from sft_dist.sources.task_files import read_task_list


@dataclass(slots=True)
class _Input:
    """One distinct input of a task: the examples that ask it, and where they come from."""

    ids: set[str]
    datasets: set[str]
    records: set[str]
    answers: set[str]


class InstructionSample:
    """Some instructions of a task that were written, not generated: those with the smallest hashes.

    Attributes:
        every: Of all examples.
        before_inputs: Of those with an INPUT: without one, the text is the input itself.
    """

    def __init__(self, seed: int) -> None:
        own = derive(seed, "holdout", "inputs")
        self.every: Sample[str] = Sample(INSTRUCTIONS, own)
        self.before_inputs: Sample[str] = Sample(INSTRUCTIONS, own)

    def add(self, example: Example) -> None:
        """Take the instruction of an example into account."""
        if not is_generated(example):
            self.every.add(example.instruction, example.instruction)
            if example.input:
                self.before_inputs.add(example.instruction, example.instruction)

    def to_lists(self) -> tuple[list[str], list[str]]:
        """Return what was kept: `every`, `before_inputs`."""
        return self.every.items(), self.before_inputs.items()

    def merge(self, lists: Sequence[Sequence[str]]) -> None:
        """Take the sample of another part of the task into account, as `to_lists` gave it."""
        for sample, texts in zip((self.every, self.before_inputs), lists, strict=True):
            for text in texts:
                sample.add(text, text)


class _Task:
    """What the pass keeps of one task: how much of it each dataset gave, and the inputs with the smallest hashes."""

    def __init__(self, seed: int, name: str, keep: int | None, share: float) -> None:
        self.share = share  # of its source that is known
        self.chance = derive(seed, "holdout", "sample", name) / 2**63
        self.seed = derive(seed, "holdout", "inputs", name)
        self.record_seed = derive(seed, "holdout", "inputs")
        self.keep = keep
        self.from_datasets: Counter[frozenset[str]] = Counter()
        self.inputs: dict[str, _Input] = {}
        self.heap: list[tuple[int, str]] = []  # (minus hash, input key): the largest kept hash is on top
        self.answered = array("Q")  # answer keys of all examples: 8 bytes each
        self.asked = array("Q")  # input keys of all examples
        self.instructions = InstructionSample(seed)

    def add(self, asked: Asked) -> None:
        """Take one example into account; `keep` inputs are remembered, those of prompts without an answer are not."""
        datasets = frozenset(o.removeprefix(DATASET) for o in asked.origin if o.startswith(DATASET))
        self.from_datasets[datasets] += 1
        if asked.is_prompt or not asked.is_chat:
            return
        key = asked.key
        self.answered.append(int(asked.answered, 16))
        self.asked.append(int(key, 16))
        record = next((o for o in asked.origin if o.startswith(RECORD)), None)
        if key not in self.inputs:
            # Tasks that ask the same records in other words choose the same ones: what any of them is evaluated on,
            # none of them may be trained on.
            chance, seed = (record, self.record_seed) if record else (key, self.seed)
            entry = (-xxhash.xxh3_64_intdigest(chance.encode(), seed=seed), key)
            if self.keep is None or len(self.heap) < self.keep:
                heapq.heappush(self.heap, entry)
            elif entry > self.heap[0]:
                del self.inputs[heapq.heapreplace(self.heap, entry)[1]]
            else:
                return
            self.inputs[key] = _Input(set(), set(), set(), set())
        self.inputs[key].ids.add(asked.id)
        self.inputs[key].answers.add(asked.answered)
        if record:
            self.inputs[key].records.add(record)
        self.inputs[key].datasets |= datasets

    @property
    def distinct(self) -> int:
        """Distinct inputs."""
        return len(np.unique(np.frombuffer(self.asked, np.uint64))) if self.asked else 0

    @property
    def datasets(self) -> set[str]:
        """Every dataset that some example comes from."""
        return set().union(*self.from_datasets)

    def of_sample(self, number: int) -> int:
        """Return what a number of the task's inputs is in what is known of it; parts of one are rounded by chance."""
        return number if self.share == 1 else int(number * self.share + self.chance)

    def wholly_from(self, datasets: set[str]) -> bool:
        """Return whether each example comes from one of `datasets`."""
        return all(group & datasets for group in self.from_datasets)

    def smallest(self, *, without: AbstractSet[str] = frozenset()) -> list[str]:
        """Return the kept input keys by rising hash, but those that come from a dataset in `without`."""
        return [key for _, key in sorted(self.heap, reverse=True) if not self.inputs[key].datasets & without]


class Candidates:
    """What is asked of every source, taken in example by example; then the decision.

    Args:
        holdout: What judges.
        validation: What chooses; None: nothing.
        uses: Source -> the set that all of its examples go to; sources that are trained on are not named.
        shares: Source -> the share of it that is known, for an estimate; sources that are known whole need no name.
        seed: The run's seed.
    """

    def __init__(
        self,
        holdout: HoldoutConfig,
        validation: ValidationConfig | None = None,
        *,
        uses: Mapping[str, SetName] | None = None,
        shares: Mapping[str, float] | None = None,
        seed: int,
    ) -> None:
        self.holdout, self.validation = holdout, validation or ValidationConfig()
        self.uses, self.shares, self.seed = uses or {}, shares or {}, seed
        asked = holdout.examples_per_task + self.validation.examples_per_task
        by_share = holdout.share is not None or self.validation.share is not None
        self.keep = None if by_share else max(2 * asked, holdout.max_eval_per_task)
        self.seen: dict[str, _Task] = {}
        self.given: dict[str, _Task] = {}  # tasks of sources that are evaluated whole
        self.held_by_source: set[str] = set()

    def add(self, asked: Asked) -> None:
        """Take an example into account."""
        self._task(asked.source, asked.task).add(asked)
        if self.uses.get(asked.source) == "heldout":
            self.held_by_source.add(asked.task)

    def instructions(self, source: str, task: str) -> InstructionSample:
        """Return the sample of instructions of a task, to be added to."""
        return self._task(source, task).instructions

    def _task(self, source: str, name: str) -> _Task:
        whole = self.uses.get(source) in ("validation", "seen")
        group, size = (self.given, None) if whole else (self.seen, self.keep)
        share = self.shares.get(source, 1.0)
        return group.get(name) or group.setdefault(name, _Task(self.seed, name, size, share))

    def decide(self) -> Holdout:
        """Decide what is never trained on.

        A task's `seen` inputs are those with the smallest hashes of seed, task and input; its validation inputs are the next ones. The
        two together are at most half of a task's inputs.

        Raises:
            UserError: When a name matches nothing, or nothing is left to train on.
        """
        return _decide(self)


def decide(
    examples: Iterable[tuple[str, Example]],
    holdout: HoldoutConfig,
    validation: ValidationConfig | None = None,
    *,
    uses: Mapping[str, SetName] | None = None,
    seed: int,
) -> Holdout:
    """Decide what is never trained on of (source, example) of every source, each once; see `Candidates`."""
    candidates = Candidates(holdout, validation, uses=uses, seed=seed)
    for source, example in examples:
        candidates.add(Asked.of(example)._replace(source=source))
        candidates.instructions(source, example.task).add(example)
    return candidates.decide()


def _decide(candidates: Candidates) -> Holdout:
    holdout, validation, uses, seed = (
        candidates.holdout,
        candidates.validation,
        candidates.uses,
        candidates.seed,
    )
    seen, given, held_by_source = candidates.seen, candidates.given, candidates.held_by_source
    held = _named(holdout.tasks, seen) | _listed(holdout.task_file, seen) | held_by_source
    refused = _matching(holdout.datasets, {d for task in seen.values() for d in task.datasets})
    held |= {name for name, task in seen.items() if refused and task.wholly_from(refused)}
    held |= _drawn(holdout.number, sorted(name for name in set(seen) - held if seen[name].inputs), seed)
    if seen and not set(seen) - held:
        raise UserError(
            f"data.holdout holds out all {len(seen)} tasks, so nothing is left to train on; name fewer in "
            "tasks, task_file, datasets or number"
        )
    if holdout.whole_datasets:
        refused |= {d for name in held & set(seen) for d in seen[name].datasets}

    trained = {name: seen[name] for name in sorted(set(seen) - held)}
    evaluated = {
        n: frozenset(seen[n].smallest()[: seen[n].of_sample(holdout.max_eval_per_task)])
        for n in sorted(held & set(seen))
    }
    taken: set[str] = {
        r for n, keys in evaluated.items() for key in keys for r in seen[n].inputs[key].records
    }
    inputs, chosen = _draw_inputs(trained, holdout, validation, refused, taken)
    notes = [
        *_short_of(trained, inputs, holdout, "holdout"),
        *_short_of(trained, chosen, validation, "validation"),
    ]
    notes += _without_task(given, seen, uses)
    drawn = [seen[n].inputs[key] for part in (inputs, chosen) for n, keys in part.items() for key in keys]
    drawn += [i for task in given.values() for i in task.inputs.values()]
    ids = taken.union(*(i.ids | i.records for i in drawn))
    instructions = {name: task.instructions.every.items() for name, task in seen.items()}
    return Holdout(
        tasks=frozenset(held),
        inputs=inputs,
        validation_inputs=chosen,
        heldout_inputs=evaluated,
        uses={name: use for name, use in uses.items() if use != "heldout"},
        source_inputs=frozenset(key for task in given.values() for key in task.inputs),
        answers=frozenset().union(*(i.answers for i in drawn)),
        near=near_tasks(held, instructions, holdout.families, similarity=holdout.near_similarity),
        datasets=frozenset(fold(d) for d in refused),
        ids=frozenset(ids),
        copies=frozenset(f"{k:016x}" for n in held & set(seen) for k in seen[n].answered),
        instructions=_instructions(seen, held) - _instructions(seen, set(trained)),
        notes=tuple(notes),
    )


def _instructions(tasks: Mapping[str, _Task], names: AbstractSet[str]) -> frozenset[str]:
    """Return the words of the instructions of these tasks that were written, not generated."""
    texts = (text for n in names if n in tasks for text in tasks[n].instructions.every.items())
    return frozenset(" ".join(found) for text in texts if (found := words(text)[:COMPARED_WORDS]))


def _draw_inputs(
    trained: Mapping[str, _Task],
    holdout: HoldoutConfig,
    validation: ValidationConfig,
    refused: AbstractSet[str],
    taken: AbstractSet[str],
) -> tuple[dict[str, frozenset[str]], dict[str, frozenset[str]]]:
    """Return task -> keys of the inputs of `seen`, and of `validation`.

    What judges in any task, as the same input or through the same annotated record, chooses in none.
    """
    inputs: dict[str, frozenset[str]] = {}
    rest: dict[str, list[str]] = {}
    wanted: dict[str, int] = {}
    for name, task in trained.items():
        shown = frozenset().union(*(shown_keys(text) for text in task.instructions.before_inputs.items()))
        keys = [key for key in task.smallest(without=refused) if key not in shown]
        judged, chosen = _numbers(task, len(keys) // 2, holdout, validation)
        if judged:
            inputs[name] = frozenset(keys[:judged])
        rest[name], wanted[name] = keys[judged:], chosen
    judging: set[str] = set().union(*inputs.values())
    records = set(taken).union(*(trained[n].inputs[k].records for n, keys in inputs.items() for k in keys))
    out: dict[str, frozenset[str]] = {}
    for name, keys in rest.items():
        free = [k for k in keys if k not in judging and not trained[name].inputs[k].records & records]
        if found := free[: wanted[name]]:
            out[name] = frozenset(found)
    return inputs, out


def _numbers(task: _Task, room: int, holdout: HoldoutConfig, validation: ValidationConfig) -> tuple[int, int]:
    """Return how many inputs of a task judge and choose: what is asked for, or their parts of the `room` that there is."""
    judged, chosen = (
        task.of_sample(s.examples_per_task) if s.share is None else round(s.share * task.distinct)
        for s in (holdout, validation)
    )
    if judged + chosen <= room:
        return judged, chosen
    judged = min(room, round(room * judged / (judged + chosen)))
    return judged, room - judged if chosen else 0


def _short_of(
    trained: Mapping[str, _Task],
    got: Mapping[str, frozenset[str]],
    section: HoldoutConfig | ValidationConfig,
    name: str,
) -> list[str]:
    """Say which tasks have fewer inputs than were asked of them."""
    asked = section.examples_per_task
    whole = [t for t in trained if trained[t].share == 1]
    short = {t: len(got.get(t, ())) for t in whole if len(got.get(t, ())) < asked}
    if not short:
        return []
    task = min(short, key=lambda t: (short[t], t))
    said = (
        f"data.{name}.examples_per_task={asked} is more than {len(short)} of {len(trained)} trained tasks can give (half of a task's "
        f"inputs at most), so they give fewer; {task} gives {short[task]} of its {trained[task].distinct} inputs. Ask for fewer, or for a share"
    )
    return [said]


def _without_task(
    given: Mapping[str, _Task], seen: Mapping[str, _Task], uses: Mapping[str, SetName]
) -> list[str]:
    """Say which tasks of sources that are evaluated whole are trained by no source."""
    alone = sorted(set(given) - set(seen))
    if not alone:
        return []
    names = ", ".join(n for n, use in uses.items() if use != "heldout")
    said = (
        f"the sources {names} are said to hold trained tasks, but no source trains {len(alone)} of their tasks, such as {alone[0]!r}; "
        "name their tasks as in training with `task`, or set use=heldout if they are new tasks"
    )
    return [said]


def _named(patterns: Sequence[str], seen: dict[str, _Task]) -> set[str]:
    held: set[str] = set()
    for pattern in patterns:
        found = {t for t in seen if fnmatchcase(t, pattern)}
        if not found:
            raise UserError(
                f"data.holdout.tasks names {pattern!r}, which no source holds, so nothing would be held out by it; "
                f"check the name.{_suggest(pattern, seen)}"
            )
        held |= found
    return held


def _listed(task_file: str | None, seen: dict[str, _Task]) -> set[str]:
    if task_file is None:
        return set()
    listed = set(read_task_list(task_file))
    absent = sorted(listed - set(seen))
    if len(absent) == len(listed):
        raise UserError(
            f"data.holdout.task_file: none of the {len(listed)} tasks in {task_file} is in a source, so nothing would be "
            f"held out by it; its first is {absent[0]!r}.{_suggest(absent[0], seen)}"
        )
    if absent:
        logger().warning(
            "%d of %d tasks in %s are in no source, such as %s",
            len(absent),
            len(listed),
            task_file,
            absent[0],
        )
    return listed


def _matching(patterns: Sequence[str], datasets: set[str]) -> set[str]:
    matched: set[str] = set()
    for pattern in patterns:
        found = {d for d in datasets if fnmatchcase(fold(d), fold(pattern))}
        if not found:
            raise UserError(
                f"data.holdout.datasets names {pattern!r}, but no example comes from such a dataset, so nothing would be "
                f"held out by it; check the name, and that the source says `dataset`.{_suggest(pattern, datasets)}"
            )
        matched |= found
    return matched


def _drawn(number: int, candidates: Sequence[str], seed: int) -> set[str]:
    if number and number >= len(candidates):
        raise UserError(
            f"data.holdout.number={number}, but only {len(candidates)} tasks are not held out already, "
            f"so nothing would be left to train on; use at most {max(len(candidates) - 1, 0)}"
        )
    return set(sorted(candidates, key=lambda t: (derive(seed, "holdout", "tasks", t), t))[:number])


def _suggest(name: str, choices: Iterable[str]) -> str:
    names = sorted(choices)
    shown = f" Known: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}." if names else ""
    return nearest(name, names) or shown
