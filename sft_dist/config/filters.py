"""Which examples are kept. A rule that is null (or false) is off; every drop keeps its reason and what was measured."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from sft_dist.config.base import Section
from sft_dist.config.plugins import FILTERS

Script = Literal[
    "Latin",
    "Cyrillic",
    "Greek",
    "Arabic",
    "Hebrew",
    "Devanagari",
    "Bengali",
    "Tamil",
    "Thai",
    "Han",
    "Kana",
    "Hangul",
]


class LengthRule(Section):
    """Characters of prompt and answer."""

    min_prompt_chars: NonNegativeInt = Field(default=1, description="Of all user turns together.")
    min_answer_chars: NonNegativeInt = Field(
        default=1, description="Of every assistant turn without a tool call."
    )
    max_chars: PositiveInt | None = Field(default=None, description="Of all turns together.")

    @model_validator(mode="after")
    def _check(self) -> LengthRule:
        least = self.min_prompt_chars + self.min_answer_chars
        if self.max_chars is not None and self.max_chars < least:
            raise ValueError(
                f"max_chars={self.max_chars} is less than min_prompt_chars + min_answer_chars = {least}, "
                "so every example would be dropped; raise the first or lower the others"
            )
        return self


class RepetitionRule(Section):
    """Answers that repeat themselves."""

    ngram: PositiveInt = Field(
        default=4, description="Words of an n-gram; a Han or Kana character counts as a word."
    )
    max_share: float = Field(
        default=0.5, gt=0, le=1, description="Largest share of an answer's n-grams that are repeats."
    )
    min_words: PositiveInt = Field(default=32, description="Shorter answers are not judged.")


class AnswerRepeatsPromptRule(Section):
    """Answers that are the prompt again."""

    max_overlap: float = Field(
        default=0.95, gt=0, le=1, description="Longest common substring over answer length."
    )
    min_answer_chars: PositiveInt = Field(
        default=40, description="Shorter answers are not judged: a label often stands in the prompt."
    )


class TruncatedAnswerRule(Section):
    """Answers that stop in the middle: an open code block, a trailing comma or opening bracket, a dangling 'the'."""

    min_words: PositiveInt = Field(
        default=16, description="Shorter answers are not judged by their last word."
    )


class ScriptRule(Section):
    """Language, as far as the script tells it: letters outside the allowed scripts."""

    allow: tuple[Script, ...] = Field(default=("Latin",), min_length=1)
    min_share: float = Field(
        default=0.5, gt=0, le=1, description="Least share of letters in the allowed scripts."
    )
    min_letters: PositiveInt = Field(default=20, description="Texts of fewer letters are not judged.")


class LanguageRule(Section):
    """Language, by naive Bayes over byte n-grams (py3langid)."""

    allow: tuple[str, ...] = Field(
        default=("en",), min_length=1, description="ISO 639 codes, such as en, de, zh."
    )
    min_probability: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Least probability of languages that are not allowed, together, at which a text is dropped.",
    )
    min_letters: PositiveInt = Field(
        default=40,
        description="Prompts and answers of fewer letters are not judged; a Han or Kana character counts as five.",
    )


class NearDuplicatesRule(Section):
    """Examples whose prompt and answer are nearly those of an earlier one (MinHash LSH, verified)."""

    threshold: float = Field(
        default=0.8, gt=0, le=1, description="Jaccard similarity of word shingles that each part must reach."
    )
    shingle_words: PositiveInt = Field(default=5, description="Words of a shingle.")
    permutations: int = Field(default=128, ge=16, le=1024, description="Values of a MinHash signature.")
    across_sources: bool = Field(
        default=False,
        description="Compare with earlier sources too, in the order of the config; a change there then rebuilds later ones.",
    )


class LeakageRule(Section):
    """Training examples that share long runs of words with evaluation examples."""

    ngram: PositiveInt = Field(default=8, description="Words of an n-gram; 13 is the stricter custom.")
    coverage: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the words of one (input, or input and answer) that stand in the other.",
    )


class ScoreRule(Section):
    """Scores of any tool, joined to the training examples by content id."""

    file: str | None = Field(
        default=None,
        description="Parquet, JSON lines, CSV or TSV with a column `id`: a file, a folder or a glob; null: what `sft-dist score` wrote.",
    )
    column: str | None = Field(
        default=None, description="Column of numbers that is read; null: the name of the score."
    )
    min: float | None = Field(default=None, description="Least score that is kept.")
    max: float | None = Field(default=None, description="Largest score that is kept.")
    keep_top: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each task of a source that is kept, the best first (equal scores together); null: all.",
    )
    best: Literal["high", "low"] = Field(default="high", description="Which scores are the best.")
    missing: Literal["keep", "drop"] = Field(
        default="keep", description="What becomes of examples without a score; they are counted either way."
    )

    @model_validator(mode="after")
    def _check(self) -> ScoreRule:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(
                f"min={self.min:g} is more than max={self.max:g}, so every example would be dropped; swap them"
            )
        return self

    @property
    def drops(self) -> bool:
        """Whether anything can be dropped by it."""
        limits = (self.min, self.max, self.keep_top)
        return self.missing == "drop" or any(limit is not None for limit in limits)


class BudgetRule(Section):
    """So many training examples, chosen to cover much and to score high; each task keeps its part."""

    examples: PositiveInt = Field(description="How many are kept of all sources together.")
    score: str | None = Field(
        default=None, description="Name of one of `scores`: the better, the likelier; null: coverage alone."
    )
    task_min: PositiveInt = Field(
        default=100,
        description="Examples that each task keeps, if it has as many; what is left is divided in proportion to the rest of each.",
    )


class RecordRules(Section):
    """Rules that judge one record alone, by name. A source may set its own (`data.sources.NAME.filters`)."""

    own: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Rules of plugins: name -> options (docs/plugins.md)."
    )
    length: LengthRule | None = LengthRule()
    control_characters: bool = Field(
        default=True, description="Drop text with control characters other than tab and line ends."
    )
    broken_text: bool = Field(
        default=False, description="Drop text with replacement characters or the marks of a wrong decoding."
    )
    placeholder: bool = Field(
        default=False, description="Drop answers that are a placeholder, a bare link or markup left over."
    )
    format: bool = Field(
        default=False,
        description="Drop answers that go on with another turn ('### Instruction:'), and broken JSON where JSON was asked for.",
    )
    refusal: bool = Field(default=False, description="Drop answers that refuse.")
    truncated_answer: TruncatedAnswerRule | None = None
    script: ScriptRule | None = None
    repetition: RepetitionRule | None = None
    language: LanguageRule | None = None
    answer_repeats_prompt: AnswerRepeatsPromptRule | None = None

    @field_validator("own")
    @classmethod
    def _added(cls, own: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in own:
            if name not in FILTERS:
                raise ValueError(
                    f"{name!r} is a rule that no plugin adds; plugins add: {', '.join(FILTERS) or 'none'}"
                )
        return own


class FiltersConfig(RecordRules):
    """Rules by name."""

    exact_duplicates: bool = Field(
        default=True, description="Keep one of several examples with equal prompt and answer in a source."
    )
    eval_inputs: bool = Field(
        default=True, description="Drop training examples whose input is an evaluation input."
    )
    near_duplicates: NearDuplicatesRule | None = Field(
        default=None, description="Keep the first of several nearly equal examples."
    )
    # Off: where tasks are made from slots ("In Rome we talked about bread and then about cheese"), examples that differ
    # in the slot share most of their words. It drops 0.9 % of the embedded set that way, and 5 % of a sample of Natural
    # Instructions, there nearly always a passage or question that several tasks have in common.
    leakage: LeakageRule | None = Field(
        default=None, description="Drop training examples that give evaluation examples away."
    )
    drop_ids: str | None = Field(
        default=None,
        description="File (folder, glob) with a column `id`: examples of these ids are not trained on.",
    )
    licenses: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Licences that are allowed, as names or globs in any case; records of others, or of none, are dropped.",
    )
    scores: dict[str, ScoreRule] = Field(
        default_factory=dict,
        description="Name -> scores by id, of any tool; those that `sft-dist score` writes are called ifd.",
    )

    budget: BudgetRule | None = Field(
        default=None, description="Keep so many examples, the best and the most different."
    )

    @model_validator(mode="after")
    def _scores_decide(self) -> FiltersConfig:
        used = self.budget.score if self.budget else None
        if used is not None and used not in self.scores:
            raise ValueError(
                f"budget.score={used!r} is none of `scores` ({', '.join(self.scores) or 'there are none'}), so nothing says which "
                f"examples are the best; add scores.{used} with its file"
            )
        for name, rule in self.scores.items():
            if not rule.drops and name != used:
                raise ValueError(
                    f"scores.{name} drops nothing, so its file would be read for nothing; set min, max, keep_top or missing=drop, or name it in budget.score"
                )
        return self

    def with_rules(self, own: RecordRules | None) -> FiltersConfig:
        """Return these rules, those that a source sets itself in their place.

        Args:
            own: The rules of a source; what it leaves unset stays as it is here.
        """
        update = {name: getattr(own, name) for name in own.model_fields_set} if own else {}
        return self.model_copy(update=update)

    def without_scores(self) -> FiltersConfig:
        """Return the rules that need no file of scores: it may not be there yet."""
        return self.model_copy(update={"scores": {}, "budget": None})
