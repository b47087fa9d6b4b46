"""Records of instruction, optional input, output (Alpaca, prompt/completion, Self-Instruct seeds) -> Example.

Also prompts without an output: records, or a plain list of them (a text file; a JSON list of strings), field `text`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sft_dist.core.records import BadRecord, Example, Message, make_example, single_turn
from sft_dist.sources.base import FileSource, RecordError, kind_of, license_of, optional_text, text_field
from sft_dist.sources.files.blocks import Part
from sft_dist.sources.files.data_files import RawRecord, data_files, read_wanted
from sft_dist.sources.marks import record_weight
from sft_dist.sources.messages import as_prompt

NO_INPUT = ("", "<noinput>")  # what generators (Alpaca) write for none, stripped and case folded


class AlpacaReader(FileSource):
    """Reads one question and its answer from each record; `fields` say where they stand."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        instruction_field: str = "instruction",
        input_field: str | None = "input",
        output_field: str | tuple[str, ...] = "output",
        system_field: str | None = None,
        history_field: str | None = None,
        instances_field: str | None = None,
        strip_suffix: str | None = None,
        columns: tuple[str, ...] | None = None,
        unescape: bool = False,
        prompts: bool = False,
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.AlpacaSource` for the meaning of the fields.

        Raises:
            UserError: When `path` names no data file.
        """
        self._table_columns = columns
        self._unescape = unescape
        self._instances = instances_field
        self.texts = prompts
        self._fields = AlpacaFields(
            instruction_field,
            input_field,
            None if prompts else output_field,
            system_field,
            history_field,
            strip_suffix,
        )
        super().__init__(
            name,
            data_files(path),
            task=task,
            dataset=dataset,
            fields=self._fields.names(),
            instances=instances_field,
            columns=columns,
            unescape=unescape,
        )

    def records(
        self, parts: Sequence[Part] | None = None, wanted: Container[int] | None = None
    ) -> Iterator[RawRecord | BadRecord | None]:
        """Yield the records of the files."""
        return read_wanted(
            self._files if parts is None else parts,
            wanted,
            columns=self._table_columns,
            unescape=self._unescape,
            texts=self.texts,
        )

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return one example, or one for each instance of an instruction."""
        for instance in self._instances_of(fields):
            yield self._fields.example(
                instance, task=self.task_of(instance), source=self.name, origin=self.origin_of(instance)
            )

    def _instances_of(self, fields: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        if self._instances is None:
            yield fields
            return
        instances = fields.get(self._instances)
        if not isinstance(instances, list) or not instances:
            raise RecordError(
                f"field {self._instances!r} holds {kind_of(instances)}, not a list of instances"
            )
        for instance in instances:
            if not isinstance(instance, dict):
                raise RecordError(f"an entry of {self._instances!r} is {kind_of(instance)}, not an object")
            yield {**fields, **instance}


class AlpacaFields:
    """Where the parts of a single-turn record stand, and how they become an example."""

    def __init__(
        self,
        instruction: str = "instruction",
        input: str | None = "input",  # noqa: A002  the field's own name
        output: str | tuple[str, ...] | None = "output",
        system: str | None = None,
        history: str | None = None,
        strip_suffix: str | None = None,
    ) -> None:
        """Take the field names; of several for the output, the first that a record has is used.

        Without an output, records are prompts. `strip_suffix` is cut from the end of outputs.
        """
        self.instruction = instruction
        self.input = input
        self.outputs = (output,) if isinstance(output, str) else tuple(output or ())
        self.system = system
        self.history = history
        self.suffix = strip_suffix or ""

    def names(self) -> list[Any]:
        """Return the field names, for a fingerprint."""
        return [self.instruction, self.input, list(self.outputs), self.system, self.history, self.suffix]

    def example(
        self, fields: Mapping[str, Any], *, task: str, source: str, origin: tuple[str, ...]
    ) -> Example:
        """Build the example; an output that is a list holds all acceptable answers, the first of which is trained."""
        instruction = text_field(fields, self.instruction)
        given = optional_text(fields, self.input)
        if given.strip().casefold() in NO_INPUT:
            given = ""  # else all such records would have one input, and be evaluated or dropped together
        answers = self._answers(fields) if self.outputs else ()
        answer = answers[0] if answers else None
        system = optional_text(fields, self.system) or None
        references = answers if len(answers) > 1 else ()
        history = self._history(fields)
        if answer is None and not (instruction + given).strip():
            raise RecordError("the prompt is empty")
        if not history:
            return single_turn(
                task=task,
                source=source,
                instruction=instruction,
                input=given,
                output=answer,
                system=system,
                references=references,
                origin=origin,
                weight=record_weight(fields),
                license=license_of(fields),
            )
        asked = (
            *((Message(role="system", content=system),) if system else ()),
            *history,
            Message(role="user", content=f"{instruction}\n\n{given}" if given else instruction),
        )
        messages = as_prompt(asked) if answer is None else (*asked, Message(role="assistant", content=answer))
        return make_example(
            task=task,
            source=source,
            messages=messages,
            references=references,
            origin=origin,
            weight=record_weight(fields),
            license=license_of(fields),
        )

    def _answers(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        name = next((n for n in self.outputs if fields.get(n) is not None), self.outputs[0])
        value = fields.get(name)
        if isinstance(value, list):
            if not value or not all(isinstance(v, str) for v in value):
                raise RecordError(
                    f"field {name!r} holds {'an empty list' if not value else 'a list'}, not one of texts"
                )
            return tuple(dict.fromkeys(v.removesuffix(self.suffix) for v in value))
        return (text_field(fields, name).removesuffix(self.suffix),)

    def _history(self, fields: Mapping[str, Any]) -> tuple[Message, ...]:
        if self.history is None or not fields.get(self.history):
            return ()
        turns = fields[self.history]
        pairs = isinstance(turns, list) and all(
            isinstance(t, list | tuple) and len(t) == 2 and all(isinstance(x, str) for x in t) for t in turns
        )
        if not pairs:
            raise RecordError(f"field {self.history!r} is not a list of [question, answer] pairs of texts")
        return tuple(
            m
            for q, a in turns
            for m in (Message(role="user", content=q), Message(role="assistant", content=a))
        )
