"""The decision (JSON-ready, with a fingerprint) and its application to one example."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, TypeAlias

import xxhash

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example
from sft_dist.core.sets import SetName
from sft_dist.core.words import rouge_l, words
from sft_dist.sources.base import RECORD

Side: TypeAlias = Literal["train"] | SetName

TASK, DATASET = "task:", "dataset:"  # kinds of an origin; anything else is the id of a parent example
SHORT_INPUT_WORDS = 3  # an input of fewer ("Cuba") is the same question only where the answer is the same too
SHORT_INPUT_CHARS = 200  # in which a longer input shows more words than that
COMPARED_WORDS = 200  # of an instruction: the beginning of a long definition says what it asks for
SHOWN_WORDS = 3  # of an input, at least, that is looked for in prompts: "yes" stands in many
SHOWN_LINES, SHOWN_RUN = 1000, 30  # lines of an instruction that is searched, and of an input in it, at most
SAME_INSTRUCTION = 0.7  # ROUGE-L from which on Self-Instruct takes two instructions for the same


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What is never trained on.

    Attributes:
        tasks: Held out entirely.
        inputs: Trained task -> keys of the inputs of the set `seen`.
        validation_inputs: Trained task -> keys of the inputs of the set `validation`.
        heldout_inputs: Held-out task -> keys of the inputs that are evaluated.
        uses: Source -> the set that all of its examples go to; sources that are trained on are not named.
        source_inputs: Keys of the inputs of those sources.
        answers: Answer keys of what is evaluated of trained tasks.
        near: Held-out task -> why it is near: the family or the similar instruction of a trained task. Others are far.
        datasets: Underlying datasets (folded names) of which nothing is trained on.
        ids: Examples that are evaluated and whose descendants are therefore refused, and the annotated records
            ("record:...") that they were made from: no other question about those is trained on.
        copies: Answer keys of the examples of held-out tasks, those that are not evaluated too: the same question with
            the same answer is not trained on, whatever source and task it comes under.
        instructions: Instructions (words, joined by blanks) that held-out tasks have and no trained one: generated examples must not.
        notes: What was asked for and could not be given, one sentence each.
    """

    tasks: frozenset[str] = frozenset()
    inputs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    validation_inputs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    heldout_inputs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    uses: Mapping[str, SetName] = field(default_factory=dict)
    source_inputs: frozenset[str] = frozenset()
    answers: frozenset[str] = frozenset()
    near: Mapping[str, str] = field(default_factory=dict)
    datasets: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()
    copies: frozenset[str] = frozenset()
    instructions: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    @cached_property
    def instruction_words(self) -> list[tuple[str, list[str]]]:
        """The held-out instructions, each with its words."""
        return [(text, text.split()) for text in sorted(self.instructions)]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready fields, everything sorted."""
        return {
            **{name: _sorted_keys(getattr(self, name)) for name in _BY_TASK},
            "uses": dict(sorted(self.uses.items())),
            "near": dict(sorted(self.near.items())),
            **{name: sorted(getattr(self, name)) for name in ("tasks", *_KEYS)},
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Holdout:
        """Inverse of `to_dict`.

        Raises:
            UserError: When the fields are not those of a decision.
        """
        try:
            by_task: dict[str, Any] = {
                n: {t: frozenset(keys) for t, keys in fields[n].items()} for n in _BY_TASK
            }
            keys: dict[str, Any] = {n: frozenset(fields[n]) for n in ("tasks", *_KEYS)}
            named: dict[str, Any] = {n: dict(fields[n]) for n in ("uses", "near")}
            return cls(**by_task, **keys, **named, notes=tuple(fields["notes"]))
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
        chosen = (self.inputs, self.validation_inputs, self.heldout_inputs)
        return self.source_inputs.union(*(keys for tasks in chosen for keys in tasks.values()))


_BY_TASK = ("inputs", "validation_inputs", "heldout_inputs")
_KEYS = ("source_inputs", "answers", "datasets", "ids", "copies", "instructions")


def _sorted_keys(by_task: Mapping[str, frozenset[str]]) -> dict[str, list[str]]:
    return {task: sorted(by_task[task]) for task in sorted(by_task)}


class Asked(NamedTuple):
    """What holding out goes by of one example; all but the text of what stands beside its question.

    Attributes:
        id: Its id.
        task: Its task.
        source: Its source.
        key: Key of its input (`input_key`).
        answered: Key of input and answer (`answer_key`).
        origin: What it derives from.
        is_prompt: Whether it has no answer.
        is_chat: Whether it asks at all.
        short: Whether its input has too few words to be a question of its own: "Cuba" has a currency and a capital.
        generated: Whether it was made from others by `construct`.
        turns: Keys of the single turns of several.
        shows: Whether lines stand beside its question that may show other inputs.
    """

    id: str
    task: str
    source: str
    key: str
    answered: str
    origin: tuple[str, ...] = ()
    is_prompt: bool = False
    is_chat: bool = True
    short: bool = False
    generated: bool = False
    turns: tuple[str, ...] = ()
    shows: bool = False

    @classmethod
    def of(cls, example: Example) -> Asked:
        """Return what holding out goes by of an example."""
        key = input_key(example)
        beside = beside_question(example)
        return cls(
            id=example.id,
            task=example.task,
            source=example.source,
            key=key,
            answered=answer_key(example, key),
            origin=example.origin,
            is_prompt=example.is_prompt,
            is_chat=example.form == "chat",
            short=_is_short(example),
            generated=is_generated(example),
            turns=() if beside else tuple(_turn_keys(example)),
            shows=len(beside.splitlines()) > 1,
        )


def split(example: Example, holdout: Holdout, *, drop_eval_inputs: bool = True) -> Side | Drop:
    """Return the side of an example, or why it is on none.

    Args:
        example: Any example, constructed ones included.
        holdout: The decision.
        drop_eval_inputs: Drop a training example whose input another task is evaluated on. The evaluation examples
            of its own task are never trained on either way.

    Returns:
        "train", a set, or a Drop:
        `eval_surplus`: of a held-out task, but not among those that are evaluated.
        `heldout_origin`: descends from what is held out.
        `heldout_instruction`: generated, and asks what a held-out task asks.
        `eval_record`: another question about its annotated record is evaluated.
        `eval_shown`: the prompt shows an input that is evaluated, as a demonstration or an earlier turn.
        `eval_input`: another task or source is evaluated on that input, or this is a prompt without an answer.
        `heldout_copy`: question and answer of a held-out task.
    """
    side = split_asked(Asked.of(example), holdout, example, drop_eval_inputs=drop_eval_inputs)
    assert side is not None
    return side


def split_asked(
    asked: Asked, holdout: Holdout, example: Example | None, *, drop_eval_inputs: bool = True
) -> Side | Drop | None:
    """Return what `split` returns; without the example None where its text decides."""
    key = asked.key
    if asked.task in holdout.tasks:
        chosen = holdout.heldout_inputs.get(asked.task, frozenset())
        if key in chosen:
            return _evaluated(asked, "heldout")
        return Drop(
            "eval_surplus",
            f"task {asked.task} is held out and {len(chosen)} other inputs of it are evaluated",
        )
    # records come last: an evaluation example comes from a record that is evaluated, itself
    for origin in (o for o in asked.origin if not o.startswith(RECORD)):
        if why := _refused(origin, holdout):
            return Drop("heldout_origin", why)
    if holdout.instructions and asked.generated:
        if example is None:
            return None
        if instruction := _held_instruction(example, holdout):
            return Drop(
                "heldout_instruction",
                f"generated with the instruction of a held-out task: {instruction[:80]!r}",
            )
    if use := holdout.uses.get(asked.source):
        return _evaluated(asked, use)
    if key in holdout.inputs.get(asked.task, frozenset()):
        return _evaluated(asked, "seen")
    if key in holdout.validation_inputs.get(asked.task, frozenset()):
        return _evaluated(asked, "validation")
    if record := next((o for o in asked.origin if o.startswith(RECORD) and o in holdout.ids), None):
        return Drop("eval_record", f"another example made from {record} is evaluated")
    if drop_eval_inputs and holdout.evaluated:
        shown_in_text: Iterable[str] = ()
        if asked.shows:
            if example is None:
                return None
            shown_in_text = shown_keys(beside_question(example))
        if shown := next((k for k in (*shown_in_text, *asked.turns) if k in holdout.evaluated), None):
            return Drop("eval_shown", f"the prompt shows input {shown}, which is evaluated")
        if key in holdout.evaluated and (asked.answered in holdout.answers or not asked.short):
            return Drop("eval_input", f"input {key} is an evaluation input of another task or source")
    if asked.answered in holdout.copies:
        return Drop("heldout_copy", f"an example of a held-out task asks input {key} and has the same answer")
    return "train"


def is_generated(example: Example) -> bool:
    """Return whether an example was made from others by `construct`."""
    return any(o.startswith(TASK) for o in example.origin)


def _held_instruction(example: Example, holdout: Holdout) -> str | None:
    """Return the instruction of a held-out task that an example has, nearly word for word."""
    own = words(example.instruction)[:COMPARED_WORDS]
    if " ".join(own) in holdout.instructions:
        return " ".join(own)
    return next((held for held, w in holdout.instruction_words if rouge_l(own, w) >= SAME_INSTRUCTION), None)


def _is_short(example: Example) -> bool:
    """Return whether an input has too few words to be a question of its own: "Cuba" has a currency and a capital."""
    text = asked_text(example)
    if sum(map(str.isalnum, text[:SHORT_INPUT_CHARS].split())) > SHORT_INPUT_WORDS:
        return False  # each of these is a word, at least; the last one may go on
    return len(words(text)) < SHORT_INPUT_WORDS


def descend(parents: Iterable[Example]) -> tuple[str, ...]:
    """Return the origin of an example that is made from `parents`: their origins, tasks and ids, each once."""
    names = (n for p in parents for n in (*p.origin, TASK + p.task, p.id))
    return tuple(dict.fromkeys(names))


def input_key(example: Example) -> str:
    """Return 16 hex digits for what is asked: INPUT if the record has one, else all user turns.

    Case, white space and Unicode form do not count, so that phrasings of one input fall on one side.
    """
    # \x1f between turns only after folding: it counts as white space itself
    return _key_of("\x1f".join(" ".join(fold(t).split()) for t in example.asked_in_turns))


def _key_of(folded: str) -> str:
    return xxhash.xxh3_64_hexdigest(folded.encode("utf-8", "surrogatepass"))


def _turn_keys(example: Example) -> Iterator[str]:
    """Yield the keys of the user turns of several that have words enough to be a question."""
    turns = [m.content for m in example.messages if m.role == "user"]
    if len(turns) > 1:
        for text in turns:
            if len(words(text)) >= SHOWN_WORDS:
                yield _key_of(" ".join(fold(text).split()))


def beside_question(example: Example) -> str:
    """Return what a prompt holds beside its own question, demonstrations too; empty where the question is not known apart."""
    if example.input:
        return example.instruction
    if example.question is None:
        return ""
    prompt = "\n\n".join(m.content for m in example.messages if m.role == "user")
    return prompt.replace(example.question, "\n")


@lru_cache(maxsize=1 << 12)
def shown_keys(text: str) -> frozenset[str]:
    """Return the keys of the inputs that a text may show: its runs of lines, with and without a label such as "Input:"."""
    lines = [" ".join(fold(line).split()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    if len(lines) < 2 or len(lines) > SHOWN_LINES:
        return frozenset()
    out: set[str] = set()
    for first, line in enumerate(lines):
        for start in {line, line.partition(":")[2].strip()} - {""}:
            run = start
            for last in range(first, min(first + SHOWN_RUN, len(lines))):
                run = f"{run} {lines[last]}" if last > first else run
                if run.count(" ") >= SHOWN_WORDS - 1:
                    out.add(_key_of(run))
    return frozenset(out)


def asked_text(example: Example) -> str:
    """Return what is asked: INPUT if the record has one, else all user turns."""
    return "\n".join(example.asked_in_turns)


def answer_key(example: Example, key: str) -> str:
    """Return 16 hex digits for a question and its answer; `key` is the example's input key."""
    whole = f"{key}\x1f{' '.join(fold(example.output).split())}"
    return xxhash.xxh3_64_hexdigest(whole.encode("utf-8", "surrogatepass"))


def fold(text: str) -> str:
    """Return the text in Unicode form NFKC, case folded, stripped."""
    return unicodedata.normalize("NFKC", text).casefold().strip()


def _evaluated(asked: Asked, side: Side) -> Side | Drop:
    """Return the side of what is evaluated; a prompt that asks the same goes nowhere: it has no answer to compare with."""
    if asked.is_prompt:
        return Drop("eval_input", f"input {asked.key} is evaluated, and this is only a prompt")
    if not asked.is_chat:
        return Drop(
            "eval_input", "its task is evaluated, and a text without a question has nothing to compare with"
        )
    return side


def _refused(origin: str, holdout: Holdout) -> str | None:
    if origin.startswith(DATASET):
        name = origin.removeprefix(DATASET)
        return f"dataset {name} is held out" if fold(name) in holdout.datasets else None
    if origin.removeprefix(TASK) in holdout.tasks:
        return f"made from the held-out task {origin.removeprefix(TASK)}"
    return f"made from the evaluation example {origin}" if origin in holdout.ids else None
