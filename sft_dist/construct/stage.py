"""One stage: an item -> a request -> an outcome, many side by side, journalled in the order of the items."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeAlias, TypeVar

from sft_dist.client import (
    BudgetSpentError,
    Completion,
    CompletionRequest,
    RefusedError,
    UnavailableError,
    map_in_order,
)
from sft_dist.construct.journal import Journal
from sft_dist.construct.teacher import Teacher
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop

Item = TypeVar("Item")
Outcome: TypeAlias = Any  # JSON-ready, or a Drop

AHEAD = 4  # times the concurrency: one slow answer does not hold up the others
SAY_EVERY = 20  # items
AGAIN = {"cut_off", "empty", "unreadable", "unverified"}  # another seed may mend these


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Generic[Item]):
    """How the items of a stage are asked and what is read from the answers.

    Attributes:
        name: For messages and seeds.
        id_of: The item's name: with the run's seed, it decides the seed of its request.
        ask: (item, its id, attempt) -> the request, or a Drop for an item that cannot be asked.
        read: (item, completion) -> the outcome; a Drop whose reason is in AGAIN is attempted again.
        attempts: Requests an item, at most.
        verify: (item, outcome) -> a Drop where the outcome does not pass; `unverified` is attempted again.
        keep: Different outcomes of an item that are wanted: its outcome is their list; None: one, which is its outcome.
    """

    name: str
    id_of: Callable[[int, Item], str]
    ask: Callable[[Item, str, int], CompletionRequest | Drop]
    read: Callable[[Item, Completion], Outcome]
    attempts: int = 1
    verify: Callable[[Item, Outcome], Awaitable[Drop | None]] | None = None
    keep: int | None = None

    async def run(
        self, teacher: Teacher, journal: Journal, items: Iterable[Item], total: int | None = None
    ) -> None:
        """Bring the journal to the end of the items.

        Raises:
            UserError: When the budget is spent; what is left undone is named.
            UnavailableError: When the server is down.
        """

        async def one(numbered: tuple[int, Item]) -> Outcome:
            number, item = numbered
            return await self._outcome(teacher, item, f"{self.name}/{self.id_of(number, item)}")

        todo = islice(enumerate(items), journal.done, None)
        of = f" of {total:,}" if total is not None else ""
        try:
            async for _, outcome in map_in_order(todo, one, ahead=AHEAD * teacher.client.concurrency):
                journal.append(encode(outcome))
                if journal.done % SAY_EVERY == 0:
                    teacher.progress(f"{self.name}: {journal.done:,}{of}")
        except (BudgetSpentError, UnavailableError) as error:
            raise left_undone(
                error, f"{self.name} stands at item {journal.done:,}{of}", teacher.key
            ) from None

    async def _outcome(self, teacher: Teacher, item: Item, name: str) -> Outcome:
        outcome: Outcome = None
        kept: list[Outcome] = []
        for attempt in range(self.attempts):
            request = self.ask(item, name, attempt)
            if isinstance(request, Drop):
                return request
            try:
                completion = await teacher.client.complete(request)
            except RefusedError as error:
                outcome = Drop("refused_by_server", str(error))
                break
            outcome = self.read(item, completion)
            if self.verify is not None and not isinstance(outcome, Drop):
                outcome = await self.verify(item, outcome) or outcome
            if not isinstance(outcome, Drop) and self.keep is not None:
                kept += [outcome] if outcome not in kept else []
                if len(kept) < self.keep:
                    continue
            if not (isinstance(outcome, Drop) and outcome.reason in AGAIN):
                break
        return kept or outcome


def left_undone(error: BudgetSpentError | UnavailableError, where: str, key: str) -> Exception:
    """Return what is said when a stage ends early: a spent budget is the user's decision, a dead server is a failure.

    Args:
        error: Why.
        where: How far the stage came.
        key: Of the config, where the teacher stands.
    """
    if isinstance(error, BudgetSpentError):
        return UserError(
            f"the token budget does not suffice ({error}): {where}. Everything answered is kept; raise "
            f"{key}.budget_tokens and run the same command again"
        )
    return UnavailableError(f"{where}: {error}")


def encode(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as a journal's line."""
    return {"drop": list(outcome)} if isinstance(outcome, Drop) else {"value": outcome}


def outcomes(journal: Journal) -> Iterator[Outcome]:
    """Yield the outcomes that a journal holds."""
    for line in journal:
        yield Drop(*line["drop"]) if "drop" in line else line["value"]
