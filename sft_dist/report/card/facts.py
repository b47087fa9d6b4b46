"""What a dataset card says, as numbers. The pages print these and nothing else; card.json holds them for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sft_dist.core.records import Example

RARE = 0.5  # a task is under-represented when it has less than this part of an equal share
# Repeats are worth nearly as much as new data up to four passes (Muennighoff et al. 2023, "Scaling Data-Constrained
# Language Models"); beyond, less and less.
REPEATED = 4.0
BINS = 20  # of the histogram of ROUGE-L


@dataclass(frozen=True, kw_only=True, slots=True)
class Amount:
    """How much of something there is in the stores, and in one epoch of training."""

    examples: int = 0
    tokens: int = 0
    target_tokens: int = 0
    drawn_examples: int = 0
    drawn_tokens: int = 0
    drawn_target_tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(**{k: getattr(self, k) + getattr(other, k) for k in self.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFacts:
    """One source: where it comes from, what became of its records."""

    name: str
    kind: str
    license: str | None
    files: tuple[tuple[str, int], ...]  # (name, bytes)
    datasets: Mapping[str, int]  # underlying dataset -> training examples
    read: int
    evaluation: int
    unreadable: int
    prompts: int  # records that only ask: construct starts from them, nothing is trained on them
    skipped: Mapping[str, int]  # what the reader made no record of, by design: not among `read`
    dropped: Mapping[str, int]
    rendered: Mapping[str, int]  # what the renderer counted, as `Renderer.counts` names it
    amount: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskLabels:
    """What its files say about a task.

    Attributes:
        category: The first one.
        domains: All of them; a task may have several.
        language: Of inputs and outputs, "English to Spanish" where they differ.
    """

    category: str | None = None
    domains: tuple[str, ...] = ()
    language: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFacts:
    """One task, over all sources that hold it."""

    name: str
    sources: tuple[str, ...]
    labels: TaskLabels
    amount: Amount


@dataclass(frozen=True, kw_only=True, slots=True)
class Balance:
    """How even the tasks are.

    Attributes:
        effective_tasks: exp of the entropy of the shares: as many equal tasks would be as diverse.
        largest: Share of the largest task.
        rare: Tasks with less than `RARE` of an equal share, the rarest first.
    """

    effective_tasks: float
    largest: float
    rare: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diversity:
    """How different instructions, prompts and answers are.

    Attributes:
        instructions: Distinct instructions.
        with_verb: Of them, those with a known root verb.
        verbs: (verb, noun, distinct instructions), the most frequent first; noun "": none was found.
        sampled: Examples whose texts were compared.
        distinct: "prompts" and "answers" -> (different, all) n-grams for n = 1, 2, 3.
        nearest: "instructions" and "prompts" -> how many have their nearest neighbour's ROUGE-L in each of `BINS` bins.
        nearest_mean: The mean of the same.
        languages: "prompts" and "answers" -> code of the detected language -> texts; "": too short to tell.
    """

    instructions: int
    with_verb: int
    verbs: tuple[tuple[str, str, int], ...]
    sampled: int
    distinct: Mapping[str, tuple[tuple[int, int], ...]]
    nearest: Mapping[str, tuple[int, ...]]
    nearest_mean: Mapping[str, float]
    languages: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Everything on the card.

    Attributes:
        name: Of the run's config.
        sources: In the order of the config.
        tasks: The largest first.
        lengths: Training examples whose tokens lie in [2^k, 2^(k+1)), by k.
        answer_lengths: The same of the tokens that carry loss.
        turns: Answers in an example -> training examples.
        total: All sources together.
        before: Balance of the tasks in the stores.
        after: Balance in one epoch.
        warnings: What is wrong with the mixture -> the tasks that it concerns: `nothing_kept` (read and not held out,
            but no example is left), `never_drawn` (stored, but not in the epoch), `under_represented` (drawn, but `rare`), `repeated` (more than
            `REPEATED` passes an epoch), `scarce` (both of the last two, and named there alone).
        first_dropped: Reason -> the first record that it dropped: its source, its id (or place, where it cannot be read), the detail.
        across_sources: Examples that are not drawn because an earlier source holds them.
        not_trained: Drawn, but not trained on, by reason; and how many were cut to fit a row.
        diversity: See there.
        samples: Source -> examples.
        contaminated: Evaluation examples that were found in training data.
        evaluation: Evaluation set -> (tasks, examples).
        licenses: Licence -> source -> training examples; "": it is not stated.
        id_files: Key of data.filters -> what was found in its file by id (`selection.id_files.IdFile`).
        held_out: Tasks that are never trained on.
        settings: What of the config shapes the data.
    """

    name: str
    sources: tuple[SourceFacts, ...]
    tasks: tuple[TaskFacts, ...]
    lengths: Mapping[int, int]
    answer_lengths: Mapping[int, int]
    turns: Mapping[int, int]
    total: Amount
    before: Balance
    after: Balance
    warnings: Mapping[str, tuple[str, ...]]
    first_dropped: Mapping[str, Mapping[str, str]]
    across_sources: int
    not_trained: Mapping[str, int]
    diversity: Diversity
    samples: Mapping[str, tuple[Example, ...]]
    contaminated: tuple[Mapping[str, Any], ...]
    evaluation: Mapping[str, tuple[int, int]]
    licenses: Mapping[str, Mapping[str, int]]
    id_files: Mapping[str, Mapping[str, Any]]
    held_out: tuple[str, ...]
    settings: Mapping[str, Any]

    @property
    def dropped(self) -> dict[str, int]:
        """Records that were dropped, by reason, the most frequent first."""
        counts: Counter[str] = Counter()
        for source in self.sources:
            counts.update(source.dropped)
        return dict(sorted(counts.items(), key=lambda d: (-d[1], d[0])))

    def groups(self) -> dict[str, dict[str, tuple[int, Amount]]]:
        """Return "categories", "domains", "languages" -> label -> (tasks, amount), the largest first.

        Tasks without a label are left out; one with several domains counts in each.
        """
        labelled: dict[str, list[tuple[str | None, TaskFacts]]] = {
            "categories": [(t.labels.category, t) for t in self.tasks],
            "domains": [(d, t) for t in self.tasks for d in t.labels.domains],
            "languages": [(t.labels.language, t) for t in self.tasks],
        }
        return {kind: _grouped(pairs) for kind, pairs in labelled.items()}


def _grouped(pairs: Sequence[tuple[str | None, TaskFacts]]) -> dict[str, tuple[int, Amount]]:
    out: dict[str, tuple[int, Amount]] = {}
    for label, task in pairs:
        if label is not None:
            tasks, amount = out.get(label, (0, Amount()))
            out[label] = tasks + 1, amount + task.amount
    return dict(sorted(out.items(), key=lambda g: (-g[1][1].examples, g[0])))
