"""Natural Instructions task files (v2, its five-key variant, v1) -> Example.

The instruction is what Tk-Instruct puts before "Now complete the following example": the definition, then positive
and negative examples; the template `tk-instruct` adds the rest, any other chat template shows it as it is. No prompt
shows an example that is the instance itself, which would give its answer away (1 instance in 700 of a sample of 109 tasks).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from sft_dist.core.records import BadRecord, Example, single_turn
from sft_dist.sources.base import FileSource, RecordError, kind_of
from sft_dist.sources.files.blocks import Part
from sft_dist.sources.files.data_files import TEXT_CHARS, RawRecord, open_data
from sft_dist.sources.files.json_array import read_array
from sft_dist.sources.task_files import chosen_files, load_task, task_files, task_name

_V1_PARTS = ("Definition", "Emphasis & Caution", "Things to Avoid", "Prompt")
_INSTANCES = re.compile(rb'"Instances"\s*:\s*\[')
_NOTHING = ("", "-", "none", "n/a")  # what v1 files write for an empty part


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskInfo:
    """What a task file says about its task."""

    task: str
    categories: tuple[str, ...]
    domains: tuple[str, ...]
    reasoning: tuple[str, ...]
    datasets: tuple[str, ...]
    input_languages: tuple[str, ...]
    output_languages: tuple[str, ...]
    license: tuple[str, ...]
    instances: int


class NaturalInstructionsReader(FileSource):
    """Reads every instance of the chosen tasks; the task is named by its file."""

    def __init__(
        self,
        name: str,
        *,
        path: str,
        tasks: tuple[str, ...] = ("*",),
        task_file: str | None = None,
        definition: bool = True,
        positive_examples: int = 0,
        negative_examples: int = 0,
        explanations: bool = False,
        max_per_task: int | None = None,
        task: str | None = None,
        dataset: str | None = None,
    ) -> None:
        """See `config.sources.NaturalInstructionsSource` for the meaning of the fields.

        Raises:
            UserError: When there are no task files, or a name in `tasks` or all of `task_file` match none.
        """
        self._definition = definition
        self._positive = positive_examples
        self._negative = negative_examples
        self._explanations = explanations
        self._max_per_task = max_per_task
        files = chosen_files(task_files(path), tasks, task_file, name)
        options = (definition, positive_examples, negative_examples, explanations, max_per_task)
        super().__init__(name, files, task=task, dataset=dataset, encoding=options)

    def cut(self, file: Path) -> list[Part]:
        """Return a task file whole: its definition belongs to every instance."""
        return [Part(file)]

    def records(
        self,
        parts: Sequence[Part] | None = None,
        wanted: Container[int] | None = None,  # noqa: ARG002  a task file is parsed whole
    ) -> Iterator[RawRecord | BadRecord | None]:
        """Yield a record an instance: its own fields, those of its task, and the `instruction` it is asked with."""
        for path in self._files if parts is None else [part.path for part in parts]:
            task = load_task(path)
            if isinstance(task, BadRecord):
                yield task
                continue
            try:
                instruction = self._instruction(task)
                instances = _instances(task)
            except RecordError as error:
                yield BadRecord(file=str(path), line=None, reason=f"the whole task: {error}")
                continue
            shared = {**task, "task": task_name(path)}
            shown = {e["input"].strip() for _, _, e in self._shown(task)}
            for number, instance in enumerate(instances[: self._max_per_task], 1):
                raw = RawRecord(str(path), number, {})
                if not isinstance(instance, dict):
                    reason = f"instance {number} is {kind_of(instance)}, not an object"
                    text = repr(instance)[:TEXT_CHARS]
                    yield BadRecord(file=raw.file, line=self.line_of(raw), reason=reason, text=text)
                    continue
                given = str(instance.get("input")).strip()
                # an example that is this very instance would show its answer
                own = self._instruction(task, without=given) if given in shown else instruction
                yield raw._replace(fields={**instance, **shared, "instruction": own})

    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the example of one instance."""
        label = f"instance {fields['id']}" if isinstance(fields.get("id"), str) else "the instance"
        for key in ("input", "output"):
            if key not in fields:
                raise RecordError(f"{label}: {key!r} is missing")
        given, outputs = fields["input"], fields["output"]
        if not isinstance(given, str):
            raise RecordError(f"{label}: 'input' is {kind_of(given)}, not text")
        outputs = [outputs] if isinstance(outputs, str) else outputs
        if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) for o in outputs):
            state = "an empty list" if outputs == [] else kind_of(outputs)
            raise RecordError(f"{label}: 'output' is {state}, not a text or a list of texts")
        answers = tuple(dict.fromkeys(outputs))
        instruction = fields["instruction"]
        yield single_turn(
            task=fields["task"] if self._task is None else self.task_of(fields),
            source=self.name,
            instruction=instruction or given,
            input=given if instruction else "",
            output=answers[0],
            references=answers if len(answers) > 1 else (),
            origin=self.origin_of(fields) or tuple(f"dataset:{d}" for d in _datasets(fields)),
        )

    def line_of(self, raw: RawRecord) -> int:
        """Return the line of an instance, whose number `raw.line` is; looked up only when it is to be reported."""
        with open_data(Path(raw.file)) as stream:
            data = stream.read()
        start = _INSTANCES.search(data)
        if start is None:
            return 1
        elements = read_array(BytesIO(data[start.end() - 1 :]))
        line, _ = next(islice(elements, raw.line - 1, None))
        return line + data.count(b"\n", 0, start.end())

    def task_info(self) -> dict[str, TaskInfo]:
        """Return what each readable task file says about its task, by task name."""
        out = {}
        for path in self._files:
            task = load_task(path)
            if isinstance(task, BadRecord):
                continue
            name, instances = task_name(path), task.get("Instances")
            out[name] = TaskInfo(
                task=name,
                categories=_texts(task.get("Categories")),
                domains=_texts(task.get("Domains")),
                reasoning=_texts(task.get("Reasoning")),
                datasets=_datasets(task),
                input_languages=_texts(task.get("Input_language")),
                output_languages=_texts(task.get("Output_language")),
                license=_texts(task.get("Instance License")),
                instances=len(instances) if isinstance(instances, list) else 0,
            )
        return out

    def _instruction(self, task: Mapping[str, Any], without: str | None = None) -> str:
        blocks = [_definition(task)] if self._definition else []
        blocks += [
            _demonstration(*shown, explanation=self._explanations) for shown in self._shown(task, without)
        ]
        return "\n\n".join(b for b in blocks if b)

    def _shown(
        self, task: Mapping[str, Any], without: str | None = None
    ) -> list[tuple[str, int, Mapping[str, Any]]]:
        """Return (kind, number, example) of the task's examples that a prompt shows, but none whose input is `without`."""
        return [
            (kind, number, example)
            for kind, count in (("Positive", self._positive), ("Negative", self._negative))
            for number, example in enumerate(
                [e for e in _demonstrations(task, kind) if e["input"].strip() != without][:count], 1
            )
        ]


