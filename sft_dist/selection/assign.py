"""Sources -> which record goes where: trained on, evaluated, dropped, unreadable, a prompt. One byte a record.

Streaming passes. The first decides what is held out (it needs to see every task); with `filters.leakage` the next one
collects what is evaluated; the last applies everything, writes the evaluation sets, and keeps every rejected record
with its reason. A store's key holds the selection of its own source only, so a new source leaves the stores of the
others valid (leakage aside: a new source may bring new evaluation examples).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import IO

import numpy as np

from sft_dist.config.data import DataConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import atomic_path, checksum, fingerprint, write_json
from sft_dist.core.process import logger
from sft_dist.core.records import BadRecord, Drop, Example, example_to_dict
from sft_dist.core.rng import derive
from sft_dist.core.sample import Sample
from sft_dist.core.sets import NEAR, SETS, SetName
from sft_dist.filters import build_filters, filters_fingerprint
from sft_dist.filters.decontamination import ContaminationIndex
from sft_dist.filters.near_duplicates import NearDuplicates, Sketcher
from sft_dist.holdout import Holdout, decide, split
from sft_dist.holdout.holdout import Side
from sft_dist.selection.across_records import (
    ContaminationLog,
    CrossRecordFilter,
    near_index,
    quality_of,
    scores_path,
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
from sft_dist.selection.per_record import FilterPool, RecordFilter
from sft_dist.sources import Source
from sft_dist.sources.task_files import read_task_list

VERSION = 5
SAMPLED = 2000  # training examples of each source that show what is template
LEFTOVER_S = 6 * 3600.0  # since its last write: nobody writes this file any more


def select(
    data: DataConfig,
    sources: dict[str, Source],
    folder: Path,
    progress: Callable[[str], None],
    *,
    seed: int,
    write: bool = True,
) -> Selected:
    """Decide and select, or read back what an earlier call decided on the same input.

    With `write`, writes <folder>/selection.json, selection-<source>.npy, eval/{validation,seen,heldout}.jsonl,
    eval/near.json and rejects/<source>.jsonl.

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
    options = data.filters
    progress("deciding what is held out")
    sizes: Counter[str] = Counter()
    holdout = decide(
        _counted(sources, sizes), data.holdout, data.validation, uses=evaluation_sources(data), seed=seed
    )
    for note in holdout.notes:
        logger().warning("%s", note)
    contamination = ContaminationLog()
    index = None
    if options.leakage is not None and holdout.evaluated:
        progress("collecting what is evaluated")
        evaluated, training = _sides(sources, holdout, seed)
        contamination = ContaminationLog(evaluated)
        index = ContaminationIndex(evaluated, training=training, **options.leakage.model_dump())
    record_filter = RecordFilter(
        holdout=holdout,
        drop_eval_inputs=options.eval_inputs,
        rules={name: build_filters(data.filters_of(name)) for name in sources},
        leaks=index,
        sketcher=Sketcher(**options.near_duplicates.model_dump(exclude={"across_sources"}))
        if options.near_duplicates
        else None,
    )
    selections: dict[str, Selection] = {}
    # From here on the files of an earlier pass are replaced one by one: until all are, none of them counts.
    (folder / STATE).unlink(missing_ok=True)
    _remove_leftovers(folder)
    with ExitStack() as stack:
        sets: dict[Side, IO[str]] = {name: _open(stack, folder / "eval" / f"{name}.jsonl") for name in SETS}
        filter_pool = stack.enter_context(
            FilterPool(record_filter, records=sizes.total(), processes=data.processes)
        )
        written: set[str] = set()
        near: NearDuplicates | None = None
        for name, source in sources.items():
            progress(f"selecting from {name}")
            if options.near_duplicates and (near is None or not options.near_duplicates.across_sources):
                near = stack.enter_context(closing(near_index(data)))
            with ExitStack() as own:
                rejects = _open(own, folder / "rejects" / f"{name}.jsonl")
                quality = quality_of(data, name)
                cross_filter = CrossRecordFilter(
                    source.name, contamination, near, quality, exact=options.exact_duplicates
                )
                selections[name], first_bad = _apply(
                    source, filter_pool, cross_filter, sets, written, rejects
                )
            _check_source(
                data, source, selections[name], first_bad
            )  # after the rejects are written: they show why
            write_codes(folder, name, selections[name].codes)
    write_json(folder / "eval" / NEAR, dict(sorted(holdout.near.items())))
    selected = Selected(holdout=holdout, sources=selections, contaminated=contamination.contaminated())
    write_selected(folder, key, selected)
    return selected


