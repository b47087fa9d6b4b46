"""What a teacher is asked with: the prompts of `construct/templates.py`, each of which the user's own file may replace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft_dist.config.user_files import ListPrompt, PromptFile, ShownPrompt
from sft_dist.construct.templates import (
    LAST_TASK,
    OPERATIONS,
    VERSION,
    classification_prompt,
    conversation,
    evolve_prompt,
    input_first_prompt,
    next_turn_prompt,
    output_first_prompt,
    same_prompt,
    tasks_prompt,
    wild_prompt,
)
from sft_dist.core.slots import SlotText

Demonstrations = Sequence[tuple[str, Sequence[tuple[str, str]]]]


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts, by what they ask for; `own` replaces those that it has."""

    own: PromptFile = field(default_factory=PromptFile)

    @property
    def version(self) -> Any:
        """What decides the prompts, for the key of a journal."""
        own = self.own.model_dump(exclude_defaults=True)
        return {"ours": VERSION, "own": own} if own else VERSION

    @property
    def system(self) -> str | None:
        """The system turn of every request to a chat model."""
        return self.own.system

    @property
    def operations(self) -> tuple[str, ...]:
        """The ways to rewrite an instruction, one of which is drawn."""
        return tuple(self.own.evolve) or OPERATIONS

    def tasks(self, shown: Sequence[str], *, chat: bool) -> str:
        """Return the request to continue a list of tasks."""
        return tasks_prompt(shown, chat=chat) if self.own.tasks is None else _list(self.own.tasks, shown)

    def wild(self, shown: Sequence[str], *, chat: bool) -> str:
        """Return the request for new prompts like collected ones."""
        return wild_prompt(shown, chat=chat) if self.own.wild is None else _list(self.own.wild, shown)

    def classification(self, shown: Sequence[tuple[str, bool]], instruction: str) -> str:
        """Return the question whether an instruction asks for one of a few labels."""
        own = self.own.classification
        if own is None:
            return classification_prompt(shown, instruction)
        items = [{"instruction": text, "answer": "Yes" if yes else "No"} for text, yes in shown]
        return _shown(own, items, {"instruction": instruction})

    def input_first(self, shown: Demonstrations, instruction: str, *, most: int) -> str:
        """Return the request for instances of an open task."""
        own = self.own.input_first
        if own is None:
            return input_first_prompt(shown, instruction, most=most)
        return _instances(own, shown, instruction, most)

    def output_first(self, shown: Demonstrations, instruction: str, *, most: int) -> str:
        """Return the request for instances of a classification."""
        own = self.own.output_first
        if own is None:
            return output_first_prompt(shown, instruction, most=most)
        return _instances(own, shown, instruction, most)

    def evolve(self, operation: str, instruction: str) -> str:
        """Return the request to rewrite an instruction."""
        if not self.own.evolve:
            return evolve_prompt(operation, instruction)
        return SlotText.parse(self.own.evolve[operation]).fill({"instruction": instruction})

    def same(self, first: str, second: str) -> str:
        """Return the question whether two instructions ask the same; the answer begins with Equal where they do."""
        if self.own.equal is None:
            return same_prompt(first, second)
        return SlotText.parse(self.own.equal).fill({"first": first, "second": second})

    def next_turn(self, spoken: Sequence[tuple[str, str]]) -> str:
        """Return the request for the next turn of a user, (role, text) being what was said."""
        text = conversation(spoken)
        if self.own.next_turn is None:
            return next_turn_prompt(text)
        return SlotText.parse(self.own.next_turn).fill({"conversation": text})

    def answer(self, instruction: str, given: str) -> str | None:
        """Return what an instruction is wrapped in to be answered; None: nothing of the user's."""
        own = (
            self.own.answer
            if given or self.own.answer_without_input is None
            else self.own.answer_without_input
        )
        if own is None:
            return None
        text = SlotText.parse(own)
        whole = f"{instruction}\n\n{given}" if given and "input" not in text.names else instruction
        return text.fill({"instruction": whole, "input": given})


def _list(own: ListPrompt, shown: Sequence[str]) -> str:
    item = SlotText.parse(own.item)
    lines = [item.fill({"number": str(i), "instruction": text}) for i, text in enumerate(shown, 1)]
    values = {"shown": own.gap.join(lines), "first": str(len(shown) + 1), "last": str(LAST_TASK - 1)}
    return SlotText.parse(own.prompt).fill(values)


def _instances(own: ShownPrompt, shown: Demonstrations, instruction: str, most: int) -> str:
    instance = SlotText.parse(own.instance)
    items = []
    for text, pairs in shown:
        written = [
            instance.fill({"number": str(i), "input": given, "output": output})
            for i, (given, output) in enumerate(pairs, 1)
        ]
        items.append({"instruction": text, "instances": "\n".join(written)})
    return _shown(own, items, {"instruction": instruction, "most": str(most)})


def _shown(own: ShownPrompt, items: Sequence[Mapping[str, str]], values: Mapping[str, str]) -> str:
    item = SlotText.parse(own.item)
    shown = own.gap.join([item.fill(i) for i in items])
    return SlotText.parse(own.prompt).fill({**values, "shown": shown})