def _instances(task: Mapping[str, Any]) -> list[Any]:
    instances = task.get("Instances")
    if not isinstance(instances, list):
        raise RecordError(
            f"'Instances' is {'missing' if instances is None else kind_of(instances) + ', not a list'}"
        )
    return instances


def _definition(task: Mapping[str, Any]) -> str:
    """Return the definition (of several paraphrases the first); v1 keeps it in up to four parts."""
    definitions = _texts(task.get("Definition"))
    if not definitions:
        raise RecordError("'Definition' is missing")
    if "Examples" not in task:
        return with_full_stop(definitions[0])
    parts = [p for key in _V1_PARTS for p in _texts(task.get(key))[:1] if p.lower() not in _NOTHING]
    return " ".join(with_full_stop(p) for p in parts)


def _demonstrations(task: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    """Return the task's own positive or negative examples; what lacks a text (v1 writes "-" for none) is no example."""
    inner = task.get("Examples")
    found = (inner if isinstance(inner, dict) else task).get(f"{kind} Examples")
    return [e for e in found if _is_demonstration(e)] if isinstance(found, list) else []


def _is_demonstration(entry: object) -> bool:
    if not isinstance(entry, dict):
        return False
    given, output = entry.get("input"), entry.get("output")
    return isinstance(given, str) and isinstance(output, str) and not given.strip() == output.strip() == "-"


def _demonstration(kind: str, number: int, example: Mapping[str, Any], *, explanation: bool) -> str:
    """Return one example as Tk-Instruct writes it, its leading blanks included."""
    given, output = with_full_stop(example["input"]), with_full_stop(example["output"])
    text = f" {kind} Example {number} -\nInput: {given}\n Output: {output}"
    why = _texts(example.get("explanation")) or _texts(example.get("reason"))
    if explanation and why and why[0].lower() not in _NOTHING:
        text += f"\n Explanation: {with_full_stop(why[0])}"
    return text


def with_full_stop(text: str) -> str:
    """Return the text, stripped, with a full stop unless it ends in ASCII punctuation, as Tk-Instruct does."""
    text = text.strip()
    return text if not text or text[-1] in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~" else f"{text}."


def _datasets(task: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the datasets a task was made from; files join several by semicolons."""
    names = (part.strip(" ,") for entry in _texts(task.get("Source")) for part in entry.split(";"))
    return tuple(dict.fromkeys(n for n in names if n and n.lower() not in _NOTHING))


def _texts(value: object) -> tuple[str, ...]:
    """Return a list of texts, or a bare one, as a tuple of stripped texts."""
    entries = value if isinstance(value, list) else [value]
    return tuple(e.strip() for e in entries if isinstance(e, str) and e.strip())
