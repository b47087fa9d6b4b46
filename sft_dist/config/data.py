"""What is trained on: sources, held-out tasks, filters, rendering, mixture, packing."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, JsonValue, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from sft_dist.config.base import ANYTIME, FOLDER_NAME, RESUMABLE, Section
from sft_dist.config.filters import FiltersConfig
from sft_dist.config.sources import SourceConfig


class HoldoutConfig(Section):
    """What is never trained on and judges the model, decided before anything is built from the data.

    Two sets: `seen`, new inputs of trained tasks, and `heldout`, tasks that are never trained on. A held-out task is near when
    a trained task is of its family or has a similar instruction, else far.
    """

    tasks: tuple[str, ...] = Field(default=(), description="Task names or globs that are held out entirely.")
    task_file: str | None = Field(
        default=None, description="File with one held-out task name per line (an official split)."
    )
    number: NonNegativeInt = Field(
        default=0, description="How many further tasks to hold out, drawn by seed."
    )
    examples_per_task: NonNegativeInt = Field(
        default=0, description="Inputs of each trained task that are kept for the set `seen`."
    )
    share: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="Share of each trained task's inputs that is kept for the set `seen`, instead of examples_per_task.",
    )
    max_eval_per_task: PositiveInt = Field(
        default=100, description="Examples of each held-out task that are evaluated."
    )
    datasets: tuple[str, ...] = Field(
        default=(), description="Underlying datasets (globs) whose tasks are held out too."
    )
    whole_datasets: bool = Field(
        default=False,
        description="Refuse everything that comes from the datasets of held-out tasks, not only those tasks.",
    )
    families: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Family -> task names or globs. A held-out task is near when a trained task is of its family.",
    )
    near_similarity: float = Field(
        default=0.7,
        gt=0,
        le=1,
        description="ROUGE-L of two instructions from which on a held-out task is near, where no family says it.",
    )

    @model_validator(mode="after")
    def _check(self) -> HoldoutConfig:
        _refuse_both(self.share, self.examples_per_task, "holdout")
        return self


class ValidationConfig(Section):
    """What chooses: best checkpoint, early stopping, pruning and ranking of sweeps. New inputs of trained tasks.

    A file of its own is a source with `use: validation`.
    """

    examples_per_task: NonNegativeInt = Field(
        default=0, description="Inputs of each trained task that are kept for validation."
    )
    share: float | None = Field(
        default=None,
        gt=0,
        le=0.5,
        description="Share of each trained task's inputs that is kept for validation, instead of examples_per_task.",
    )

    @model_validator(mode="after")
    def _check(self) -> ValidationConfig:
        _refuse_both(self.share, self.examples_per_task, "validation")
        return self


def _refuse_both(share: float | None, examples_per_task: int, section: str) -> None:
    if share is not None and examples_per_task:
        raise ValueError(
            f"{section}.share={share:g} and {section}.examples_per_task={examples_per_task} both say how much of a task is kept; keep one"
        )


class DataConfig(Section):
    """Sources in, one token store a source out."""

    dir: str = Field(
        json_schema_extra=RESUMABLE,
        default="data",
        min_length=1,
        description="Folder of the token stores, evaluation sets and rejects.",
    )
    remote: str | None = Field(
        json_schema_extra=RESUMABLE,
        default=None,
        description="URL (fsspec: s3://, gs://, file://) that finished token stores are copied to; launch.stage_dir then stages from there.",
    )
    root: str | None = Field(
        default=None, description="Folder of raw collections, for paths that are written as ${data.root}/...."
    )
    sources: dict[str, SourceConfig] = Field(default_factory=dict, description="Sources by name.")
    holdout: HoldoutConfig = HoldoutConfig()
    validation: ValidationConfig = ValidationConfig()
    filters: FiltersConfig = FiltersConfig()
    max_bad_share: float = Field(
        json_schema_extra=RESUMABLE,
        default=0.02,
        ge=0,
        le=1,
        description="Share of unreadable records above which the run stops.",
    )
    processes: PositiveInt | None = Field(
        json_schema_extra=ANYTIME,
        default=None,
        description="Processes that read, judge and tokenise; null: one a core.",
    )
    memory_gb: PositiveFloat = Field(
        json_schema_extra=ANYTIME,
        default=4.0,
        description="Memory (GiB) that finding duplicates among all records may take; what needs more goes to disk, in data.dir.",
    )
    shard_examples: PositiveInt = Field(
        default=100_000, description="Records of a source that go into one shard."
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        for name in self.sources:
            if not re.fullmatch(FOLDER_NAME, name):
                raise ValueError(
                    f"sources: {name!r} cannot be the name of a folder, which a store has; use letters, digits, '.', '_', '=' and '-'"
                )
        return self

    def filters_of(self, source: str) -> FiltersConfig:
        """Return the filter rules of a source: those of `filters`, its own in their place."""
        return self.filters.with_rules(self.sources[source].filters)

    @property
    def validates(self) -> bool:
        """Whether anything is kept for validation."""
        own = self.validation.share is not None or self.validation.examples_per_task > 0
        return own or any(s.use == "validation" for s in self.sources.values())


class RenderConfig(Section):
    """How a conversation becomes tokens and which of them carry loss."""

    template: str = Field(
        default="auto",
        description=(
            "auto: the tokenizer's own chat template (its tool_use where a record has tools); or the name of one that the tokenizer "
            "brings; or chatml, llama3, qwen3, alpaca, tk-instruct, plain; or a .jinja file."
        ),
    )
    train_on: Literal["assistant", "last_turn", "all"] = Field(
        default="assistant", description="Which turns carry loss."
    )
    thinking: Literal["auto", "keep_all", "last_turn", "strip"] = Field(
        default="auto",
        description="Which assistant turns keep their reasoning; auto: what the template shows of it, last_turn for built-in ones.",
    )
    train_empty_think: bool = Field(default=False, description="Whether an empty think block carries loss.")
    system: str | None = Field(default=None, description="System prompt for conversations that bring none.")
    expand_turns: bool = Field(
        default=False,
        description=(
            "Whether an answer that carries no loss in its conversation, because the template rewrites history, is trained in a document "
            "of its own that ends with it."
        ),
    )
    clock: str | None = Field(
        default=None,
        description="Date and time (ISO 8601) that a chat template is told; null: when data.dir was first prepared.",
    )
    template_kwargs: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Variables of the chat template, such as enable_thinking: false; a record's own come before them.",
    )
    add_tokens: tuple[str, ...] = Field(
        default=(),
        description="Tokens of text that join the vocabulary; those that it has stay as they are. The model gets rows for them (model.vocab_multiple).",
    )
    add_special_tokens: tuple[str, ...] = Field(
        default=(), description="Control tokens, likewise: text of users is never read as one of them."
    )
    train_vocab_size: PositiveInt | None = Field(
        default=None,
        description="Train a byte-level BPE tokenizer of this size on the kept examples (small models from scratch).",
    )

    @model_validator(mode="after")
    def _check_added(self) -> RenderConfig:
        both = [*self.add_tokens, *self.add_special_tokens]
        for text in both:
            if not text.strip() or not text.isprintable() or both.count(text) > 1:
                raise ValueError(
                    f"add_tokens and add_special_tokens: {text!r} is empty, not printable or given twice, so it cannot be a token of its own; "
                    "write each token once"
                )
        return self

    @property
    def added(self) -> dict[str, bool]:
        """Tokens that join the vocabulary -> whether they are control tokens."""
        return dict.fromkeys(self.add_tokens, False) | dict.fromkeys(self.add_special_tokens, True)


class MixConfig(Section):
    """An epoch's draw over the stores: indices only, so a changed weight tokenises nothing."""

    rate: Literal["all", "proportional", "temperature"] = Field(
        default="all",
        description="all: every example once; proportional: min(n, cap) a task; temperature: min(n, cap)^(1/T) a task.",
    )
    cap: PositiveInt | None = Field(
        default=None, description="Examples-proportional cap (Flan, T5), per task."
    )
    temperature: PositiveFloat = Field(default=1.0, description="T of temperature mixing; larger is flatter.")
    task_min: NonNegativeInt = Field(
        default=0, description="Each task is drawn at least this often an epoch (repeats if rare)."
    )
    task_max: PositiveInt | None = Field(
        default=None, description="Each task is drawn at most this often an epoch."
    )
    preset: Literal["flan2021", "flan2022", "t0"] | None = Field(
        default=None, description="Published caps and weights."
    )
    unit: Literal["examples", "tokens", "targets"] = Field(
        default="examples",
        description="What the `share` of a source is a share of: the examples of an epoch, their tokens, or those that carry loss.",
    )
    epoch_examples: PositiveInt | None = Field(
        default=None, description="Examples an epoch; null: as many as there are."
    )
    epoch_tokens: PositiveInt | None = Field(
        default=None,
        description="Tokens an epoch, of the unit tokens or targets; null: as many as there are.",
    )
    drop_duplicates: bool = Field(
        default=True, description="Draw an example that several sources hold once only."
    )

    @model_validator(mode="after")
    def _check(self) -> MixConfig:
        given = "epoch_tokens" if self.unit == "examples" else "epoch_examples"
        if getattr(self, given) is not None:
            other = "epoch_examples" if self.unit == "examples" else "epoch_tokens"
            raise ValueError(
                f"mix.{given}={getattr(self, given)} with mix.unit={self.unit}: the size of an epoch and the shares of sources would be "
                f"counted in two units; use mix.{other}, or another mix.unit"
            )
        return self


class PackConfig(Section):
    """Documents into rows of `seq_len` tokens."""

    seq_len: PositiveInt = Field(default=4096, description="Tokens a row.")
    too_long: Literal["drop", "truncate_prompt", "truncate_answer", "error"] = Field(
        default="truncate_prompt",
        description=(
            "What happens to a document of more than seq_len tokens: drop; truncate_prompt keeps its end, truncate_answer its beginning; "
            "error. An answer is never trained without its prompt: where one alone fills the row, the document is dropped."
        ),
    )
    window: PositiveInt = Field(
        default=5000, description="Documents that are sorted together; open rows are carried on."
    )
    balance_window: PositiveInt = Field(
        default=1,
        description="Global batches whose rows are ordered by cost together; 1: inside each batch only.",
    )
    packing: bool = Field(default=True, description="false: one document a row.")
    short_first_steps: NonNegativeInt = Field(
        default=0,
        description="Length curriculum: the rows of the first steps come by length of their documents.",
    )

    @model_validator(mode="after")
    def _check(self) -> PackConfig:
        if self.seq_len < 8:
            raise ValueError(
                f"pack.seq_len={self.seq_len} leaves no room for a prompt and an answer; use at least 8"
            )
        return self
