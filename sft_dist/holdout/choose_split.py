"""One pass over all sources -> the decision. It depends on what the sources hold and the seed, on no order."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase

import xxhash

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.process import logger
from sft_dist.core.records import Example
from sft_dist.core.rng import derive
from sft_dist.holdout.holdout import DATASET, Holdout, answer_key, fold, input_key
from sft_dist.sources.base import RECORD
from sft_dist.sources.task_files import read_task_list


@dataclass(slots=True)
class _Input:
    """One distinct input of a task: the examples that ask it, and where they come from."""

    ids: set[str]
    datasets: set[str]
    records: set[str]


class _Task:
    """What the pass keeps of one task: how much of it each dataset gave, and the inputs with the smallest hashes."""

    def __init__(self, seed: int, name: str, keep: int) -> None:
        self.seed = derive(seed, "holdout", "inputs", name)
        self.record_seed = derive(seed, "holdout", "inputs")
        self.keep = keep
        self.from_datasets: Counter[frozenset[str]] = Counter()
        self.inputs: dict[str, _Input] = {}
        self.heap: list[tuple[int, str]] = []  # (minus hash, input key): the largest kept hash is on top
        self.answered = array("Q")  # answer keys of all examples: 8 bytes each

    def add(self, example: Example) -> None:
        """Take one example into account; `keep` inputs are remembered, those of prompts without an answer are not."""
        datasets = frozenset(o.removeprefix(DATASET) for o in example.origin if o.startswith(DATASET))
        self.from_datasets[datasets] += 1
        if example.is_prompt:
            return
        key = input_key(example)
        self.answered.append(int(answer_key(example, key), 16))
        record = next((o for o in example.origin if o.startswith(RECORD)), None)
        if key not in self.inputs:
            # Tasks that ask the same records in other words choose the same ones: what any of them is evaluated on,
            # none of them may be trained on.
            chance, seed = (record, self.record_seed) if record else (key, self.seed)
            entry = (-xxhash.xxh3_64_intdigest(chance.encode(), seed=seed), key)
            if len(self.heap) < self.keep:
                heapq.heappush(self.heap, entry)
            elif entry > self.heap[0]:
                del self.inputs[heapq.heapreplace(self.heap, entry)[1]]
            else:
                return
            self.inputs[key] = _Input(set(), set(), set())
        self.inputs[key].ids.add(example.id)
        if record:
            self.inputs[key].records.add(record)
        self.inputs[key].datasets |= datasets

    @property
    def datasets(self) -> set[str]:
        """Every dataset that some example comes from."""
        return set().union(*self.from_datasets)

    def wholly_from(self, datasets: set[str]) -> bool:
        """Return whether each example comes from one of `datasets`."""
        return all(group & datasets for group in self.from_datasets)

    def smallest(self, *, without: AbstractSet[str] = frozenset()) -> list[str]:
        """Return the kept input keys by rising hash, but those that come from a dataset in `without`."""
        return [key for _, key in sorted(self.heap, reverse=True) if not self.inputs[key].datasets & without]


def decide(
    examples: Iterable[tuple[str, Example]],
    *,
    tasks: Sequence[str] = (),
    task_file: str | None = None,
    number: int = 0,
    examples_per_task: int = 0,
    max_eval_per_task: int = 100,
    datasets: Sequence[str] = (),
    whole_datasets: bool = False,
    seed: int,
) -> Holdout:
    """Decide what is never trained on.

    Args:
        examples: (source, example) of every source, each once.
        tasks: Task names or globs; each must match a task.
        task_file: A file with a task name a line. Names that no source holds stay in the decision; one must match.
        number: How many further tasks are held out: those with the smallest hash of seed and name.
        examples_per_task: Distinct inputs of each trained task that are for evaluation only: those with the smallest
            hash of seed, task and input; at most half of a task's inputs.
        max_eval_per_task: Distinct inputs of each held-out task that are evaluated, chosen likewise.
        datasets: Names or globs of underlying datasets. Tasks made wholly from them are held out; of other tasks the
            examples that come from them are refused.
        whole_datasets: Refuse everything from the datasets of the held-out tasks, not the tasks alone.
        seed: The run's seed.

    Raises:
        UserError: When a name matches nothing, or nothing is left to train on.
    """
    keep = max(2 * examples_per_task, max_eval_per_task)
    seen: dict[str, _Task] = {}
    for _, example in examples:
        task = seen.get(example.task) or seen.setdefault(example.task, _Task(seed, example.task, keep))
        task.add(example)

    held = _named(tasks, seen) | _listed(task_file, seen)
    refused = _matching(datasets, {d for task in seen.values() for d in task.datasets})
    held |= {name for name, task in seen.items() if refused and task.wholly_from(refused)}
    held |= _drawn(number, sorted(name for name in set(seen) - held if seen[name].inputs), seed)
    if seen and not set(seen) - held:
        raise UserError(
            f"data.holdout holds out all {len(seen)} tasks, so nothing is left to train on; name fewer in "
            "tasks, task_file, datasets or number"
        )
    if whole_datasets:
        refused |= {d for name in held & set(seen) for d in seen[name].datasets}

    inputs: dict[str, frozenset[str]] = {}
    ids: set[str] = set()
    for name in sorted(set(seen) - held):
        keys = seen[name].smallest(without=refused)
        # At most half of the task: a task of few inputs would else have nothing left to learn from.
        if chosen := keys[: min(examples_per_task, len(keys) // 2)]:
            inputs[name] = frozenset(chosen)
            for key in chosen:
                ids |= seen[name].inputs[key].ids | seen[name].inputs[key].records
    evaluated = {n: frozenset(seen[n].smallest()[:max_eval_per_task]) for n in sorted(held & set(seen))}
    ids.update(r for n, keys in evaluated.items() for key in keys for r in seen[n].inputs[key].records)
    return Holdout(
        tasks=frozenset(held),
        inputs=inputs,
        heldout_inputs=evaluated,
        datasets=frozenset(fold(d) for d in refused),
        ids=frozenset(ids),
        copies=frozenset(f"{k:016x}" for n in held & set(seen) for k in seen[n].answered),
    )


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
