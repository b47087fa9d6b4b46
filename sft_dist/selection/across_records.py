"""What a record's neighbours decide: leakage is noted, of equal and nearly equal examples the first is kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sft_dist.config.data import DataConfig
from sft_dist.core.records import Drop, Example
from sft_dist.filters import Seen
from sft_dist.filters.decontamination import Overlap
from sft_dist.filters.near_duplicates import NearDuplicates, bands_of
from sft_dist.selection.facts import Ranked
from sft_dist.selection.judge import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Contaminated:
    """An evaluation example that training examples gave away; they are dropped.

    Attributes:
        id: The evaluation example.
        task: Its task.
        examples: Training examples that were dropped because of it.
        source: Source of the one that covers most of it.
        example: Its id.
        coverage: Share of words that the two have in common.
        how: `eval_in_training`, `training_in_eval` or `same_question`.
        span: Words that both hold.
    """

    id: str
    task: str
    examples: int
    source: str
    example: str
    coverage: float
    how: str
    span: str


class ContaminationLog:
    """The evaluation examples, and of each the training examples that give it away."""

    def __init__(self, examples: list[Example] | None = None) -> None:
        self.examples = examples or []
        self._counts: Counter[int] = Counter()
        self._worst: dict[int, tuple[Overlap, str, str]] = {}

    def add(self, leaks: tuple[Overlap, ...], source: str, example_id: str) -> Drop:
        """Note what a training example gives away; return why it is dropped."""
        for leak in leaks:
            self._counts[leak.item] += 1
            if leak.item not in self._worst or leak.coverage > self._worst[leak.item][0].coverage:
                self._worst[leak.item] = (leak, source, example_id)
        first = leaks[0]
        item = self.examples[first.item]
        return Drop(
            "leakage",
            f"{first.how}: {first.coverage:.2f} of the words, of evaluation example {item.id} of {item.task} ({item.source}): {first.span!r}",
        )

    def contaminated(self) -> tuple[Contaminated, ...]:
        """Return the evaluation examples that were found, in their order."""
        return tuple(
            Contaminated(
                id=self.examples[i].id,
                task=self.examples[i].task,
                examples=self._counts[i],
                source=source,
                example=example,
                coverage=round(leak.coverage, 4),
                how=leak.how,
                span=leak.span,
            )
            for i, (leak, source, example) in sorted(self._worst.items())
        )


@dataclass
class CrossRecordFilter:
    """Judges the training examples of one source, in order."""

    source: str
    contamination: ContaminationLog
    near: NearDuplicates | None
    exact: bool

    def __post_init__(self) -> None:
        self._seen = Seen()

    def __call__(self, record: Ranked, verdict: Verdict) -> Drop | None:
        """Return why a training example is dropped, or None."""
        if verdict.leaks:
            return self.contamination.add(verdict.leaks, self.source, record.id)
        if self.exact and record.equal is not None and (first := self._seen.first(record.equal, record.id)):
            return Drop(
                "exact_duplicate", f"like example {first} of {self.source}: the same prompt and answer"
            )
        if self.near is not None and record.bands is not None and verdict.shingles is not None:
            drop = self.near.add(verdict.shingles, *record.bands, record.id, self.source)
            if drop:
                return drop
        return None


def near_index(data: DataConfig) -> NearDuplicates:
    """Return an empty index for the config's rule."""
    rule = data.filters.near_duplicates
    assert rule is not None
    return NearDuplicates(threshold=rule.threshold, bands=bands_of(rule.threshold, rule.permutations)[0])
