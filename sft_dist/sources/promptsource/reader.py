"""Annotated records x promptsource templates -> Example (P3).

A template gives a prompt and an answer, split by "|||". It may skip a record on purpose by giving anything else than two
texts that are not empty; that is counted and no error. Renderings equal those of promptsource with `truncate=False`;
where a text of the record holds "|||", also inside lists, it never splits.
"""

from __future__ import annotations

import random
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import BadRecord, Example, Phrasing, single_turn
from sft_dist.core.rng import derive
from sft_dist.sources.annotated_rows import AnnotatedRows
from sft_dist.sources.base import FileSource, RecordError, chosen_names
from sft_dist.sources.files.blocks import Block, Part
from sft_dist.sources.files.data_files import RawRecord
from sft_dist.sources.promptsource.environment import PromptEnvironment
from sft_dist.sources.promptsource.render import CompiledTemplate, PromptRecord
from sft_dist.sources.promptsource.template_files import (
    PromptTemplate,
    choose_templates,
    read_templates,
    template_file,
)

TEMPLATE_FIELD = "__template__"  # in `task`, the template's name

METRIC_NAMES = {"Accuracy": "accuracy", "ROUGE": "rouge_l", "Squad": "token_f1", "COQA F1": "token_f1"}
"""What templates call a metric -> its name in `evals.metrics.METRICS`; accuracy among answer choices is `choice`."""

_ASKED = "__asked__"