def evaluation_sources(data: DataConfig) -> dict[str, SetName]:
    """Return the set that all examples of a source go to; sources that are trained on are not named."""
    return {name: s.use for name, s in data.sources.items() if s.use != "train"}


def _counted(sources: dict[str, Source], sizes: Counter[str]) -> Iterator[tuple[str, Example]]:
    for name, source in sources.items():
        for record in source:
            sizes[name] += 1
            if isinstance(record, Example):
                yield name, record


def _sides(
    sources: dict[str, Source], holdout: Holdout, seed: int
) -> tuple[list[Example], list[list[Example]]]:
    """Return every evaluation example once, and a sample of each source's training examples."""
    evaluated: dict[str, Example] = {}
    samples = []
    for name, source in sources.items():
        sample: Sample[Example] = Sample(SAMPLED, derive(seed, "leakage", name))
        for record in source:
            if isinstance(record, BadRecord):
                continue
            side = split(record, holdout)
            if side == "train":
                sample.add(record.id, record)
            elif not isinstance(side, Drop):
                evaluated.setdefault(record.id, record)
        samples.append(sample.items())
    return list(evaluated.values()), samples


def _apply(
    source: Source,
    filter_pool: FilterPool,
    cross_filter: CrossRecordFilter,
    sets: dict[Side, IO[str]],
    written: set[str],
    rejects: IO[str],
) -> tuple[Selection, BadRecord | None]:
    """Return the selection of a source, and its first record that cannot be read."""
    codes = bytearray()
    tasks: set[str] = set()
    dropped: Counter[str] = Counter()
    first_bad: BadRecord | None = None
    for record, verdict in filter_pool(source):
        if isinstance(record, BadRecord):
            codes.append(UNREADABLE)
            first_bad = first_bad or record
            reject(rejects, Drop("unreadable", f"{record.file}, line {record.line}: {record.reason}"), record)
            continue
        side = verdict.side
        assert side is not None
        if side == "train":
            side = cross_filter(record, verdict) or side
        if isinstance(side, Drop):
            codes.append(DROPPED)
            dropped[side.reason] += 1
            reject(rejects, side, record)
        elif side == "train" and record.is_prompt:
            codes.append(PROMPT)
        elif side == "train":
            codes.append(TRAIN)
            tasks.add(record.task)
        else:
            codes.append(EVALUATE)
            if record.id not in written:  # a repeated record is one evaluation example
                written.add(record.id)
                sets[side].write(json.dumps(example_to_dict(record), ensure_ascii=False) + "\n")
    array = np.frombuffer(bytes(codes), np.uint8)
    selection = Selection(
        codes=array,
        tasks=tuple(sorted(tasks)),
        read=len(array),
        evaluation=int((array == EVALUATE).sum()),
        unreadable=int((array == UNREADABLE).sum()),
        prompts=int((array == PROMPT).sum()),
        dropped=dict(dropped),
        skipped={reason: dict(sorted(tasks.items())) for reason, tasks in sorted(source.skipped.items())},
        fingerprint=selection_fingerprint(array, tasks),
    )
    return selection, first_bad


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


def _remove_leftovers(folder: Path) -> None:
    """Remove what launches that were killed left beside the files they were writing; other nodes may be writing now."""
    for place in (folder, folder / "eval", folder / "rejects"):
        for path in place.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_S:
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
