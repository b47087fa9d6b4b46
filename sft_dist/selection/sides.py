"""Sources -> which record goes where: trained on, evaluated, dropped, unreadable, a prompt. One byte a record.

Facts of every block come first (facts.py: in parallel, kept on disk). From them it is decided what is held out, and which
records may be duplicates (joins.py); blocks are judged, in parallel (judge.py); one pass in order decides between
duplicates and writes everything (ordered_pass.py). A store's key holds the selection of its own source only, so a new source
leaves the stores of the others valid (leakage aside: a new source may bring new evaluation examples).
"""

from __future__ import annotations

import fcntl
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sft_dist.config.data import DataConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import checksum, fingerprint
from sft_dist.core.locks import begin_reading, take_lock, without_readers
from sft_dist.core.process import logger
from sft_dist.core.records import Example
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.core.sets import SetName
from sft_dist.filters import filters_fingerprint
from sft_dist.filters.decontamination import ContaminationIndex
from sft_dist.holdout import Candidates, Holdout
from sft_dist.selection.across_records import ContaminationLog
from sft_dist.selection.facts import (
    FOLDER,
    BlockFacts,
    FactMaker,
    MakeFacts,
    Wanted,
    bytes_of,
    fact_rows,
    number_lines,
    read_block_facts,
    sketcher_of,
)
from sft_dist.selection.files import (
    Selected,
    facts_of_selection,
    make_folder,
    read_selected,
)
from sft_dist.selection.id_files import files_by_id
from sft_dist.selection.judge import (
    SAMPLED,
    FindEvaluated,
    Judge,
    ReadExamples,
)
from sft_dist.selection.ordered_pass import JUDGED, OrderedPass
from sft_dist.selection.workers import Workers
from sft_dist.sources import Source
from sft_dist.sources.base import blocks_of
from sft_dist.sources.task_files import read_task_list

VERSION = 5


def select(
    data: DataConfig,
    sources: dict[str, Source],
    folder: Path,
    progress: Callable[[str], None],
    *,
    seed: int,
    write: bool = True,
    facts: Path | None = None,
    part: tuple[int, int] = (0, 1),
) -> Selected:
    """Decide and select, or read back what an earlier call decided on the same input.

    With `write`, writes <folder>/selection.json, selection-<source>.npy, eval/{validation,seen,heldout}.jsonl,
    eval/near.json and rejects/<source>.jsonl.

    Args:
        data: The config's section.
        sources: By name, in the order of the config.
        folder: Where the selection goes.
        progress: Told what is being done.
        seed: The run's seed.
        write: False: refuse what is not there.
        facts: Folder of the facts; None: in data.dir, where every command finds them.
        part: (i, n): one of n slices of an array, which make the facts together; one of them decides, the others wait for it.

    Raises:
        UserError: When a held-out name matches nothing, a source has too many unreadable records, a score file is
            missing, or nothing is left.
    """
    key = _key(data, sources, seed)
    if found := read_selected(folder, key):
        return found
    if not write:
        raise UserError(
            f"{folder} was prepared with other sources, filters or hold-out since (or its selection is damaged), so what was trained "
            "on is not known there any more; run `sft-dist prepare --rebuild` with this run's config, or give every config a data.dir "
            "of its own"
        )
    make_folder(folder)
    before = facts_of_selection(folder)
    facts = facts or facts_folder(data)
    with Workers(data, sources) as workers:
        blocks = make_facts(data, sources, facts, workers, progress, seed=seed, part=part)
        if part[1] > 1:
            progress("waiting for the slice that selects")
            take_lock(workers.enter_context((folder / ".selecting").open("a")), fcntl.LOCK_EX)
            if found := read_selected(folder, key):
                return found
        progress("deciding what is held out")
        holdout = _hold_out(data, blocks, {n: s.share for n, s in sources.items()}, seed)
        for note in holdout.notes:
            logger().warning("%s", note)
        contamination, index = _evaluated(data, blocks, holdout, workers, progress, seed)
        judge = Judge(
            holdout=holdout,
            drop_eval_inputs=data.filters.eval_inputs,
            leaks=index,
            sketcher=sketcher_of(data),
            folder=folder / JUDGED / key,
        )
        ordered = OrderedPass(data, sources, folder, workers, contamination, judge, seed)
        selected = ordered.run(blocks, holdout, key, progress)
    if facts == facts_folder(data) and folder == facts.parent:  # not of a dry run, nor of what is constructed
        _remove_stale(facts, blocks, before)
    return selected


def facts_folder(data: DataConfig) -> Path:
    """Return where every command looks for the facts of this config's sources."""
    return Path(data.dir) / FOLDER


