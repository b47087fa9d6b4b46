"""Annotated records x the user's pattern pairs -> Example (Flan), for any family of tasks.

Which pairs ask a record, and with how many exemplars, depends on the seed, the record and the name of the pair alone: a pair that
is added later takes records of its own from the others and changes no further one. Pairs that `unseen_patterns` names are never
trained on; what they make of a record is kept with its example as `phrasings`, for the evaluation.
"""

from __future__ import annotations

import math
import random
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.config.user_files import (
    SPECIAL_SLOTS,
    FewShotLayout,
    Kind,
    PatternFile,
    PatternPair,
    read_user_file,
)
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import BadRecord, Example, Phrasing, single_turn
from sft_dist.core.rng import derive
from sft_dist.core.slots import SlotText
from sft_dist.sources.annotated_rows import AnnotatedRows
from sft_dist.sources.base import FILE_FIELD, FileSource, RecordError, chosen_names, data_name, record_origin
from sft_dist.sources.exemplars import ExemplarPools, check_pool
from sft_dist.sources.files.blocks import Block, Part
from sft_dist.sources.files.data_files import TEXT_CHARS, RawRecord
from sft_dist.sources.patterns.records import Answer, read_answer, text_at

_SHOWN = "__exemplars__"
_SUFFIX: dict[Kind, str] = {"answer": "", "cot": "/cot", "inversion": "/inversion"}
MOST_PHRASINGS = 3  # of one example


