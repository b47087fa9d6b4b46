"""Records of question, answer and rationale -> Example, each asked through one pattern drawn for it (Flan).

Variants: zero_shot and few_shot (question -> answer), cot and cot_few_shot (question -> rationale and answer), explain
(question and answer -> rationale), inversion (rationale and answer -> question). Which one, its wording and whether
options are shown depend on the seed and the question alone.

Exemplars of few-shot prompts are those of `sources/exemplars.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.records import BadRecord, Example, single_turn
from sft_dist.core.rng import derive
from sft_dist.sources.base import FILE_FIELD, FileSource, RecordError, data_name
from sft_dist.sources.exemplars import ExemplarPools, check_pool
from sft_dist.sources.files.blocks import Part
from sft_dist.sources.files.data_files import TEXT_CHARS, RawRecord, data_files, read_records
from sft_dist.sources.flan.patterns import ANSWER, COT, EXPLAIN, FEW_SHOT, INVERSION, FewShot, Pattern
from sft_dist.sources.flan.questions import Question, draw_layout, read_question
from sft_dist.sources.natural_instructions import with_full_stop

_ASKED = "__asked__"
_FEW_SHOT = ("few_shot", "cot_few_shot")

# Variants whose answers are of another kind are tasks of their own, named after the task of the plain answer.
_SUFFIX = {"cot": "/cot", "cot_few_shot": "/cot", "explain": "/explain", "inversion": "/inversion"}


class FlanReader(FileSource):
    """Reads records and asks each through one pattern. Records that serve as exemplars, or repeat one, count as `exemplar`."""

    divisible = False  # the exemplars are the first records

    def __init__(
        self,
        name: str,
        *,
        path: str,
        variants: Mapping[str, float],
        question_field: str = "question",
        answer_field: str = "answer",
        rationale_field: str | None = "rationale",
        options_field: str | None = None,
        columns: tuple[str, ...] | None = None,
        unescape: bool = False,
        without_options: float = 0.25,
        shots: int = 3,
        exemplar_pool: int = 32,
        seed: int = 0,
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.FlanSource` for the meaning of the fields.

        Raises:
            UserError: When `path` names no data file, no variant has a share, or the pool is too small.
        """
        self._shares = {v: share for v, share in variants.items() if share > 0}
        if not self._shares:
            raise UserError(
                f"data.sources.{name}.variants gives no variant a share, so nothing would be asked; name one"
            )
        self._pool_size = exemplar_pool if any(v in self._shares for v in _FEW_SHOT) else 0
        check_pool(name, self._pool_size, shots)
        self._columns, self._unescape = columns, unescape
        self._read = partial(
            read_question,
            question=question_field,
            answer=answer_field,
            rationale=rationale_field,
            options=options_field,
        )
        self._without_options, self._shots, self._seed = without_options, shots, seed
        super().__init__(
            name,
            data_files(path),
            task=task,
            dataset=dataset,
            columns=columns,
            unescape=unescape,
            fields=[question_field, answer_field, rationale_field, options_field],
            variants=self._shares,
            without_options=without_options,
            shots=shots,
            exemplar_pool=self._pool_size,
            seed=seed,
        )

    def records(
        self,
        parts: Sequence[Part] | None = None,  # noqa: ARG002  it is one block
        wanted: Container[int] | None = None,  # noqa: ARG002  any may be an exemplar
    ) -> Iterator[RawRecord | BadRecord | None]:
        """Yield the records that are not exemplars, each with the exemplars of its task."""
        pools = ExemplarPools[_Exemplar](self._pool_size)
        for raw in read_records(self._files, columns=self._columns, unescape=self._unescape):
            if isinstance(raw, BadRecord):
                yield raw
                continue
            fields = {**raw.fields, FILE_FIELD: data_name(raw.file)}
            try:
                question = self._read(fields)
                task, origin = self.task_of(fields), self.origin_of(fields)
            except RecordError as error:
                yield BadRecord(
                    file=raw.file, line=raw.line, reason=str(error), text=repr(raw.fields)[:TEXT_CHARS]
                )
                continue
            if pools.takes(task, question.origin, partial(_Exemplar.of, question, task, self.name, origin)):
                self.skip("exemplar", task)
                continue
            yield raw._replace(fields={_ASKED: _Asked(question, task, origin, pools.of(task))})
        pools.check_left(self.name, "set the shares of few_shot and cot_few_shot to 0")

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the example of a record."""
        asked: _Asked = fields[_ASKED]
        question = asked.question
        chance = random.Random(derive(self._seed, "flan", question.origin))
        variant = self._draw_variant(asked, chance)
        exemplars = self._draw_exemplars(variant, asked, chance)
        layout = draw_layout(
            [question, *(e.question for e in exemplars)],
            chance,
            with_rationale=variant in ("cot", "cot_few_shot", "explain"),
            without_options=self._without_options,
        )
        pattern, few_shot = _draw(PATTERNS[variant], chance), _draw(FEW_SHOT, chance)

        def fill(text: str, q: Question) -> str:
            answer = q.answer(None if variant == "inversion" else layout)
            rationale = with_full_stop(q.rationale)
            return text.format(question=q.shown(layout), stem=q.stem, answer=answer, rationale=rationale)

        if exemplars:
            prompt = _few_shot_prompt(few_shot, pattern, question, [e.question for e in exemplars], fill)
        else:
            prompt = fill(pattern.prompt, question)
        target = fill(pattern.target, question)
        suffix = _SUFFIX.get(variant, "")
        own = (*asked.origin, question.origin, *((f"task:{asked.task}",) if suffix else ()))
        yield single_turn(
            task=asked.task + suffix,
            source=self.name,
            instruction=prompt,
            output=target,
            references=question.answers if not suffix and target == question.answers[0] else (),
            origin=tuple(dict.fromkeys((*own, *(o for e in exemplars for o in e.origin)))),
            question=question.stem,
            demonstrations=tuple(e.question.stem for e in exemplars),
        )

    def _draw_variant(self, asked: _Asked, chance: random.Random) -> str:
        """Return a variant by its share among those that the record allows."""
        allowed = {v: share for v, share in self._shares.items() if FITS[v](asked)}
        if not allowed:
            raise RecordError(
                f"none of the variants {', '.join(self._shares)} fits: it has no usable rationale"
            )
        at = chance.random() * sum(allowed.values())
        for variant, share in allowed.items():
            at -= share
            if at < 0:
                return variant
        return next(reversed(allowed))  # rounding

    def _draw_exemplars(self, variant: str, asked: _Asked, chance: random.Random) -> list[_Exemplar]:
        if variant not in _FEW_SHOT:
            return []
        usable = [e for e in asked.pool if variant == "few_shot" or e.question.rationale]
        return chance.sample(usable, min(self._shots, len(usable)))


@dataclass(frozen=True, slots=True)
class _Exemplar:
    """A record that is only ever shown. `origin` holds its datasets, task and id, for examples that show it."""

    question: Question
    origin: tuple[str, ...]

    @classmethod
    def of(cls, question: Question, task: str, source: str, origin: tuple[str, ...]) -> _Exemplar:
        plain = single_turn(task=task, source=source, instruction=question.stem, output=question.answers[0])
        return cls(question, (*origin, f"task:{task}", plain.id))


@dataclass(frozen=True, slots=True)
class _Asked:
    """A record with what `convert` needs: its task, its datasets, the exemplars of its task."""

    question: Question
    task: str
    origin: tuple[str, ...]
    pool: tuple[_Exemplar, ...]

    def __repr__(self) -> str:  # it ends up in the quarantined text of a record
        return repr(self.question)


PATTERNS: dict[str, tuple[Pattern, ...]] = {
    "zero_shot": ANSWER,
    "few_shot": ANSWER,
    "cot": COT,
    "cot_few_shot": COT,
    "explain": EXPLAIN,
    "inversion": INVERSION,
}

FITS: dict[str, Callable[[_Asked], bool]] = {
    "zero_shot": lambda _: True,
    "few_shot": lambda a: bool(a.pool),
    "cot": lambda a: bool(a.question.rationale),
    "cot_few_shot": lambda a: bool(a.question.rationale) and any(e.question.rationale for e in a.pool),
    "explain": lambda a: bool(a.question.rationale),
    # the question is to be found without its options, so that no letter may stand for one
    "inversion": lambda a: bool(a.question.rationale) and not a.question.names_letter,
}


def _few_shot_prompt(
    layout: FewShot,
    pattern: Pattern,
    question: Question,
    exemplars: list[Question],
    fill: Callable[[str, Question], str],
) -> str:
    """Return exemplars with their answers, then the question with none; `pattern` gives the form of the answers."""
    solved = [fill(layout.question, e) + layout.answer + fill(pattern.target, e) for e in exemplars]
    parts = [*solved, (fill(layout.question, question) + layout.answer).rstrip()]
    return ("" if not layout.intro else layout.intro + "\n\n") + layout.gap.join(parts)


def _draw(table: tuple[Any, ...], chance: random.Random) -> Any:
    return table[int(chance.random() * len(table))]
