"""The nouns of evaluation. The fields of `Judged` are the fields of a line of eval/generations.jsonl."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """What a model answered to one example.

    Attributes:
        id: Of the example.
        prediction: The answer: reasoning and stop token removed, trimmed.
        stopped: True when the model ended its turn itself, False when it ran into the token limit.
        tokens: Tokens generated, the stop token included.
    """

    id: str
    prediction: str
    stopped: bool
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerLoss:
    """The model's loss on the answer of one example: total nats over `tokens` target tokens."""

    id: str
    nats: float
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """One evaluated example: what was asked, what is right, what the model and the baselines said, and how good.

    `*_em` and `exact_match` are normalised exact match, `strict_exact_match` compares the trimmed text as it is,
    `*rouge_l` is ROUGE-L F1, 0 to 1; all take the best of `references`. The base model's fields are None unless
    it was evaluated too.
    """

    set: str
    task: str
    id: str
    prompt: str
    references: tuple[str, ...]
    prediction: str
    exact_match: bool
    strict_exact_match: bool
    rouge_l: float
    stopped: bool
    majority_answer: str
    nearest_answer: str
    majority_em: bool
    nearest_em: bool
    majority_rouge_l: float
    nearest_rouge_l: float
    base_answer: str | None = None
    base_em: bool | None = None
    base_rouge_l: float | None = None
