"""Verdicts on every block -> the selection: one pass in order decides between duplicates and keeps the first.

Writes the codes of each source, the evaluation sets, and every rejected record with its reason; the state comes last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_dist.config.data import DataConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import atomic_path, write_json
from sft_dist.core.records import BadRecord, Drop
from sft_dist.core.sets import NEAR, SETS
from sft_dist.filters.near_duplicates import NearDuplicates
from sft_dist.holdout import Holdout, Side
from sft_dist.selection.across_records import (
    ContaminationLog,
    CrossRecordFilter,
    near_index,
)
from sft_dist.selection.by_id import ByIdRules, LeftOut, cells_of
from sft_dist.selection.facts import (
    BlockFacts,
    bytes_of,
    ranked,
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
    reject,
    selection_fingerprint,
    write_codes,
    write_selected,
)
from sft_dist.selection.joins import Common, common_rows
from sft_dist.selection.judge import (
    Judge,
    Judged,
    ReadBodies,
    read_verdicts,
)
from sft_dist.selection.workers import Workers
from sft_dist.sources import Source

JUDGED = "judged"  # folder of verdicts, as long as the selection is being made
MANY_ROWS = 1 << 20  # from which on equal records are looked for on disk, not in memory


class _Decided(NamedTuple):
    """What becomes of a block: a code a record, why and by which text records are left out, texts that are to be read yet."""

    facts: BlockFacts
    codes: bytearray
    sides: dict[int, tuple[Side | Drop | None, str, str | None]]  # row -> side (None: unreadable), id, body
    tasks: set[str]


class OrderedPass:
    """Decides over all verdicts, in the order of sources and records."""

    def __init__(
        self,
        data: DataConfig,
        sources: Mapping[str, Source],
        folder: Path,
        workers: Workers,
        contamination: ContaminationLog,
        judge: Judge,
        seed: int,
    ) -> None:
        self.data, self.sources, self.folder = data, sources, folder
        self.workers, self.contamination, self.judge = workers, contamination, judge
        self.seed = seed
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
                        exact=data.filters.exact_duplicates,
                    )
                    selections[name], first_bad = self._source(
                        found, common, first, cross_filter, sets, rejects
                    )
                first += sum(f.rows for f in found)
                # after the rejects are written: they show why
                _check_source(data, self.sources[name], selections[name], first_bad)
        rows = {name: sum(f.rows for f in found) for name, found in blocks.items()}
        whole = sum(n / self.sources[name].share for name, n in rows.items())
        share = sum(rows.values()) / max(1.0, whole)
        rules = ByIdRules(data, blocks, self.folder, threads=self._threads, seed=self.seed, share=share)
        if rules:
            self._leave_out(rules, blocks, selections)
        for name, selection in selections.items():
            write_codes(self.folder, name, selection.codes)
        write_json(self.folder / "eval" / NEAR, dict(sorted(holdout.near.items())))
        selected = Selected(
            holdout=holdout,
            sources=selections,
            contaminated=self.contamination.contaminated(),
            id_files=rules.files,
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
            threads=self._threads,
            folder=self.folder,
        )

    @property
    def _threads(self) -> int:
        return self.data.processes or len(os.sched_getaffinity(0))

    def _leave_out(
        self, rules: ByIdRules, blocks: Mapping[str, list[BlockFacts]], selections: dict[str, Selection]
    ) -> None:
        """Take from the selections what the rules by id leave out; it joins the rejects."""
        trained = np.concatenate([s.codes == TRAIN for s in selections.values()])
        cells, names = cells_of(blocks)
        dropped: dict[str, Counter[str]] = defaultdict(Counter)
        for left in rules(trained, cells, names):
            first = 0
            for name, found in blocks.items():
                dropped[name] += self._reject_left(name, found, first, left)
                first += sum(f.rows for f in found)
        first = 0
        for name, selection in selections.items():
            own = slice(first, first := first + selection.read)
            codes = np.where((selection.codes == TRAIN) & ~trained[own], np.uint8(DROPPED), selection.codes)
            tasks = tuple(sorted({names[c][1] for c in np.unique(cells[own][trained[own]]).tolist()}))
            selections[name] = replace(
                selection,
                codes=codes,
                tasks=tasks,
                dropped=selection.dropped | dropped[name],
                fingerprint=selection_fingerprint(codes, tasks),
            )
            if self.data.filters.budget is None:  # it may keep nothing of a source
                _check_source(self.data, self.sources[name], selections[name], None)

    def _reject_left(
        self, name: str, blocks: Sequence[BlockFacts], first: int, left: LeftOut
    ) -> Counter[str]:
        """Write what a rule leaves out of one source, whose rows begin at `first`; return how many by reason."""
        starts = np.cumsum([first, *(f.rows for f in blocks)])
        cuts = np.searchsorted(left.places, starts).tolist()
        rows = [
            (left.places[a:b] - start).tolist()
            for a, b, start in zip(cuts, cuts[1:], starts.tolist(), strict=False)
        ]
        counts: Counter[str] = Counter()
        if cuts[0] == cuts[-1]:
            return counts
        size = sum(bytes_of(f.block) for f, own in zip(blocks, rows, strict=True) if own)
        # Not aside: as long as no state is written, none of these files counts.
        with (self.folder / "rejects" / f"{name}.jsonl").open(
            "a", encoding="utf-8", errors="backslashreplace"
        ) as file:
            read = self.workers(ReadBodies(), list(zip(blocks, rows, strict=True)), size=size)
            for ((_, own), bodies), start in zip(read, starts.tolist(), strict=False):
                for row in own:
                    drop = left.drop(start + row)
                    counts[drop.reason] += 1
                    reject(file, drop, bodies[row])
        return counts

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
        why = ", ".join(f"{reason} {n:,}" for reason, n in selection.dropped.items()) or "unreadable"
        raise UserError(
            f"data.sources.{source.name}: none of its {selection.read} records is kept ({why}), so it adds nothing; "
            "look at data.filters, or remove the source"
        )


def _open(stack: ExitStack, path: Path) -> IO[str]:
    """Open a text file that appears when the stack ends without an error."""
    aside = stack.enter_context(atomic_path(path))
    return stack.enter_context(aside.open("w", encoding="utf-8", errors="backslashreplace"))
