"""Example -> Drop(reason, what was measured) or None. Cheap rules first. Next: render.

rules             rules on one example, with patterns and ngrams; language: one more
decontamination   finds training examples that contain evaluated ones
exact_duplicates  and near_duplicates: groups of equal and nearly equal examples

A rule that the config sets to null or false is off; 0 is a number like any other. What needs more than the one example
(exact and near duplicates, decontamination, scores by id) is applied by `selection`, which sees every source whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel

from sft_dist.config import plugins
from sft_dist.config.filters import FiltersConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example
from sft_dist.filters.exact_duplicates import Seen, duplicate_key
from sft_dist.filters.language import Language
from sft_dist.filters.rules import (
    AnswerRepeatsPrompt,
    BrokenText,
    ControlCharacters,
    Format,
    Length,
    Placeholder,
    Refusal,
    Repetition,
    Script,
    TruncatedAnswer,
)

__all__ = ["FILTERS", "Filter", "Seen", "build_filters", "duplicate_key", "filters_fingerprint"]

RULES_VERSION = 4  # raised when a rule decides otherwise under the same options


class Filter(Protocol):
    """One rule. It judges an example alone, so any process may apply it to any part of a source.

    Attributes:
        name: Its name in the config.
        reasons: Each reason for which it drops -> what the card says of it.
    """

    name: ClassVar[str]
    reasons: ClassVar[Mapping[str, str]]

    def __call__(self, example: Example) -> Drop | None:
        """Return why the example is dropped, or None."""


# By the config's names, in the order in which they run: the cheapest first.
FILTERS: dict[str, type[Filter]] = {
    "length": Length,
    "broken_text": BrokenText,
    "control_characters": ControlCharacters,
    "placeholder": Placeholder,
    "format": Format,
    "script": Script,
    "truncated_answer": TruncatedAnswer,
    "refusal": Refusal,
    "repetition": Repetition,
    "answer_repeats_prompt": AnswerRepeatsPrompt,
    "language": Language,
}


def build_filters(config: FiltersConfig) -> list[Filter]:
    """Return the rules that are on, in the order in which they run."""
    chosen: list[Filter] = []
    make: Any  # each rule takes its own options
    for name, make in FILTERS.items():
        rule = getattr(config, name)
        if isinstance(rule, BaseModel):
            chosen.append(make(**{f: getattr(rule, f) for f in type(rule).model_fields}))
        elif rule is True:
            chosen.append(make())
    for name, given in config.own.items():
        try:
            chosen.append(plugins.FILTERS[name](**given))
        except (TypeError, ValueError) as error:
            raise UserError(
                f"data.filters.own.{name}: the rule does not take {given} ({error}), so it cannot judge; mend the options"
            ) from None
    return chosen


def filters_fingerprint(config: FiltersConfig) -> str:
    """Return 32 hex digits that change with the rules that are on and with what a rule means."""
    options = {name: rule for name, rule in config.model_dump(mode="json").items() if rule}
    texts = {name: plugins.source_of(plugins.FILTERS[name]) for name in config.own}
    return fingerprint({"version": RULES_VERSION, "rules": options} | ({"own": texts} if texts else {}))
