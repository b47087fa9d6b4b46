"""The decision (JSON-ready, with a fingerprint) and its application to one example."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeAlias

import xxhash

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example
from sft_dist.sources.base import RECORD

Side: TypeAlias = Literal["train", "eval_seen", "eval_heldout"]

TASK, DATASET = "task:", "dataset:"  # kinds of an origin; anything else is the id of a parent example


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What is never trained on.

    Attributes:
        tasks: Held out entirely.
        inputs: Trained task -> keys of the inputs that are for evaluation only.
        heldout_inputs: Held-out task -> keys of the inputs that are evaluated.
        datasets: Underlying datasets (folded names) of which nothing is trained on.
        ids: Examples that are evaluated and whose descendants are therefore refused, and the annotated records
            ("record:...") that they were made from: no other question about those is trained on.
        copies: Answer keys of the examples of held-out tasks, those that are not evaluated too: the same question with
            the same answer is not trained on, whatever source and task it comes under.
    """

    tasks: frozenset[str] = frozenset()
    inputs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    heldout_inputs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    datasets: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields, everything sorted."""
        return {
            "tasks": sorted(self.tasks),
            "inputs": {t: sorted(self.inputs[t]) for t in sorted(self.inputs)},
            "heldout_inputs": {t: sorted(self.heldout_inputs[t]) for t in sorted(self.heldout_inputs)},
            "datasets": sorted(self.datasets),
            "ids": sorted(self.ids),
            "copies": sorted(self.copies),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Holdout:
        """Inverse of `to_dict`.

        Raises:
            UserError: When the fields are not those of a decision.
        """
        try:
            return cls(
                tasks=frozenset(fields["tasks"]),
                inputs={t: frozenset(keys) for t, keys in fields["inputs"].items()},
                heldout_inputs={t: frozenset(keys) for t, keys in fields["heldout_inputs"].items()},
                datasets=frozenset(fields["datasets"]),
                ids=frozenset(fields["ids"]),
                copies=frozenset(fields["copies"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"this is not a hold-out decision ({error!r}), so what must not be trained on is unknown; "
                "delete the file and prepare again"
            ) from None

    def fingerprint(self) -> str:
        """Return 32 hex digits over the whole decision."""
        return fingerprint(self.to_dict())

    @cached_property
    def evaluated(self) -> frozenset[str]:
        """Input keys that some task is evaluated on."""
        return frozenset().union(*self.inputs.values(), *self.heldout_inputs.values())


def split(example: Example, holdout: Holdout, *, drop_eval_inputs: bool = True) -> Side | Drop:
    """Return the side of an example, or why it is on none.

    Args:
        example: Any example, constructed ones included.
        holdout: The decision.
        drop_eval_inputs: Drop a training example whose input another task is evaluated on. The evaluation examples
            of its own task are never trained on either way.

    Returns:
        "eval_heldout", "eval_seen", "train", or a Drop: `eval_surplus` (of a held-out task, but not among those that
        are evaluated), `heldout_origin` (descends from what is held out), `eval_record`, `heldout_copy` (question and answer of a held-out task), `eval_input` (another task is
        evaluated on that input, or this is a prompt without an answer to evaluate).
    """
    key = input_key(example)
    if example.task in holdout.tasks:
        chosen = holdout.heldout_inputs.get(example.task, frozenset())
        if key in chosen:
            return _asked(example, "eval_heldout", key)
        return Drop(
            "eval_surplus",
            f"task {example.task} is held out and {len(chosen)} other inputs of it are evaluated",
        )
    # records come last: an evaluation example comes from a record that is evaluated, itself
    for origin in (o for o in example.origin if not o.startswith(RECORD)):
        if why := _refused(origin, holdout):
            return Drop("heldout_origin", why)
    if key in holdout.inputs.get(example.task, frozenset()):
        return _asked(example, "eval_seen", key)
    if record := next((o for o in example.origin if o.startswith(RECORD) and o in holdout.ids), None):
        return Drop("eval_record", f"another example made from {record} is evaluated")
    if drop_eval_inputs and key in holdout.evaluated:
        return Drop("eval_input", f"input {key} is an evaluation input of another task")
    if holdout.copies and answer_key(example, key) in holdout.copies:
        return Drop("heldout_copy", f"an example of a held-out task asks input {key} and has the same answer")
    return "train"


def descend(parents: Iterable[Example]) -> tuple[str, ...]:
    """Return the origin of an example that is made from `parents`: their origins, tasks and ids, each once."""
    names = (n for p in parents for n in (*p.origin, TASK + p.task, p.id))
    return tuple(dict.fromkeys(names))


def input_key(example: Example) -> str:
    """Return 16 hex digits for what is asked: INPUT if the record has one, else all user turns.

    Case, white space and Unicode form do not count, so that phrasings of one input fall on one side.
    """
    texts = [example.input] if example.input else [m.content for m in example.messages if m.role == "user"]
    # \x1f between turns only after folding: it counts as white space itself
    whole = "\x1f".join(" ".join(fold(t).split()) for t in texts)
    return xxhash.xxh3_64_hexdigest(whole.encode("utf-8", "surrogatepass"))


def answer_key(example: Example, key: str) -> str:
    """Return 16 hex digits for a question and its answer; `key` is the example's input key."""
    whole = f"{key}\x1f{' '.join(fold(example.output).split())}"
    return xxhash.xxh3_64_hexdigest(whole.encode("utf-8", "surrogatepass"))


def fold(text: str) -> str:
    """Return the text in Unicode form NFKC, case folded, stripped."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _asked(example: Example, side: Side, key: str) -> Side | Drop:
    """Return the side of what is evaluated; a prompt that asks the same goes nowhere: it has no answer to compare with."""
    if example.is_prompt:
        return Drop("eval_input", f"input {key} is evaluated, and this is only a prompt")
    return side


def _refused(origin: str, holdout: Holdout) -> str | None:
    if origin.startswith(DATASET):
        name = origin.removeprefix(DATASET)
        return f"dataset {name} is held out" if fold(name) in holdout.datasets else None
    if origin.removeprefix(TASK) in holdout.tasks:
        return f"made from the held-out task {origin.removeprefix(TASK)}"
    return f"made from the evaluation example {origin}" if origin in holdout.ids else None
