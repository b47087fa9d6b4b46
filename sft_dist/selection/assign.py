"""Sources -> which record goes where: trained on, evaluated, dropped, unreadable, a prompt. One byte a record.

Facts of every block come first (facts.py: in parallel, kept on disk). From them it is decided what is held out, and which
records may be duplicates (joins.py); blocks are judged, in parallel (judge.py); one pass in order decides between
duplicates, writes the evaluation sets, and keeps every rejected record with its reason. A store's key holds the selection of its own source only, so a new source leaves the stores of the
others valid (leakage aside: a new source may bring new evaluation examples).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_dist.config.data import DataConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import atomic_path, checksum, fingerprint, remove_leftovers, write_json
from sft_dist.core.locks import take_lock
from sft_dist.core.process import logger
from sft_dist.core.records import BadRecord, Drop, Example
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.core.sets import NEAR, SETS, SetName
from sft_dist.filters import filters_fingerprint
from sft_dist.filters.decontamination import ContaminationIndex
from sft_dist.filters.near_duplicates import NearDuplicates
from sft_dist.holdout import Candidates, Holdout, Side
from sft_dist.selection.across_records import (
    ContaminationLog,
    CrossRecordFilter,
    near_index,
    quality_of,
    scores_path,
)
from sft_dist.selection.facts import (
    FOLDER,
    BlockFacts,
    FactMaker,
    MakeFacts,
    Wanted,
    bytes_of,
    fact_rows,
    number_lines,
    ranked,
    read_block_facts,
    sketcher_of,
)
from sft_dist.selection.files import (
    DROPPED,
    EVALUATE,
    PROMPT,
    STATE,
    TRAIN,
    UNREADABLE,
    Selected,
    Selection,
    make_folder,
    read_selected,
    reject,
    selection_fingerprint,
    write_codes,
    write_selected,
)
from sft_dist.selection.joins import SPILL, Common, common_rows
from sft_dist.selection.judge import (
    SAMPLED,
    FindEvaluated,
    Judge,
    Judged,
    ReadBodies,
    ReadExamples,
    read_verdicts,
)
from sft_dist.selection.workers import Workers
from sft_dist.sources import Source
from sft_dist.sources.base import blocks_of
from sft_dist.sources.task_files import read_task_list

VERSION = 5
JUDGED = "judged"  # folder of verdicts, as long as the selection is being made
MANY_ROWS = 1 << 20  # from which on equal records are looked for on disk, not in memory
LEFTOVER_S = 6 * 3600.0  # since its last write: nobody writes this file any more


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
    facts = facts or facts_folder(data)
    with Workers(data, sources) as workers:
        blocks = make_facts(data, sources, facts, workers, progress, seed=seed, part=part)
        if part[1] > 1:
            progress("waiting for the slice that selects")
            take_lock(workers.enter_context((folder / ".selecting").open("a")), fcntl.LOCK_EX)
            if found := read_selected(folder, key):
                return found
        progress("deciding what is held out")
        holdout = _hold_out(data, blocks, seed)
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
        selection = _Selecting(data, sources, folder, workers, contamination, judge)
        selected = selection.run(blocks, holdout, key, progress)
    _remove_stale(facts, blocks)
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
    maker = FactMaker.of(data, seed=seed)
    wanted = [
        Wanted(name, block, maker.path(folder, source, block), number)
        for name, source in sources.items()
        for number, block in enumerate(blocks_of(source))
    ]
    found: dict[Path, BlockFacts] = {}
    turns = [(part[0] + turn) % part[1] for turn in range(part[1] if others else 1)]
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


def _hold_out(data: DataConfig, blocks: Mapping[str, list[BlockFacts]], seed: int) -> Holdout:
    candidates = Candidates(data.holdout, data.validation, uses=evaluation_sources(data), seed=seed)
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


class _Decided(NamedTuple):
    """What becomes of a block: a code a record, why and by which text records are left out, texts that are to be read yet."""

    facts: BlockFacts
    codes: bytearray
    sides: dict[int, tuple[Side | Drop | None, str, str | None]]  # row -> side (None: unreadable), id, body
    tasks: set[str]


class _Selecting:
    """One pass over all verdicts, in order."""

    def __init__(
        self,
        data: DataConfig,
        sources: Mapping[str, Source],
        folder: Path,
        workers: Workers,
        contamination: ContaminationLog,
        judge: Judge,
    ) -> None:
        self.data, self.sources, self.folder = data, sources, folder
        self.workers, self.contamination, self.judge = workers, contamination, judge
        self.written: set[str] = set()

    def run(
        self,
        blocks: Mapping[str, list[BlockFacts]],
        holdout: Holdout,
        key: str,
        progress: Callable[[str], None],
    ) -> Selected:
        """Write everything, the state last."""
        data, rule = self.data, self.data.filters.near_duplicates
        common = self._common(blocks)
        # From here on the files of an earlier pass are replaced one by one: until all are, none of them counts.
        (self.folder / STATE).unlink(missing_ok=True)
        remove_leftovers(self.folder, self.folder / "eval", self.folder / "rejects", older_s=LEFTOVER_S)
        for place in self.folder.glob(f"{SPILL}*"):
            if time.time() - place.stat().st_mtime > LEFTOVER_S:
                shutil.rmtree(place, ignore_errors=True)
        selections: dict[str, Selection] = {}
        first = 0
        with ExitStack() as stack:
            sets: dict[Side, IO[str]] = {n: _open(stack, self.folder / "eval" / f"{n}.jsonl") for n in SETS}
            near: NearDuplicates | None = None
            for name, found in blocks.items():
                progress(f"selecting from {name}")
                if rule and (near is None or not rule.across_sources):
                    near = stack.enter_context(closing(near_index(data)))
                with ExitStack() as own:
                    rejects = _open(own, self.folder / "rejects" / f"{name}.jsonl")
                    cross_filter = CrossRecordFilter(
                        name,
                        self.contamination,
                        near,
                        quality_of(data, name),
                        exact=data.filters.exact_duplicates,
                    )
                    selections[name], first_bad = self._source(
                        found, common, first, cross_filter, sets, rejects
                    )
                first += sum(f.rows for f in found)
                # after the rejects are written: they show why
                _check_source(data, self.sources[name], selections[name], first_bad)
                write_codes(self.folder, name, selections[name].codes)
        write_json(self.folder / "eval" / NEAR, dict(sorted(holdout.near.items())))
        selected = Selected(
            holdout=holdout, sources=selections, contaminated=self.contamination.contaminated()
        )
        # The selection is about to say it; a launch that is killed here would leave them for good afterwards.
        shutil.rmtree(self.folder / JUDGED, ignore_errors=True)
        write_selected(self.folder, key, selected)
        return selected

    def _common(self, blocks: Mapping[str, list[BlockFacts]]) -> Common:
        rule = self.data.filters.near_duplicates
        every = [facts for found in blocks.values() for facts in found]
        return common_rows(
            every,
            equal=self.data.filters.exact_duplicates and sum(f.rows for f in every) >= MANY_ROWS,
            bands=self.judge.sketcher.bands if self.judge.sketcher else 0,
            across_sources=bool(rule and rule.across_sources),
            memory_gb=self.data.memory_gb,
            threads=self.data.processes or len(os.sched_getaffinity(0)),
            folder=self.folder,
        )

    def _source(
        self,
        blocks: Sequence[BlockFacts],
        common: Common,
        first: int,
        cross_filter: CrossRecordFilter,
        sets: Mapping[Side, IO[str]],
        rejects: IO[str],
    ) -> tuple[Selection, BadRecord | None]:
        """Return the selection of a source, and its first record that cannot be read."""
        size = sum(bytes_of(f.block) for f in blocks)
        starts = np.cumsum([first, *(f.rows for f in blocks)]).tolist()
        items = [
            Judged(f, None if common.banded is None else common.banded[start : start + f.rows])
            for f, start in zip(blocks, starts, strict=False)
        ]
        judged = (
            self._decide(item, path, common.equal[start:] if common.equal is not None else None, cross_filter)
            for (item, path), start in zip(self.workers(self.judge, items, size=size), starts, strict=False)
        )
        codes = bytearray()
        tasks: set[str] = set()
        dropped: Counter[str] = Counter()
        first_bad: BadRecord | None = None
        decided: deque[_Decided] = deque()

        def unread() -> Iterator[tuple[BlockFacts, list[int]]]:
            for block in judged:
                decided.append(block)
                yield block.facts, [row for row, (_, _, body) in block.sides.items() if body is None]

        for _, bodies in self.workers(ReadBodies(), unread(), size=size):
            block = decided.popleft()
            codes += block.codes
            tasks |= block.tasks
            for row, (side, example_id, known) in block.sides.items():
                body = bodies[row] if known is None else known
                if side is None:
                    bad = BadRecord(**json.loads(body))
                    first_bad = first_bad or bad
                    reject(rejects, Drop("unreadable", f"{bad.file}, line {bad.line}: {bad.reason}"), body)
                elif isinstance(side, Drop):
                    dropped[side.reason] += 1
                    reject(rejects, side, body)
                elif example_id not in self.written:  # a repeated record is one evaluation example
                    self.written.add(example_id)
                    sets[side].write(body + "\n")
        array = np.frombuffer(bytes(codes), np.uint8)
        selection = Selection(
            codes=array,
            tasks=tuple(sorted(tasks)),
            read=len(array),
            evaluation=int((array == EVALUATE).sum()),
            unreadable=int((array == UNREADABLE).sum()),
            prompts=int((array == PROMPT).sum()),
            dropped=dict(dropped),
            skipped=_skipped(blocks),
            blocks=tuple((f.path.name, f.rows) for f in blocks),
            fingerprint=selection_fingerprint(array, tasks),
        )
        return selection, first_bad

    def _decide(
        self,
        item: Judged,
        path: Path,
        equal: NDArray[np.bool_] | None,
        cross_filter: CrossRecordFilter,
    ) -> _Decided:
        out = _Decided(item.facts, bytearray(), {}, set())
        bands = self.judge.sketcher.bands if self.judge.sketcher else 0
        found = ranked(item.facts, bands=bands, banded=item.rows, equal=equal)
        for row, (record, verdict) in enumerate(zip(found, read_verdicts(path), strict=True)):
            side = verdict.side
            if side is None or record is None:
                out.codes.append(UNREADABLE)
                out.sides[row] = None, "", verdict.body
                continue
            if side == "train":
                side = cross_filter(record, verdict) or side
            if side == "train":
                out.codes.append(PROMPT if record.is_prompt else TRAIN)
                if not record.is_prompt:
                    out.tasks.add(record.task)
            else:
                out.codes.append(DROPPED if isinstance(side, Drop) else EVALUATE)
                out.sides[row] = side, record.id, verdict.body
        return out


def _skipped(blocks: Sequence[BlockFacts]) -> dict[str, dict[str, int]]:
    """Return what the reader made no record of, by reason and task."""
    out: dict[str, Counter[str]] = defaultdict(Counter)
    for facts in blocks:
        for reason, tasks in facts.about["skipped"].items():
            out[reason].update(tasks)
    return {reason: dict(sorted(tasks.items())) for reason, tasks in sorted(out.items())}


def _check_source(
    data: DataConfig, source: Source, selection: Selection, first_bad: BadRecord | None
) -> None:
    share = selection.unreadable / max(1, selection.read)
    if first_bad and share > data.max_bad_share:
        raise UserError(
            f"data.sources.{source.name}: {selection.unreadable} of {selection.read} records cannot be read ({share:.1%}, more than "
            f"data.max_bad_share={data.max_bad_share:.1%}); the first is {first_bad.file}, line {first_bad.line}: "
            f"{first_bad.reason}. Mend the file or raise the limit; `sft-dist prepare` with this config lists them in rejects/ of data.dir"
        )
    if not selection.kept and not selection.evaluation and not selection.prompts:
        raise UserError(
            f"data.sources.{source.name}: none of its {selection.read} records is kept ({selection.dropped}), so it adds nothing; "
            "look at data.filters, or remove the source"
        )


def _open(stack: ExitStack, path: Path) -> IO[str]:
    """Open a text file that appears when the stack ends without an error."""
    aside = stack.enter_context(atomic_path(path))
    return stack.enter_context(aside.open("w", encoding="utf-8", errors="backslashreplace"))


def _remove_stale(folder: Path, blocks: Mapping[str, list[BlockFacts]]) -> None:
    """Remove facts of these sources that were of other content or settings; what is young another launch may be reading."""
    for name, found in blocks.items():
        used = {facts.path.name for facts in found}
        for path in (folder / name).iterdir():
            with suppress(FileNotFoundError):
                if path.name.split(".")[0] not in used and time.time() - path.stat().st_mtime > LEFTOVER_S:
                    path.unlink()


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
            "scores": _score_files(data, sources),
        }
    )


def _score_files(data: DataConfig, sources: dict[str, Source]) -> list[str]:
    """Return the content of the score files, as far as they are there and wanted."""
    if data.filters.quality is None:
        return []
    paths = [scores_path(data, name) for name in sources]
    return [checksum(path) if path.is_file() else "" for path in paths]
