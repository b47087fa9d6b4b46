"""Which examples are kept. A rule that is null is off; every drop keeps its reason and what was measured."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from sft_dist.config.base import Section


class LengthRule(Section):
    """Characters of prompt and answer."""

    min_prompt_chars: NonNegativeInt = 1
    min_answer_chars: NonNegativeInt = 1
    max_chars: PositiveInt | None = None


class RepetitionRule(Section):
    """Answers that repeat themselves."""

    ngram: PositiveInt = 4
    max_share: float = Field(default=0.5, gt=0, le=1, description="Largest share of an answer's n-grams that are repeats.")
    min_words: PositiveInt = 32


class AnswerRepeatsPromptRule(Section):
    """Answers that are the prompt again."""

    max_overlap: float = Field(default=0.95, gt=0, le=1, description="Longest common substring over answer length.")
    min_answer_chars: PositiveInt = 40


class FiltersConfig(Section):
    """Rules by name."""

    length: LengthRule | None = LengthRule()
    control_characters: bool = Field(default=True, description="Drop text with control characters other than tab and line ends.")
    repetition: RepetitionRule | None = None
    answer_repeats_prompt: AnswerRepeatsPromptRule | None = None
    refusal: bool = Field(default=False, description="Drop answers that refuse.")
    exact_duplicates: bool = Field(default=True, description="Keep one of several examples with equal prompt and answer in a source.")
    eval_inputs: bool = Field(default=True, description="Drop training examples whose input is an evaluation input.")
