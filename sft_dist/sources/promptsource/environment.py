"""The names that promptsource gives its templates (`zip`, `choice`, `most_frequent`), in the sandbox with a budget.

Differences from the plain environment of promptsource: chance is derived from the seed, lists that a template makes
take `append` and no other change, and nothing can be loaded from another file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sft_dist.core.template_sandbox import BudgetEnvironment

CPU_SECONDS = 20.0  # of one rendering; the budget runs out in a fraction of it


class PromptEnvironment(BudgetEnvironment):
    """What a template of promptsource runs in."""

    def __init__(self) -> None:
        filters = {"choice": self.choice, "most_frequent": most_frequent}
        super().__init__(cpu_seconds=CPU_SECONDS, filters=filters, variables={"zip": zip}, lists_grow=True)


def most_frequent(items: Sequence[Any]) -> list[Any] | None:
    """Return the items that occur most often, each once."""
    if not items:
        return None
    counts = Counter(items).most_common()
    return [item for item, count in counts if count == counts[0][1]]