class PromptsourceReader(FileSource):
    """Reads annotated records and asks each through templates. Those that a template skips count as `template_skips`."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        templates: str,
        subset: str | None = None,
        split: str = "train",
        revision: str | None = None,
        template_names: tuple[str, ...] = ("*",),
        original_task_only: bool = False,
        unseen_templates: tuple[str, ...] = (),
        per_record: Literal["all", "one"] = "all",
        truncate_chars: int | None = None,
        seed: int = 0,
        columns: tuple[str, ...] | None = None,
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.PromptsourceSource` for the meaning of the fields.

        Raises:
            UserError: When there are no records or templates, a glob matches none, or a template is not valid.
        """
        self._rows = AnnotatedRows(name, path, subset, split, revision, columns)
        file = template_file(templates, dataset or self._rows.dataset, name)
        chosen = choose_templates(
            read_templates(file), template_names, original_task_only=original_task_only, source=name
        )
        unseen: set[str] = set()
        if unseen_templates:
            where = f"data.sources.{name}.unseen_templates"
            unseen = chosen_names(
                [t.name for t in chosen], unseen_templates, key=where, what="chosen template"
            )
            if len(unseen) == len(chosen):
                raise UserError(
                    f"{where} names all templates that are chosen, so none is left to train on; name fewer"
                )
        held, chosen = [t for t in chosen if t.name in unseen], [t for t in chosen if t.name not in unseen]
        self._environment = PromptEnvironment()
        self._unseen = [CompiledTemplate(t, self._environment, truncate_chars, file) for t in held]
        self._compiled = [CompiledTemplate(t, self._environment, truncate_chars, file) for t in chosen]
        self._one, self._seed = per_record == "one", seed
        super().__init__(
            name,
            self._rows.files,
            task=task,
            dataset=dataset,
            templates=[asdict(t) for t in chosen],
            per_record=per_record,
            truncate_chars=truncate_chars,
            seed=seed,
            columns=columns,
            rows=self._rows.fingerprint,
            **({"unseen_templates": [asdict(t) for t in held]} if held else {}),
        )

    def records(
        self,
        parts: Sequence[Part] | None = None,
        wanted: Container[int] | None = None,  # noqa: ARG002  several come of one record
    ) -> Iterator[RawRecord | BadRecord | None]:
        """Yield each record once for each template, or once with all templates in an order drawn for it."""
        for raw in self._rows.read(parts):
            if isinstance(raw, BadRecord):
                yield raw
                continue
            record = PromptRecord(raw)
            if self._one:
                order = list(self._compiled)
                random.Random(derive(self._seed, "promptsource", record.origin)).shuffle(order)
                candidates = [order]
            else:
                candidates = [[c] for c in self._compiled]
            for group in candidates:
                yield raw._replace(fields={**raw.fields, _ASKED: _Asked(record, group)})

    def blocks(self) -> list[Block]:
        """Return the blocks of its records."""
        return super().blocks() if self._rows.hub is None else self._rows.hub.blocks()

    def block_fingerprint(self, block: Block) -> str:
        """Return 32 hex digits over options, templates and the content of a block."""
        if self._rows.hub is None:
            return super().block_fingerprint(block)
        return fingerprint([self.fingerprint(), self._rows.hub.block_fingerprint(block)])

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the example by the first of the record's templates that does not skip it."""
        record, candidates = fields[_ASKED].record, fields[_ASKED].candidates
        if "answer_choices" in record.fields:
            raise RecordError(
                "the record has a field 'answer_choices', which templates use for their own; rename the field"
            )
        for compiled in candidates:
            template = compiled.template
            parts = compiled.render(record, self._environment, self._seed)
            if len(parts) != 2 or not all(parts):
                continue
            offered = template.fixed_choices or compiled.choices(record, self._environment, self._seed) or ()
            choices = tuple(dict.fromkeys(c for c in offered if c))
            yield single_turn(
                task=template.task
                if self._task is None
                else self.task_of({**fields, TEMPLATE_FIELD: template.name}),
                source=self.name,
                instruction=parts[0],
                output=parts[1],
                references=(parts[1],),
                origin=(*(self.origin_of(fields) or _datasets(template)), record.origin),
                question="\n".join(t for t in _texts(record.fields) if t and t in parts[0]) or None,
                choices=choices if len(choices) > 1 and parts[1] in choices else (),
                phrasings=self._phrasings(record, template),
            )
            return
        self.skip("template_skips", candidates[0].template.task)

    def _phrasings(self, record: PromptRecord, template: PromptTemplate) -> tuple[Phrasing, ...]:
        """Return the record as unseen templates of the same kind ask it."""
        kind = [c for c in self._unseen if c.template.original_task == template.original_task]
        found = (c.render(record, self._environment, self._seed) for c in kind)
        return tuple(Phrasing(*parts) for parts in found if len(parts) == 2 and all(parts))

    def task_info(self) -> dict[str, PromptTemplate]:
        """Return the chosen templates by the task that each gives where the config names no other."""
        return {c.template.task: c.template for c in self._compiled}

    def task_metrics(self) -> dict[str, str]:
        """Return the metric of each task, where its templates agree on one that is known here and the config's `task` names no field."""
        found: dict[str, set[str]] = {}
        for c in self._compiled:
            names = [METRIC_NAMES[m] for m in c.template.metrics if m in METRIC_NAMES]
            try:
                task = (
                    c.template.task if self._task is None else self.task_of({TEMPLATE_FIELD: c.template.name})
                )
            except RecordError:
                continue  # a field of the records
            chosen = c.template.answer_choices is not None and names[:1] == ["accuracy"]
            found.setdefault(task, set()).add("choice" if chosen else names[0] if names else "")
        return {
            task: metric for task, metrics in found.items() if len(metrics) == 1 and (metric := min(metrics))
        }

    def answer_choices(self, template_name: str, fields: Mapping[str, Any]) -> list[str] | None:
        """Return the answers that a template lets choose from for one record; None when the answer is free."""
        compiled = next(c for c in self._compiled if c.template.name == template_name)
        return compiled.choices(PromptRecord(RawRecord("", 0, dict(fields))), self._environment, self._seed)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text inside a record, in its order."""
    if isinstance(value, str):
        yield value.strip()
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _texts(inner)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A record and the templates to try, in this order."""

    record: PromptRecord
    candidates: list[CompiledTemplate]

    def __repr__(self) -> str:  # it ends up in the quarantined text of a record
        return " or ".join(c.template.name for c in self.candidates)


def _datasets(template: PromptTemplate) -> tuple[str, ...]:
    """Return the origin by dataset: the whole of it, and its subset, so that either can be held out."""
    return tuple(dict.fromkeys(f"dataset:{d}" for d in (template.dataset.split("/")[0], template.dataset)))
