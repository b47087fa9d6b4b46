"""Files of the user's that a config names: pattern pairs of `kind: patterns`, prompts of `construct`. Read here, so that mistakes are said in one way."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, field_validator, model_validator

from sft_dist.config.sources import known_metric
from sft_dist.config.yaml_file import read_yaml
from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import expanded
from sft_dist.core.slots import SlotText

Kind = Literal["answer", "cot", "inversion"]
ANSWER_SLOTS = ("answer", "letter")
SPECIAL_SLOTS = (*ANSWER_SLOTS, "options")

FileModel = TypeVar("FileModel", bound="FileSection")


class FileSection(BaseModel):
    """A part of such a file. Unknown keys are errors; texts may have several lines."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, coerce_numbers_to_str=True)


def _only(text: str, allowed: tuple[str, ...], needed: tuple[str, ...]) -> None:
    names = SlotText.parse(text).names
    if odd := [n for n in names if n not in allowed]:
        raise ValueError(f"{{{odd[0]}}} is no slot here; it takes {', '.join(f'{{{a}}}' for a in allowed)}")
    if missing := [n for n in needed if n not in names]:
        raise ValueError(f"{{{missing[0]}}} is missing")


class AnswerField(FileSection):
    """Where a record has its answer, and among what it was chosen."""

    field: str = Field(
        default="answer",
        description="Field of the record; a dot goes inside: answers.text; a list holds all that are right.",
    )
    labels: tuple[str, ...] | dict[str, str] = Field(
        default=(),
        description="Names of the values 0, 1, 2, ... of the field, or {value: name}: the same for every record.",
    )
    choices: str | tuple[str, ...] = Field(
        default=(),
        description="Fields that hold the texts to choose from, or the one that lists them; the field then names one.",
    )
    letters: str | None = Field(
        default=None,
        description="Field that lists by which name `field` means each choice, such as [A, B, C].",
    )
    count_from: Literal[0, 1] = Field(
        default=0, description="Number of the first choice, where `field` holds a number."
    )
    rationale_before: str | None = Field(
        default=None,
        min_length=1,
        description="A rationale stands in the field before this text, the answer behind it.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.labels and self.choices:
            raise ValueError("labels and choices both say what can be answered; keep one")
        if self.letters is not None and not self.choices:
            raise ValueError(
                "letters names choices, and there are none; name the field of the choices, or remove it"
            )
        if self.rationale_before is not None and (self.labels or self.choices):
            raise ValueError(
                "rationale_before cuts a text, and the answer is one of several; remove one of the two"
            )
        names = list(self.labels.values() if isinstance(self.labels, dict) else self.labels)
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError("labels are to be two or more different names")
        return self


class OptionList(FileSection):
    """How {options} lists what can be answered."""

    head: str = Field(default="Options:", description="Line above; may be empty.")
    line: str = Field(
        default="- {text}", description="Of one, with {text}, and {letter} (A, B, ...) if wanted."
    )

    @field_validator("line")
    @classmethod
    def _slots(cls, text: str) -> str:
        _only(text, ("text", "letter"), ("text",))
        return text


class FewShotLayout(FileSection):
    """How solved records and the open one stand in one prompt."""

    intro: str = Field(default="", description="Comes first.")
    example: str = Field(
        default="{input}\n\n{target}",
        description="A solved one; the open one is the same up to {target}, trailing blanks removed.",
    )
    gap: str = Field(default="\n\n\n", description="Between two of them.")

    @field_validator("example")
    @classmethod
    def _slots(cls, text: str) -> str:
        _only(text, ("input", "target"), ("input", "target"))
        if SlotText.parse(text).names != ("input", "target"):
            raise ValueError("{input} stands before {target}, each once; write them so")
        return text


class PatternPair(FileSection):
    """An input and its target. Slots are {answer}, {letter} (of the right option), {options} and fields of the record: {passage}, {answers.text}."""

    name: str = Field(min_length=1)
    input: str = Field(
        min_length=1, description="What is asked; shows what can be answered where it has {options}."
    )
    target: str = Field(min_length=1, description="What is trained.")
    kind: Kind = Field(
        default="answer",
        description="answer; cot: a rationale before the answer; inversion: the target is a field of the input. The last two are tasks of "
        "their own, TASK/cot and TASK/inversion.",
    )
    weight: PositiveFloat = Field(
        default=1.0, description="How much likelier than one of weight 1 it is drawn."
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        asked, trained = SlotText.parse(self.input).names, SlotText.parse(self.target).names
        gives = [s for s in ANSWER_SLOTS if s in trained]
        if self.kind == "inversion":
            if gives:
                raise ValueError(
                    f"an inversion gives a field of the input, not {{{gives[0]}}}; leave kind out, or change the target"
                )
        elif not gives:
            raise ValueError(
                f"the target of a pattern of kind {self.kind} has no {{answer}} or {{letter}}, so nothing of it is the answer; add one, or "
                "declare kind: inversion"
            )
        elif shown := [s for s in ANSWER_SLOTS if s in asked]:
            raise ValueError(
                f"the input shows {{{shown[0]}}}, which is to be found; leave it out, or declare kind: inversion"
            )
        if self.kind == "cot" and len(trained) == len(gives):
            raise ValueError(
                "the target of kind cot has no slot for a rationale, such as {rationale}; add it before the answer"
            )
        if both := [s for s in trained if s in asked]:
            raise ValueError(
                f"the target {{{both[0]}}} stands in the input as well; leave it out of one of the two"
            )
        if not asked:
            raise ValueError(
                "the input has no slot, so all records would ask the same; put a field in braces"
            )
        return self


class PatternFile(FileSection):
    """Pattern pairs for the records of one annotated data set."""

    answer: AnswerField = AnswerField()
    options: OptionList = OptionList()
    few_shot: tuple[FewShotLayout, ...] = Field(
        default=(FewShotLayout(),),
        min_length=1,
        description="Layouts of prompts with exemplars; one is drawn.",
    )
    metric: str | None = Field(
        default=None,
        description="Judges the answers; null: choice where there are labels or choices, else what the answers need.",
    )
    cot_metric: str | None = Field(
        default=None,
        description="Judges TASK/cot, such as numeric (the last number is right); null: what its texts need.",
    )
    patterns: tuple[PatternPair, ...] = Field(min_length=1)

    _metric = field_validator("metric", "cot_metric")(known_metric)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        names = [p.name for p in self.patterns]
        if double := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(
                f"two patterns are named {double!r}, so they could not be told apart; rename one"
            )
        for p in self.patterns:
            if p.kind != "inversion" and self.answer.field in SlotText.parse(p.input).names:
                raise ValueError(
                    f"the input of pattern {p.name!r} shows {{{self.answer.field}}}, which holds the answer; leave it out, or declare "
                    "kind: inversion"
                )
        if not (self.answer.labels or self.answer.choices):
            for p in self.patterns:
                used = {*SlotText.parse(p.input).names, *SlotText.parse(p.target).names}
                if found := used & {"options", "letter"}:
                    raise ValueError(
                        f"pattern {p.name!r} has {{{min(found)}}}, and answer has neither labels nor choices; name them, or leave it out"
                    )
        return self


class ListPrompt(FileSection):
    """A request to go on with a numbered list."""

    prompt: str = Field(description="Whole request: {shown}, {first} (number of the next one), {last}.")
    item: str = Field(default="{number}. {instruction}", description="One that is shown.")
    gap: str = Field(default="\n", description="Between two.")

    @model_validator(mode="after")
    def _slots(self) -> Self:
        _only(self.prompt, ("shown", "first", "last"), ("shown",))
        _only(self.item, ("number", "instruction"), ("instruction",))
        return self


class ShownPrompt(FileSection):
    """A request that shows solved tasks before the open one."""

    prompt: str = Field(description="Whole request: {shown}, {instruction}, {most} (instances).")
    item: str = Field(description="One that is shown: {instruction}, and {answer} (Yes, No) or {instances}.")
    gap: str = Field(default="\n\n", description="Between two.")
    instance: str = Field(
        default="Example {number}\nInput: {input}\nOutput: {output}",
        description="An instance: {number}, {input}, {output}.",
    )

    @model_validator(mode="after")
    def _slots(self) -> Self:
        _only(self.instance, ("number", "input", "output"), ("output",))
        return self


class PromptFile(FileSection):
    """Prompts of your own for a teacher; one that is left out is ours. How answers are read stays: numbered lists, Yes, Equal, END, Input: and Output:."""

    system: str | None = Field(default=None, description="System turn of every request to a chat model.")
    tasks: ListPrompt | None = Field(default=None, description="self_instruct: more tasks.")
    wild: ListPrompt | None = Field(default=None, description="instructwild: more prompts.")
    classification: ShownPrompt | None = Field(
        default=None, description="self_instruct: does it ask for one of a few labels?"
    )
    input_first: ShownPrompt | None = Field(
        default=None, description="self_instruct: instances, each Input: and Output:."
    )
    output_first: ShownPrompt | None = Field(
        default=None,
        description="self_instruct: instances of a classification, each Class label: and a line.",
    )
    evolve: dict[str, str] = Field(
        default_factory=dict,
        description="evolve: operation -> request with {instruction}; in place of all of ours, one is drawn.",
    )
    equal: str | None = Field(
        default=None, description="evolve: do {first} and {second} ask the same? Equal, or anything else."
    )
    next_turn: str | None = Field(
        default=None,
        description="converse: what does the user say after {conversation}? END, or the message.",
    )
    answer: str | None = Field(
        default=None,
        description="What a single-turn prompt is wrapped in to be answered: {instruction}, {input}.",
    )
    answer_without_input: str | None = Field(
        default=None, description="The same, where there is no input; null: as `answer`."
    )

    @model_validator(mode="after")
    def _slots(self) -> Self:
        if self.classification is not None:
            _only(self.classification.prompt, ("shown", "instruction"), ("instruction",))
            _only(self.classification.item, ("instruction", "answer"), ("instruction", "answer"))
        for own in (self.input_first, self.output_first):
            if own is not None:
                _only(own.prompt, ("shown", "instruction", "most"), ("instruction",))
                _only(own.item, ("instruction", "instances"), ("instruction", "instances"))
        for text in self.evolve.values():
            _only(text, ("instruction",), ("instruction",))
        if self.equal is not None:
            _only(self.equal, ("first", "second"), ("first", "second"))
        if self.next_turn is not None:
            _only(self.next_turn, ("conversation",), ("conversation",))
        if self.answer is not None:
            _only(self.answer, ("instruction", "input"), ("instruction",))
        if self.answer_without_input is not None:
            _only(self.answer_without_input, ("instruction",), ("instruction",))
            if self.answer is None:
                raise ValueError(
                    "answer_without_input stands without answer, so prompts with an input would be asked as ours; add answer"
                )
        return self


def read_user_file(path: str, model: type[FileModel], key: str) -> FileModel:
    """Return the content of a YAML file.

    Args:
        path: The file.
        model: What it holds.
        key: The config key that names it, for messages.

    Raises:
        UserError: When it is not there, or holds something else; all mistakes are named.
    """
    file = expanded(path)
    if not file.is_file():
        raise UserError(f"{key}: {path} is no file, so there is nothing to ask with; check the path")
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UserError(f"{key}: {path} holds no mapping of keys; docs/config.md lists those of such a file")
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        found: list[dict[str, Any]] = [dict(e) for e in error.errors()]
        # an entry with a mistake is not counted, so that a list of one seems to be empty
        short = [
            e for e in found if e["type"] == "too_short" and any(e["loc"] == o["loc"][:-1] for o in found)
        ]
        mistakes = "; ".join(_explain(e, model) for e in found if e not in short)
        raise UserError(f"{key}: {path} cannot be used: {mistakes}") from None


def _explain(error: dict[str, Any], model: type[BaseModel]) -> str:
    loc = [str(p) for p in error["loc"]]
    path = ".".join(loc)
    if error["type"] == "extra_forbidden":
        known = list(model.model_fields) if len(loc) == 1 else []
        return f"{path}: unknown key.{nearest(loc[-1], known)}" if known else f"{path}: unknown key"
    text = str(error["msg"]).removeprefix("Value error, ")
    return f"{path}: {text}".removeprefix(": ")
