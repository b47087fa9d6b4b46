"""<data.dir>/eval/{validation,seen,heldout}.jsonl -> the examples of each set, at most a fixed number a task."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object
from sft_dist.core.records import Example, Message, example_from_dict
from sft_dist.core.rng import derive
from sft_dist.core.sets import NEAR, SetName


def load_eval_sets(
    data_dir: Path, names: Sequence[SetName], *, max_per_task: int | None, seed: int
) -> dict[SetName, list[Example]]:
    """Read evaluation sets of a data folder or run folder, capped a task; sets without an example are left out.

    Args:
        data_dir: The folder that `prepare` wrote, or a run folder.
        names: The sets, such as `core.sets.JUDGES`.
        max_per_task: Examples of each task at most; None takes all.
        seed: Decides which examples a cap keeps, whatever the order of the file.

    Raises:
        UserError: When no set holds anything, or when a line cannot be read.
    """
    sets: dict[SetName, list[Example]] = {}
    for name in names:
        if examples := _read(data_dir / "eval" / f"{name}.jsonl"):
            sets[name] = cap_per_task(examples, max_per_task, seed)
    if not sets:
        raise UserError(
            f"{data_dir / 'eval'} holds no evaluation examples, so there is nothing to generate on; set "
            "data.holdout.share, examples_per_task, tasks or number, and run `sft-dist prepare` again"
        )
    return sets


def has_sets(data_dir: Path, names: Iterable[SetName]) -> bool:
    """Return whether any of the sets of a data folder or run folder holds an example."""
    paths = [data_dir / "eval" / f"{name}.jsonl" for name in names]
    return any(path.is_file() and path.stat().st_size for path in paths)


def near_tasks(data_dir: Path) -> dict[str, str]:
    """Return held-out task -> why it is near a trained one; held-out tasks that are not named are far."""
    path = data_dir / "eval" / NEAR
    return read_object(path, "prepare the data again") if path.is_file() else {}


def cap_per_task(examples: Iterable[Example], max_per_task: int | None, seed: int) -> list[Example]:
    """Keep at most `max_per_task` examples of each task: drawn by seed, answers as balanced as the task allows.

    A task with few labels keeps equally many examples of each (as the official Natural Instructions test sets do),
    so that a constant answer cannot look good; a task whose answers all differ is drawn at random. Tasks come in
    alphabetical order, and the examples of one task in the order of the draw.
    """
    by_task: dict[str, dict[str, Example]] = {}
    for e in examples:
        by_task.setdefault(e.task, {}).setdefault(e.id, e)
    kept: list[Example] = []
    for _, members in sorted(by_task.items()):
        drawn = sorted(members.values(), key=lambda e: derive(seed, "eval", e.id))
        nth_of_label: Counter[str] = Counter()
        ranked: list[tuple[int, int, Example]] = []
        for order, e in enumerate(drawn):
            label = e.answers[0].strip().lower()
            ranked.append((nth_of_label[label], order, e))
            nth_of_label[label] += 1
        ranked.sort(key=lambda entry: entry[:2])
        kept += [e for _, _, e in ranked[:max_per_task]]
    return kept


def prompt_text(example: Example) -> str:
    """Return what is asked, for people to read: the turns before the last answer, roles shown if there are several."""
    asked = _asked(example)
    if len(asked) == 1:
        return asked[0].content
    return "\n\n".join(f"{m.role}: {m.content}" for m in asked)


def user_text(example: Example) -> str:
    """Return what the user wrote before the last answer, for similarity."""
    return "\n".join(m.content for m in _asked(example) if m.role == "user")


def up_to_answer(example: Example) -> Example:
    """Return the example up to its last answer: a question behind it is not the one that it answers."""
    return replace(example, messages=example.messages[: _answer_at(example) + 1])


def _asked(example: Example) -> tuple[Message, ...]:
    return example.messages[: _answer_at(example)]


def _answer_at(example: Example) -> int:
    """Return the place of the last answer; behind the end where there is none."""
    turns = example.messages
    return max((i for i, m in enumerate(turns) if m.role == "assistant"), default=len(turns))


def _read(path: Path) -> list[Example]:
    if not path.exists():
        return []
    out = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            out.append(example_from_dict(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path}:{number} is not an evaluation example ({type(error).__name__}: {error}), so scores would be "
                "wrong; the file was changed or cut, run `sft-dist prepare` again"
            ) from None
    return out


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
class Continuation:
    """Whether a model goes on with an answer word for word from its first half, over `tokens` tokens; 0 where it was not asked."""

    id: str
    equal: bool
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerLoss:
    """The model's loss on the answer of one example.

    Attributes:
        id: Of the example.
        nats: Total over the target tokens.
        tokens: Target tokens.
        top: The three most likely tokens at each of the first `SHOWN_TOKENS` targets, the likeliest first.
    """

    id: str
    nats: float
    tokens: int
    top: tuple[tuple[int, ...], ...] = ()


Kind: TypeAlias = Literal["generate", "loss", "continue"]
"""What a model is asked for: an answer, the loss on the right one, the second half of the right one."""
KINDS: tuple[Kind, ...] = ("generate", "loss", "continue")
SHOWN_TOKENS = 64
"""Tokens of an answer of which the likeliest are kept."""
