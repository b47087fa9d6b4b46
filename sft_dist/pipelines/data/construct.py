"""Config -> generated sets, from the training side of the sources only.

<data.dir>/construct/cache/                 every answer that was paid for, whatever set it was for; <teacher>/: of a named teacher
<data.dir>/construct/<set>/examples.jsonl   the set: data.sources.X={kind: examples, path: ...} trains on it
<data.dir>/construct/<set>/*.jsonl          stages, rejects; counts.json; selection/: what of the sources was used
<data.dir>/construct/launches.jsonl         what each launch sent and spent

What is held out is decided here as in `prepare`, over all sources but those that read a set that is not made yet.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from sft_dist.client import Cache, Client, Stats
from sft_dist.config import RunConfig
from sft_dist.config.construct import (
    AnsweredBase,
    AnswerSet,
    ConstrainSet,
    ConverseSet,
    EvolveSet,
    InstructWildSet,
    SelfInstructSet,
    SetConfig,
)
from sft_dist.config.sources import ExamplesSource
from sft_dist.config.user_files import PromptFile, read_user_file
from sft_dist.construct import (
    Made,
    SeedExample,
    Teacher,
    answer,
    constrained,
    converse,
    evolve,
    group_seeds,
    instructwild,
    self_instruct,
    training_only,
)
from sft_dist.construct.output import EXAMPLES
from sft_dist.construct.prompts import Prompts
from sft_dist.construct.verified import Verification
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import append_jsonl, expanded, fingerprint, remove_leftovers
from sft_dist.core.locks import take_lock
from sft_dist.core.records import Example
from sft_dist.holdout import Holdout, split
from sft_dist.selection.files import Selected, make_folder, seed_examples
from sft_dist.selection.sides import select
from sft_dist.sources import Source, open_source
from sft_dist.sources.base import FileSource

Progress = Callable[[str], None]


def construct(
    config: RunConfig, *, only: Sequence[str] = (), progress: Progress = lambda _: None
) -> dict[str, Made]:
    """Generate the sets of a config, or go on with them; what is finished is only written anew.

    Args:
        config: The run's config.
        only: Sets to make; all of them if empty.
        progress: Told what is being done.

    Raises:
        UserError: For anything wrong with config, sources, server or key, and when the budget is spent.
        UnavailableError: When the server is down; the same command goes on later.
    """
    sets = config.construct.sets
    if not sets:
        raise UserError(
            "construct.sets is empty, so there is nothing to generate; add one, such as "
            "construct.sets.mine.method=self_instruct construct.sets.mine.seeds=[SOURCE] construct.teacher.model=NAME"
        )
    for name in only:
        if name not in sets:
            raise UserError(
                f"construct.sets has no {name!r}.{nearest(name, sets) or ' It has: ' + ', '.join(sets)}"
            )
    root = Path(config.data.dir) / "construct"
    make_folder(root)
    with _locked(root):
        stats = Stats()
        try:
            return asyncio.run(_make(config, root, list(only) or list(sets), stats, progress))
        finally:
            append_jsonl(root / "launches.jsonl", {"time": time.time(), **stats.to_dict()})


async def _make(
    config: RunConfig, root: Path, names: list[str], stats: Stats, progress: Progress
) -> dict[str, Made]:
    made: dict[str, Made] = {}
    async with AsyncExitStack() as stack:
        clients: dict[str | None, Client] = {}
        for name in names:
            asked = config.construct.sets[name]
            options = (
                config.construct.teacher
                if asked.teacher is None
                else config.construct.teachers[asked.teacher]
            )
            assert options is not None
            if asked.teacher not in clients:
                folder = root / "cache" / (asked.teacher or "")
                limits = options.model_dump(exclude={"model", "endpoint", "extra"})
                client = Client(cache=Cache(folder), stats=stats, **limits)
                clients[asked.teacher] = await stack.enter_async_context(client)
            own = PromptFile()
            if asked.prompts is not None:
                own = read_user_file(asked.prompts, PromptFile, f"construct.sets.{name}.prompts")
            inputs = _Inputs(config, root, name, progress)

            def say(text: str, name: str = name) -> None:
                progress(f"{name}: {text} · {_spent(stats)}")

            teacher = Teacher(
                client=clients[asked.teacher],
                model=options.model,
                chat=options.endpoint == "chat",
                seed=config.seed,
                extra=options.extra,
                prompts=Prompts(own),
                progress=say,
                key="construct.teacher" if asked.teacher is None else f"construct.teachers.{asked.teacher}",
            )
            made[name] = await METHODS[asked.method](teacher, root / name, inputs)
    return made


class _Inputs:
    """The training examples and prompts that a set is made from."""

    def __init__(self, config: RunConfig, root: Path, name: str, progress: Progress) -> None:
        self.name = name
        self.config: SetConfig = config.construct.sets[name]
        sources, self._seeds = _open_sources(config, root, name, self.config)
        # scores may not be there yet, and a seed need not be among the best
        data = config.data.model_copy(update={"filters": config.data.filters.without_scores()})
        plain = config.model_copy(update={"data": data})
        selected: Selected = select(plain.data, sources, root / name / "selection", progress, seed=plain.seed)
        self.holdout = selected.holdout
        self._rare: set[str] | None = None
        self._selections = {seed: selected.sources[seed] for seed in self._seeds}
        if not any(s.kept + s.prompts for s in self._selections.values()):
            raise UserError(
                f"construct.sets.{name}.seeds ({', '.join(self._seeds)}) keep no training example and no prompt, because all of their "
                "records are held out, evaluated or dropped, so there is nothing to start from; name other sources, or look at "
                "data.holdout and data.filters"
            )

    def examples(self) -> Iterator[Example]:
        """Yield them in reading order; what is held out, filtered or unreadable is left out, and what is of no rare task.

        An evaluation input is left out even where `data.filters.eval_inputs` lets other tasks train on it.
        """
        most = self.config.rare_below
        if most is None:
            yield from self._all()
            return
        if self._rare is None:
            counts = Counter(example.task for example in self._all())
            self._rare = {task for task, n in counts.items() if n < most}
            if not self._rare:
                raise UserError(
                    f"construct.sets.{self.name}.rare_below={most} leaves no task of {', '.join(self._seeds)}: the rarest has "
                    f"{min(counts.values(), default=0)} examples, so there is nothing to start from; raise it"
                )
        yield from (example for example in self._all() if example.task in self._rare)

    def _all(self) -> Iterator[Example]:
        for name, source in self._seeds.items():
            for example in seed_examples(source, self._selections[name]):
                if split(example, self.holdout) == "train":
                    yield example

    def fingerprint(self) -> str:
        """Return 32 hex digits over them."""
        found: list[Any] = [
            [s.fingerprint(), self._selections[n].fingerprint] for n, s in self._seeds.items()
        ]
        return fingerprint(found if self.config.rare_below is None else [found, self.config.rare_below])

    def groups(self, most: int, label_field: str | None = None) -> list[SeedExample]:
        """Return them as seeds."""
        labels: dict[str, bool] = {}
        for source in self._seeds.values() if label_field else ():
            labels |= _labels(source, str(label_field))
        return group_seeds(self.examples(), self.holdout, labels=labels, most=most)

    def verification(self, options: AnsweredBase) -> Verification:
        """Return how the answers of this set are verified."""
        references: dict[str, tuple[str, ...]] | None = None
        if options.reference_field is not None:
            references = {}
            for source in self._seeds.values():
                references |= _references(source, options.reference_field)
        return Verification(
            verifiers=options.verify, samples=options.samples, keep=options.keep, references=references,
            reference_field=options.reference_field,
        )  # fmt: skip


async def _self_instruct(teacher: Teacher, folder: Path, inputs: _Inputs) -> Made:
    options = inputs.config
    assert isinstance(options, SelfInstructSet)
    seeds = inputs.groups(options.max_seeds, options.classification_field)
    values = options.model_dump(exclude={*SET_ONLY, "max_seeds", "classification_field"})
    return await self_instruct(teacher, folder, seeds, name=inputs.name, **values)


async def _instructwild(teacher: Teacher, folder: Path, inputs: _Inputs) -> Made:
    options = inputs.config
    assert isinstance(options, InstructWildSet)
    values = options.model_dump(exclude={*SET_ONLY, "max_seeds"})
    return await instructwild(teacher, folder, inputs.groups(options.max_seeds), name=inputs.name, **values)


async def _evolve(teacher: Teacher, folder: Path, inputs: _Inputs) -> Made:
    options = inputs.config
    assert isinstance(options, EvolveSet)
    values = options.model_dump(exclude=SET_ONLY)
    return await evolve(teacher, folder, inputs.examples(), inputs.holdout, name=inputs.name, **values)


async def _converse(teacher: Teacher, folder: Path, inputs: _Inputs) -> Made:
    options = inputs.config
    assert isinstance(options, ConverseSet)
    values = options.model_dump(exclude=SET_ONLY)
    return await converse(teacher, folder, inputs.examples(), inputs.holdout, name=inputs.name, **values)


async def _answer(teacher: Teacher, folder: Path, inputs: _Inputs) -> Made:
    options = inputs.config
    assert isinstance(options, AnswerSet)
    return await _answered(teacher, folder, inputs, inputs.examples, inputs.holdout, inputs.fingerprint())


async def _constrain(teacher: Teacher, folder: Path, inputs: _Inputs) -> Made:
    options = inputs.config
    assert isinstance(options, ConstrainSet)
    prompts = constrained(
        lambda: training_only(inputs.examples(), inputs.holdout),
        name=inputs.name,
        kinds=options.kinds,
        most=options.most_constraints,
        seed=teacher.seed,
    )
    drawn = [inputs.fingerprint(), inputs.name, options.kinds, options.most_constraints]
    # the seeds are checked; a kind of constraint may be a held-out task, and what has it is for the evaluation alone
    return await _answered(teacher, folder, inputs, prompts, Holdout(), fingerprint(drawn))


async def _answered(
    teacher: Teacher,
    folder: Path,
    inputs: _Inputs,
    examples: Callable[[], Iterator[Example]],
    holdout: Holdout,
    drawn: str,
) -> Made:
    options = inputs.config
    assert isinstance(options, AnsweredBase)
    values = options.model_dump(include={"count", "max_tokens", "sampling", "attempts"})
    verification = inputs.verification(options) if options.verifies else None
    return await answer(
        teacher,
        folder,
        examples,
        holdout,
        name=inputs.name,
        fingerprint=drawn,
        verification=verification,
        **values,
    )


SET_ONLY = {"method", "seeds", "teacher", "prompts", "rare_below"}  # no method's business
METHODS = {
    "self_instruct": _self_instruct,
    "instructwild": _instructwild,
    "evolve": _evolve,
    "answer": _answer,
    "constrain": _constrain,
    "converse": _converse,
}


def _open_sources(
    config: RunConfig, root: Path, name: str, options: SetConfig
) -> tuple[dict[str, Source], dict[str, Source]]:
    """Return all sources that exist before this set is made, and those that it is made from."""
    names = list(config.construct.sets)
    unmade = {(root / n / EXAMPLES).resolve() for n in names[names.index(name) :]}
    configs = {
        n: c
        for n, c in config.data.sources.items()
        if not (isinstance(c, ExamplesSource) and expanded(c.path).resolve() in unmade)
    }
    for seed in options.seeds:
        if seed not in configs:
            known = nearest(seed, configs) or f" Known: {', '.join(configs) or 'none'}."
            raise UserError(
                f"construct.sets.{name}.seeds names {seed!r}, which is no source of data.sources that exists before this set is made, "
                f"so there is nothing to start from.{known}"
            )
    sources = {n: open_source(n, c) for n, c in configs.items()}
    return sources, {seed: sources[seed] for seed in options.seeds}


def _labels(source: Source, field: str) -> dict[str, bool]:
    """Return which instructions are classifications, as far as the records of a source say so."""
    if not isinstance(source, FileSource):
        return {}  # the demo set, whose examples are no records
    return {
        " ".join(example.instruction.split()): raw.fields[field]
        for _, raw, made in source.read()
        if raw is not None and isinstance(raw.fields.get(field), bool)
        for example in made
        if isinstance(example, Example)
    }


def _references(source: Source, field: str) -> dict[str, tuple[str, ...]]:
    """Return what a field of a source's records holds, by id of their examples: a text, a number, or a list of them."""
    if not isinstance(source, FileSource):
        return {}
    out: dict[str, tuple[str, ...]] = {}
    for _, raw, made in source.read():
        value = None if raw is None else raw.fields.get(field)
        texts = tuple(
            str(v)
            for v in (value if isinstance(value, list) else [value])
            if isinstance(v, str | int | float)
        )
        out |= {example.id: texts for example in made if isinstance(example, Example) and texts}
    return out


def _spent(stats: Stats) -> str:
    tokens = stats.prompt_tokens + stats.completion_tokens
    failed = f", {stats.retries.total()} failed attempts" if stats.retries else ""
    return f"{stats.answered:,} answers bought ({tokens:,} tokens), {stats.cached:,} from the cache{failed}"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the folder for this process."""
    with (root / "lock").open("a+") as held:
        try:
            take_lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            raise UserError(
                f"{root} is in use by another launch ({held.read().strip() or 'unknown process'}), and two would buy the same answers "
                "twice; wait for it or stop it"
            ) from None
        held.truncate(0)
        held.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        held.flush()
        remove_leftovers(root, *(p for p in root.iterdir() if p.is_dir()), *root.glob("*/selection"))
        yield