def make_facts(
    data: DataConfig,
    sources: Mapping[str, Source],
    folder: Path,
    workers: Workers,
    progress: Callable[[str], None],
    *,
    seed: int,
    part: tuple[int, int] = (0, 1),
    others: bool = True,
) -> dict[str, list[BlockFacts]]:
    """Make the facts that are missing; return those of every source, in order.

    Slices of an array begin with blocks of their own; one that is done goes on with what is missing then.

    Args:
        data: The config's section.
        sources: By name.
        folder: Of the facts.
        workers: Do it.
        progress: Told what is being done.
        seed: The run's seed.
        part: (i, n): begin with every n-th block, from the i-th.
        others: Whether to go on with the blocks of other parts; else those of this part alone are returned.
    """
    make_folder(folder)
    begin_reading(folder)
    maker = FactMaker.of(data, seed=seed)
    wanted = [
        Wanted(name, block, maker.path(folder, source, block), number)
        for name, source in sources.items()
        for number, block in enumerate(blocks_of(source))
    ]
    found: dict[Path, BlockFacts] = {}
    own_first = sorted(range(min(part[1], len(wanted))), key=lambda first: (first - part[0]) % part[1])
    turns = own_first if others else [part[0]]
    for own in turns:
        missing = []
        for w in wanted[own :: part[1]]:
            if facts := read_block_facts(w.source, w.block, w.path):
                found[w.path] = facts
            else:
                missing.append(w)
        size = sum(bytes_of(w.block) for w in missing)
        for done, (w, facts) in enumerate(workers(MakeFacts(maker), missing, size=size), 1):
            progress(f"reading {w.source}: block {done} of {len(missing)}")
            found[w.path] = facts
    out: dict[str, list[BlockFacts]] = {name: [] for name in sources}
    for w in wanted if others else wanted[part[0] :: part[1]]:
        out[w.source].append(found[w.path]._replace(block=w.block))
    return {name: number_lines(blocks) for name, blocks in out.items()}


def _hold_out(
    data: DataConfig, blocks: Mapping[str, list[BlockFacts]], shares: Mapping[str, float], seed: int
) -> Holdout:
    uses = evaluation_sources(data)
    candidates = Candidates(data.holdout, data.validation, uses=uses, shares=shares, seed=seed)
    for name, found in blocks.items():
        for facts in found:
            for row in fact_rows(facts):
                if row.asked:
                    candidates.add(row.asked)
            for task, lists in facts.about["instructions"].items():
                candidates.instructions(name, task).merge(lists)
    return candidates.decide()


def evaluation_sources(data: DataConfig) -> dict[str, SetName]:
    """Return the set that all examples of a source go to; sources that are trained on are not named."""
    return {name: s.use for name, s in data.sources.items() if s.use != "train"}


def _evaluated(
    data: DataConfig,
    blocks: Mapping[str, list[BlockFacts]],
    holdout: Holdout,
    workers: Workers,
    progress: Callable[[str], None],
    seed: int,
) -> tuple[ContaminationLog, ContaminationIndex | None]:
    """Return every evaluation example once, and their index with a sample of each source's training examples."""
    options = data.filters.leakage
    if options is None or not holdout.evaluated:
        return ContaminationLog(), None
    progress("collecting what is evaluated")
    evaluated: dict[str, Example] = {}
    samples: list[list[Example]] = []
    for name, found in blocks.items():
        size = sum(bytes_of(f.block) for f in found)
        sample: Sample[tuple[int, int]] = Sample(SAMPLED, derive(seed, "leakage", name))
        whole: list[Example] = []
        items = [(f, len(found) == 1) for f in found]
        for number, (_, collected) in enumerate(
            workers(FindEvaluated(holdout=holdout, seed=seed), items, size=size)
        ):
            for example in collected.evaluated:
                evaluated.setdefault(example.id, example)
            for example_id, row in collected.sampled:
                sample.add(example_id, (number, row))
            whole += collected.examples
        samples.append(whole or _sampled(found, sample.items(), workers, size))
    log = ContaminationLog(list(evaluated.values()))
    return log, ContaminationIndex(log.examples, training=samples, **options.model_dump())


def _sampled(
    blocks: Sequence[BlockFacts], places: Sequence[tuple[int, int]], workers: Workers, size: int
) -> list[Example]:
    """Return the examples at (block, row), in that order."""
    rows: dict[int, list[int]] = defaultdict(list)
    for number, row in places:
        rows[number].append(row)
    numbers = sorted(rows)
    examples: dict[tuple[int, int], Example] = {}
    read = workers(ReadExamples(), [(blocks[n], rows[n]) for n in numbers], size=size)
    for number, (_, found) in zip(numbers, read, strict=True):
        examples.update({(number, row): e for row, e in zip(rows[number], found, strict=True)})
    return [examples[place] for place in places]


def _remove_stale(
    folder: Path, blocks: Mapping[str, list[BlockFacts]], before: Mapping[str, set[str]]
) -> None:
    """Remove facts of these sources that neither this selection nor the one before was made of, unless somebody may be reading them."""
    with without_readers(folder) as alone:
        for name, found in blocks.items() if alone else ():
            used = {facts.path.name for facts in found} | before.get(name, set())
            for path in (folder / name).iterdir():
                if path.name.split(".")[0] not in used:
                    path.unlink(missing_ok=True)


def _key(data: DataConfig, sources: dict[str, Source], seed: int) -> str:
    task_file = data.holdout.task_file
    return fingerprint(
        {
            "version": VERSION,
            "sources": {n: s.fingerprint() for n, s in sources.items()},
            "holdout": data.holdout.model_dump(mode="json"),
            "validation": data.validation.model_dump(mode="json"),
            "uses": evaluation_sources(data),
            "task_file": read_task_list(task_file) if task_file else None,
            "seed": seed,
            "filters": {name: filters_fingerprint(data.filters_of(name)) for name in sources},
            "eval_inputs": data.filters.eval_inputs,
            "max_bad_share": data.max_bad_share,
            **(
                {"licenses": {n: s.license for n, s in data.sources.items()}} if data.filters.licenses else {}
            ),
            "scores": [checksum(path) for files in files_by_id(data).values() for path in files],
        }
    )
