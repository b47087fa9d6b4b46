"""Where examples come from. `kind` chooses the reader; the common fields say how the mixture draws from it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from sft_dist.config import plugins
from sft_dist.config.base import RESUMABLE, Section
from sft_dist.config.filters import RecordRules
from sft_dist.config.train import METRICS
from sft_dist.core.records import Role


def known_metric(name: str | None) -> str | None:
    """Return a name of a metric; raise `ValueError` when there is none of that name."""
    known = [m for m in (*METRICS, *plugins.METRICS) if m != "auto"]
    if name is not None and name not in known:
        raise ValueError(f"{name!r} is no metric that can judge a source; use one of {', '.join(known)}")
    return name


class SourceMix(Section):
    """How much of a source an epoch draws."""

    take_examples: PositiveInt | None = Field(
        default=None, description="Use only this many of the source's examples, drawn at random; null: all."
    )
    take_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Use only this share of the source's examples, drawn at random; null: all.",
    )
    share: float | None = Field(
        default=None, gt=0, le=1, description="Share of the mixture's examples that come from here."
    )
    weight: PositiveFloat = Field(default=1.0, description="Factor on this source's mixing rate.")
    epochs: PositiveFloat | None = Field(
        default=None, description="How often an epoch of training passes over this source."
    )


class SourceBase(SourceMix):
    """What every source has."""

    task: str | None = Field(
        default=None,
        description="Task name of every record; '{field}' in it stands for that field, '{__file__}' for its file's name, '{__verb__}' for "
        "the root verb of its instruction ('other' without one); null: the reader's own.",
    )
    dataset: str | None = Field(
        default=None,
        description="Underlying dataset of every record, '{field}' likewise; data.holdout.datasets looks at it.",
    )
    license: str | None = Field(
        default=None,
        description="Licence of every record, '{field}' likewise; null: the record's own field `license`. For the card and data.filters.licenses.",
    )
    metric: str | None = Field(
        default=None,
        json_schema_extra=RESUMABLE,
        description="Judges the tasks of this source under eval.metric=auto; null: what the source itself says, or what its answers need.",
    )
    filters: RecordRules | None = Field(
        default=None,
        description="Rules of this source in place of those of data.filters, such as {refusal: false}; rules that it leaves out stay.",
    )
    use: Literal["train", "validation", "seen", "heldout"] = Field(
        default="train",
        description="train, or the set that all of its examples go to: validation chooses; seen (tasks that other sources train) "
        "and heldout (tasks that no source trains) judge.",
    )

    _metric = field_validator("metric")(known_metric)

    @model_validator(mode="after")
    def _one_part(self) -> Self:
        mixing = {n: getattr(self, n) for n in ("take_examples", "take_share", "share", "epochs")}
        mixing |= {"weight": None if self.weight == 1 else self.weight}
        if self.use != "train" and (given := [n for n, value in mixing.items() if value is not None]):
            raise ValueError(
                f"{', '.join(given)} would change nothing, because use={self.use} is never trained on; remove it"
            )
        if self.take_examples is not None and self.take_share is not None:
            raise ValueError(
                f"take_examples={self.take_examples} and take_share={self.take_share:g} both say how much of the source is used; keep one"
            )
        return self


class AskingSource(SourceBase):
    """What sources share whose records may be prompts alone."""

    prompts: bool = Field(
        default=False,
        description="Records are prompts: construct starts from them, training never sees them. Answers are left out, "
        "earlier ones of a conversation kept.",
    )

    @model_validator(mode="after")
    def _is_not_mixed(self) -> Self:
        mixing = {n: getattr(self, n) for n in ("take_examples", "take_share", "share", "epochs")}
        mixing |= {"weight": None if self.weight == 1 else self.weight}
        if self.prompts and self.use != "train":
            raise ValueError(
                f"use={self.use} needs answers to compare with, and prompts=true leaves them out; set prompts=false"
            )
        if self.prompts and (given := [n for n, value in mixing.items() if value is not None]):
            raise ValueError(
                f"{', '.join(given)} would change nothing, because prompts=true is never trained on; remove it"
            )
        return self


class DemoSource(SourceBase):
    """The embedded instruction set: generated text tasks."""

    kind: Literal["demo"]
    examples_per_task: PositiveInt = 400
    seed: NonNegativeInt = 0


class NaturalInstructionsSource(SourceBase):
    """Natural Instructions task files (v1 and v2)."""

    kind: Literal["natural_instructions"]
    path: str = Field(description="Folder of task*.json files, or one file.")
    tasks: tuple[str, ...] = Field(default=("*",), description="Task names or globs to read.")
    task_file: str | None = Field(
        default=None, description="File with one task name per line (an official split)."
    )
    definition: bool = Field(default=True, description="Put the definition into the instruction.")
    positive_examples: NonNegativeInt = 0
    negative_examples: NonNegativeInt = 0
    explanations: bool = False
    max_per_task: PositiveInt | None = Field(default=None, description="Instances a task, the first ones.")


class AlpacaSource(AskingSource):
    """Records of instruction, optional input, output: JSON array, JSON lines, Parquet, CSV or TSV, compressed too.

    Plain lists of prompts likewise: the lines of a .txt file, or JSON strings, are the field `text`.
    """

    kind: Literal["alpaca"]
    path: str = Field(description="A file, a folder of files, or a glob.")
    instruction_field: str = "instruction"
    input_field: str | None = "input"
    output_field: str | tuple[str, ...] = Field(
        default="output",
        description="Of several names the first that a record has; a list of texts there: all acceptable answers.",
    )
    system_field: str | None = None
    history_field: str | None = Field(
        default=None, description="Earlier turns, as a list of [question, answer]."
    )
    instances_field: str | None = Field(
        default=None, description="List of {input, output} that share the instruction (Self-Instruct seeds)."
    )
    strip_suffix: str | None = Field(
        default=None,
        description="Cut from the end of outputs, such as <|endoftext|> in rendered P3 or Flan rows.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, description="Column names of CSV and TSV files without a header line."
    )
    unescape: bool = Field(
        default=False, description="In CSV and TSV, \\n and \\t stand for line end and tab."
    )


class ConversationSource(AskingSource):
    """What sources share whose records are conversations."""

    messages_field: str | None = Field(
        default=None, description="Field that holds the turns; null: messages or conversations."
    )
    role_field: str | None = Field(
        default=None, description="Field of a turn that says who speaks; null: the usual ones of the format."
    )
    content_field: str | None = Field(
        default=None,
        description="Field of a turn that holds what is said; null: the usual ones of the format.",
    )
    roles: dict[str, Role] = Field(
        default_factory=dict,
        description="The source's own role words -> system, user, assistant or tool; the usual ones are known.",
    )
    train_roles: tuple[Role, ...] | None = Field(
        default=None,
        description="Roles whose turns carry loss where the record does not say; null: render.train_on decides.",
    )
    train_end_of_turn: bool = Field(
        default=True, description="Whether the token that ends a turn carries the loss of its turn."
    )


class ChatSource(ConversationSource):
    """Conversations: OpenAI messages, ShareGPT, OASST trees; tools and reasoning included."""

    kind: Literal["chat"]
    path: str = Field(description="A file, a folder of files, or a glob.")
    format: Literal["auto", "messages", "sharegpt", "oasst"] = "auto"
    paths: Literal["best", "all"] = Field(
        default="best", description="OASST trees: the best-ranked path or every path."
    )


class HubSource(ConversationSource):
    """Any `datasets` path (local or hub) with a field mapping."""

    kind: Literal["hub"]
    path: str = Field(description="Hub name, folder of data files, or folder written by save_to_disk.")
    name: str | None = Field(default=None, description="Subset (configuration) of the dataset.")
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = Field(
        default=None,
        description="Files of the dataset to read, names or globs inside it, or {split: files}, as `datasets.load_dataset` takes them; "
        "null: those that it finds. With path=json, csv, parquet or text: any local files.",
    )
    format: Literal["alpaca", "messages", "sharegpt", "text"] = Field(
        default="messages", description="text: raw text, every token of which carries loss."
    )
    fields: dict[str, str] = Field(default_factory=dict, description="Our field -> the dataset's column.")


class PromptsourceSource(SourceBase):
    """Annotated records asked through promptsource templates (P3)."""

    kind: Literal["promptsource"]
    path: str = Field(
        description="The records: a file, a folder of files, a glob, or what `datasets` opens (hub name, save_to_disk)."
    )
    templates: str = Field(
        description="Template YAML, or a folder of them as promptsource has it; `dataset` then says whose templates fit."
    )
    name: str | None = Field(default=None, description="Subset of a hub dataset.")
    split: str = Field(default="train", description="Split of a hub dataset.")
    revision: str | None = Field(default=None, description="Revision of a hub dataset.")
    columns: tuple[str, ...] | None = Field(
        default=None, description="Column names of CSV and TSV files without a header line."
    )
    template_names: tuple[str, ...] = Field(
        default=("*",), description="Names or globs of templates; '!' before one takes its templates away."
    )
    original_task_only: bool = Field(
        default=False, description="Only templates that ask what the dataset was made for."
    )
    unseen_templates: tuple[str, ...] = Field(
        default=(),
        description="Names or globs of templates that are never trained on; the probe of phrasing asks with those of the same kind (original task or not).",
    )
    per_record: Literal["all", "one"] = Field(
        default="all", description="Ask each record through all templates, or through one drawn for it."
    )
    truncate_chars: PositiveInt | None = Field(
        default=None, description="Cut each inserted field, as T0's own data was at 2048; null: whole."
    )
    seed: NonNegativeInt = Field(default=0, description="Of the drawn templates and of the `choice` filter.")


class PatternsSource(SourceBase):
    """Annotated records of any kind, asked through pattern pairs of your own file."""

    kind: Literal["patterns"]
    path: str = Field(
        description="The records: a file, a folder of files, a glob, or what `datasets` opens (hub name, save_to_disk)."
    )
    patterns: str = Field(
        description="YAML file of pattern pairs; its keys stand below (The file of patterns)."
    )
    name: str | None = Field(default=None, description="Subset of a hub dataset.")
    split: str = Field(default="train", description="Split of a hub dataset.")
    revision: str | None = Field(default=None, description="Revision of a hub dataset.")
    columns: tuple[str, ...] | None = Field(
        default=None, description="Column names of CSV and TSV files without a header line."
    )
    pattern_names: tuple[str, ...] = Field(
        default=("*",), description="Names or globs of patterns; '!' before one takes its patterns away."
    )
    unseen_patterns: tuple[str, ...] = Field(
        default=(),
        description="Names or globs of patterns that are never trained on; the probe of phrasing asks with those of the same kind.",
    )
    patterns_per_record: PositiveInt | None = Field(
        default=1, description="Patterns that ask a record, drawn for it by weight; null: all that fit."
    )
    few_shot_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of prompts that show exemplars with their answers."
    )
    shots: PositiveInt = Field(
        default=3, description="Exemplars in such a prompt, at most; their number is drawn."
    )
    exemplar_pool: PositiveInt = Field(
        default=32,
        description="First distinct records of each task that serve as exemplars and are never examples themselves.",
    )
    seed: NonNegativeInt = Field(default=0, description="Of patterns and exemplars.")


FlanVariant = Literal["zero_shot", "few_shot", "cot", "cot_few_shot", "explain", "inversion"]

_FLAN_SHARES: dict[FlanVariant, float] = {
    "zero_shot": 0.3,
    "few_shot": 0.2,
    "cot": 0.25,
    "cot_few_shot": 0.1,
    "explain": 0.05,
    "inversion": 0.1,
}


class ExamplesSource(SourceBase):
    """Examples as the pipeline writes them: generated sets keep their tasks and what they derive from."""

    kind: Literal["examples"]
    path: str = Field(description="A file, a folder of files, or a glob.")


class UntemplatedSource(SourceBase):
    """What sources share whose records no template touches."""

    @model_validator(mode="after")
    def _asks_nothing(self) -> Self:
        if self.use in ("seen", "heldout"):
            raise ValueError(
                f"use={self.use} judges answers to questions, and such records ask none, so nothing could be generated; "
                "use=validation measures their loss"
            )
        return self


class TextSource(UntemplatedSource):
    """Texts that no template touches: raw ones, all tokens of which carry loss, or segments that say whether they do."""

    kind: Literal["text"]
    path: str = Field(description="A file, a folder of files, or a glob; of a .txt file a line is a text.")
    text_field: str = "text"
    segments_field: str = Field(
        default="segments",
        description="List of {text, label}: control tokens in them are real, nothing is added; used where a record has it.",
    )


class TokensSource(UntemplatedSource):
    """Documents that were tokenised elsewhere: `input_ids` and `labels` (-100: no loss), padding by `attention_mask`."""

    kind: Literal["tokens"]
    path: str = Field(description="A file, a folder of files, or a glob.")


class FlanSource(SourceBase):
    """Questions, answers and (where there are) rationales, asked through families of patterns as Flan does it."""

    kind: Literal["flan"]
    path: str = Field(description="A file, a folder of files, or a glob.")
    question_field: str = "question"
    answer_field: str = "answer"
    rationale_field: str | None = Field(default="rationale", description="May be missing from records.")
    options_field: str | None = Field(
        default=None,
        description="List of texts to choose from; null: read from an 'Options:' block in the question.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, description="Column names of CSV and TSV files without a header line."
    )
    unescape: bool = Field(
        default=False, description="In CSV and TSV, \\n and \\t stand for line end and tab."
    )
    variants: dict[FlanVariant, NonNegativeFloat] = Field(
        default=_FLAN_SHARES,
        description="Share of records asked each way; those that need a rationale pass over records without one.",
    )
    without_options: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="Share of multiple-choice questions asked without their options.",
    )
    shots: PositiveInt = Field(default=3, description="Exemplars in a few-shot prompt.")
    exemplar_pool: PositiveInt = Field(
        default=32,
        description="First distinct records of each task that serve as exemplars and are never examples themselves.",
    )
    seed: NonNegativeInt = Field(default=0, description="Of variants, patterns and exemplars.")


SourceConfig = Annotated[
    DemoSource
    | NaturalInstructionsSource
    | AlpacaSource
    | ChatSource
    | HubSource
    | PromptsourceSource
    | FlanSource
    | PatternsSource
    | TextSource
    | TokensSource
    | ExamplesSource,
    Field(discriminator="kind"),
]