class PatternsReader(FileSource):
    """Reads annotated records and asks each through pattern pairs. Those that serve as exemplars, or repeat one, count as `exemplar`."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        patterns: str,
        subset: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: tuple[str, ...] | None = None,
        pattern_names: tuple[str, ...] = ("*",),
        unseen_patterns: tuple[str, ...] = (),
        patterns_per_record: int | None = 1,
        few_shot_share: float = 0.0,
        shots: int = 3,
        exemplar_pool: int = 32,
        seed: int = 0,
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.PatternsSource` for the meaning of the fields.

        Raises:
            UserError: When there are no records, the file of patterns cannot be used, a glob matches none, or the pool is too small.
        """
        key = f"data.sources.{name}"
        file = read_user_file(patterns, PatternFile, f"{key}.patterns")
        known = [p.name for p in file.patterns]
        chosen = chosen_names(known, pattern_names, key=f"{key}.pattern_names", what="pattern")
        unseen = (
            chosen_names(known, unseen_patterns, key=f"{key}.unseen_patterns", what="pattern")
            if unseen_patterns
            else set()
        )
        self._asking = [_Pair.of(p) for p in file.patterns if p.name in chosen - unseen]
        self._unseen = [_Pair.of(p) for p in file.patterns if p.name in chosen & unseen]
        if not self._asking:
            raise UserError(
                f"{key}: pattern_names and unseen_patterns leave none of {len(known)} patterns to train on, so nothing would be asked; allow more"
            )
        self._pool_size = exemplar_pool if few_shot_share else 0
        check_pool(name, self._pool_size, shots)
        self._file, self._per_record, self._few_shot, self._shots, self._seed = (
            file,
            patterns_per_record,
            few_shot_share,
            shots,
            seed,
        )
        self._slots = tuple(
            dict.fromkeys(
                s for p in (*self._asking, *self._unseen) for s in p.slots if s not in SPECIAL_SLOTS
            )
        )
        # what a record asks, the same for all of its patterns: the fields that their inputs show, but for the answer
        inputs = [p for p in file.patterns if p.kind != "inversion"] or file.patterns
        self._question = tuple(
            dict.fromkeys(s for p in inputs for s in SlotText.parse(p.input).names if s not in SPECIAL_SLOTS)
        )
        self._rows = AnnotatedRows(name, path, subset, split, revision, columns)
        super().__init__(
            name,
            self._rows.files,
            task=task,
            dataset=dataset,
            patterns=file.model_dump(exclude={"metric", "cot_metric"}),
            pattern_names=sorted(chosen),
            unseen=sorted(unseen),
            per_record=patterns_per_record,
            few_shot_share=few_shot_share,
            shots=shots,
            exemplar_pool=self._pool_size,
            seed=seed,
            columns=columns,
            rows=self._rows.fingerprint,
        )

    def blocks(self) -> list[Block]:
        """Return the blocks of its records; one where the first records are exemplars."""
        if self._pool_size:
            return [()]
        return super().blocks() if self._rows.hub is None else self._rows.hub.blocks()

    def block_fingerprint(self, block: Block) -> str:
        """Return 32 hex digits over options, patterns and the content of a block."""
        if self._rows.hub is None or not block:
            return super().block_fingerprint(block)
        return fingerprint([self.fingerprint(), self._rows.hub.block_fingerprint(block)])

    def records(
        self,
        parts: Sequence[Part] | None = None,
        wanted: Container[int] | None = None,  # noqa: ARG002  any may be an exemplar
    ) -> Iterator[RawRecord | BadRecord | None]:
        """Yield the records that are not exemplars, each with the exemplars of its task."""
        if not self._pool_size:
            yield from self._rows.read(parts)
            return
        pools = ExemplarPools[_Exemplar](self._pool_size)
        for raw in self._rows.read(None):
            if isinstance(raw, BadRecord):
                yield raw
                continue
            fields = {**raw.fields, FILE_FIELD: data_name(raw.file)}
            try:
                seen = self._read(raw.fields)
                task, origin = self.task_of(fields), self.origin_of(fields)
            except RecordError as error:
                text = repr(raw.fields)[:TEXT_CHARS]
                yield BadRecord(file=raw.file, line=raw.line, reason=str(error), text=text)
                continue
            if pools.takes(task, seen.question, lambda s=seen, t=task, o=origin: self._exemplar(s, t, o)):  # type: ignore[misc]
                self.skip("exemplar", task)
                continue
            yield raw._replace(fields={**raw.fields, _SHOWN: pools.of(task)})
        pools.check_left(self.name, "set few_shot_share to 0")

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the examples of a record, one a pattern."""
        exemplars: tuple[_Exemplar, ...] = fields.get(_SHOWN, ())
        record = self._read({k: v for k, v in fields.items() if k not in (FILE_FIELD, _SHOWN)})
        task, datasets = self.task_of(fields), self.origin_of(fields)
        for pair in self._drawn(record):
            kind = pair.kind
            chance = random.Random(derive(self._seed, "few_shot", record.origin, pair.name))
            shown: list[_Exemplar] = []
            if chance.random() < self._few_shot:
                usable = [e for e in exemplars if e.record.fits(pair)]
                shown = chance.sample(usable, min(chance.randint(1, self._shots), len(usable)))
            layout = chance.choice(self._file.few_shot)
            prompt, target = self._ask(record, pair, shown, layout)
            others = [
                self._ask(record, p, shown, layout) for p in self._unseen if p.kind == kind and record.fits(p)
            ]
            own = (*datasets, record.origin, *((f"task:{task}",) if _SUFFIX[kind] else ()))
            yield single_turn(
                task=task + _SUFFIX[kind],
                source=self.name,
                instruction=prompt,
                output=target,
                references=self._references(record, pair),
                origin=tuple(dict.fromkeys((*own, *(o for e in shown for o in e.origin)))),
                question=record.question or None,
                demonstrations=tuple(e.record.question for e in shown),
                choices=self._choices(record, pair),
                phrasings=tuple(Phrasing(*o) for o in others[:MOST_PHRASINGS]),
            )

    def task_metrics(self) -> dict[str, str]:
        """Return the metrics of the tasks, where the config names one task and the file of patterns says how they are judged."""
        task = self.name if self._task is None else self._task
        metric = self._file.metric or (
            "choice" if self._file.answer.labels or self._file.answer.choices else None
        )
        named = {task: metric, f"{task}/cot": self._file.cot_metric}
        return {} if "{" in task else {t: m for t, m in named.items() if m is not None}

    def _read(self, fields: Mapping[str, Any]) -> _Record:
        answer = read_answer(fields, self._file.answer)
        record = _Record(fields, answer, answer.slots(self._file.options), self._slots, self._question)
        if not any(record.fits(p) for p in self._asking):
            needs = sorted({s for p in self._asking for s in p.slots if not record.has(s)})
            raise RecordError(f"no pattern fits: the record has no {', '.join(needs)}")
        return record

    def _drawn(self, record: _Record) -> list[_Pair]:
        """Return the pairs that ask a record, those that are drawn first coming first."""
        fitting = [p for p in self._asking if record.fits(p)]
        if self._per_record is None:
            return fitting

        def waits(pair: _Pair) -> float:
            # exponential times: the first to ring is drawn by weight, whatever other pairs there are
            return (
                -math.log1p(-random.Random(derive(self._seed, "pattern", record.origin, pair.name)).random())
                / pair.weight
            )

        return sorted(fitting, key=waits)[: self._per_record]

    def _ask(
        self, record: _Record, pair: _Pair, shown: Sequence[_Exemplar], layout: FewShotLayout
    ) -> tuple[str, str]:
        """Return the prompt and the answer of a record under a pair, behind exemplars under the same pair."""
        target = pair.target.fill(record.slots).strip()
        if not shown:
            return pair.input.fill(record.slots).strip(), target
        example = SlotText.parse(layout.example)
        texts = [e.record for e in shown if e.record.fits(pair)]
        solved = [
            example.fill(
                {"input": pair.input.fill(r.slots).strip(), "target": pair.target.fill(r.slots).strip()}
            )
            for r in texts
        ]
        (before, _), (between, _) = example.parts[:2]
        asked = (before + pair.input.fill(record.slots).strip() + between).rstrip()
        return ("" if not layout.intro else layout.intro + "\n\n") + layout.gap.join([*solved, asked]), target

    def _references(self, record: _Record, pair: _Pair) -> tuple[str, ...]:
        if pair.kind != "answer" or len(record.answer.texts) == 1:
            return ()
        filled = (pair.target.fill({**record.slots, "answer": t}).strip() for t in record.answer.texts)
        return tuple(dict.fromkeys(filled))

    def _choices(self, record: _Record, pair: _Pair) -> tuple[str, ...]:
        if pair.kind != "answer":
            return ()
        options = range(len(record.answer.options))
        values = [record.answer.slots(self._file.options, i) for i in options]
        found = tuple(dict.fromkeys(pair.target.fill({**record.slots, **v}).strip() for v in values))
        return found if len(found) > 1 else ()

    def _exemplar(self, record: _Record, task: str, datasets: tuple[str, ...]) -> _Exemplar:
        plain = single_turn(
            task=task, source=self.name, instruction=record.question, output=record.answer.texts[0]
        )
        return _Exemplar(record, (*datasets, record.origin, f"task:{task}", plain.id))


@dataclass(frozen=True, slots=True)
class _Pair:
    """A pattern pair, taken apart."""

    name: str
    kind: Kind
    weight: float
    input: SlotText
    target: SlotText

    @classmethod
    def of(cls, pair: PatternPair) -> _Pair:
        return cls(pair.name, pair.kind, pair.weight, SlotText.parse(pair.input), SlotText.parse(pair.target))

    @property
    def slots(self) -> tuple[str, ...]:
        return (*self.input.names, *self.target.names)


class _Record:
    """A record with its answer and the values of all slots that patterns of the file have; a field that is missing or empty has none."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        answer: Answer,
        given: dict[str, str],
        names: Sequence[str],
        question: Sequence[str],
    ) -> None:
        self.answer = answer
        self.origin = record_origin(fields)
        self.slots = {name: text for name in names if (text := _text(fields, name))} | given
        self.question = "\n".join(self.slots[name] for name in question if name in self.slots)

    def has(self, slot: str) -> bool:
        return slot in self.slots

    def fits(self, pair: _Pair) -> bool:
        return all(map(self.has, pair.slots))


@dataclass(frozen=True, slots=True)
class _Exemplar:
    """A record that is only ever shown. `origin` holds its datasets, task and id, for examples that show it."""

    record: _Record
    origin: tuple[str, ...]

    def __repr__(self) -> str:  # it ends up in the quarantined text of a record
        return self.record.question


def _text(fields: Mapping[str, Any], name: str) -> str:
    try:
        return text_at(fields, name)
    except RecordError:
        return ""
