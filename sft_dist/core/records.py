"""Every noun that stages exchange. Frozen, no behaviour beyond views and (de)serialisation.

Shapes: T tokens of one document, D documents of one row, S documents of a micro-batch, N targets of a micro-batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
Form: TypeAlias = Literal["chat", "text", "segments", "tokens"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """One call that an assistant turn makes. `arguments` stays the JSON string that was written; `weight` None: the turn's."""

    name: str
    arguments: str
    id: str | None = None
    weight: float | None = None


class TextWeight(NamedTuple):
    """Characters `start .. end-1` of a turn's content have loss weight `weight`."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One turn.

    Attributes:
        weight: Loss weight of the turn; None leaves it to `render.train_on`.
        content_weights: Pieces of the content with a weight of their own, in order, none over another.
        reasoning_weight: Of the reasoning; None: the turn's.
        end_weight: Of the token that ends the turn; None: the turn's.
    """

    role: Role
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    weight: float | None = None
    content_weights: tuple[TextWeight, ...] = ()
    reasoning_weight: float | None = None
    end_weight: float | None = None


class Phrasing(NamedTuple):
    """Another wording of a prompt, with its answer, that is never trained on."""

    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One training or evaluation conversation.

    Attributes:
        id: 32 hex digits (`example_id`), the first 16 of which equal content has anywhere, under any task.
        task: The unit that is held out, balanced and reported.
        source: The name of the source in the config.
        messages: The turns, in order.
        tools: JSON schemas of callable tools, each one JSON string.
        template_kwargs: Extra variables for the chat template, as a JSON object string.
        references: All acceptable answers to the last turn; empty means the last assistant turn is the only one.
        origin: What this example derives from: names of tasks, datasets or ids of parent examples. An example
            with a held-out origin is never trained on.
        input_start: Character offset of INPUT inside the first user turn, when the record had one.
        weight: Factor on the loss weight of every turn.
        form: How it is rendered: `chat` by the template; `text` as it stands, ended; `segments` as it stands, control tokens
            spelled in it included; `tokens` as the ids that its content lists. The last three have one assistant turn.
        question: What the annotated record asks, without the words that a pattern puts around it; None: what the turns say.
        demonstrations: What the examples ask that its prompt shows solved.
        license: The record's own licence.
        choices: Answers that the record lets choose from, the right ones among them; empty where the answer is free.
        phrasings: What the record asks in wordings that are held out, for the evaluation.
        checks: What its answer has to keep, each a JSON object: `verifier` and its options (`verifiers/`).
    """

    id: str
    task: str
    source: str
    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    template_kwargs: str | None = None
    references: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()
    input_start: int | None = None
    weight: float = 1.0
    form: Form = "chat"
    question: str | None = None
    demonstrations: tuple[str, ...] = ()
    license: str | None = None
    choices: tuple[str, ...] = ()
    phrasings: tuple[Phrasing, ...] = ()
    checks: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """What it asks, text by text: the record's own question where a pattern stands around it, else `asked_in_turns`."""
        return self.asked_in_turns if self.question is None else (self.question,)

    @property
    def asked_in_turns(self) -> tuple[str, ...]:
        """INPUT if the record has one, else all user turns; of an example that no template touches its text."""
        if self.input:
            return (self.input,)
        return tuple(m.content for m in self.messages if m.role == "user" or self.form != "chat")

    @property
    def instruction(self) -> str:
        """INSTRUCTION of the (INSTRUCTION, optional INPUT, OUTPUT) view: the first user turn up to INPUT."""
        text = self._first_user()
        return text if self.input_start is None else text[: self.input_start].rstrip()

    @property
    def input(self) -> str:
        """INPUT of the view; empty when the record has none."""
        return "" if self.input_start is None else self._first_user()[self.input_start :]

    @property
    def output(self) -> str:
        """OUTPUT of the view: the last assistant turn; empty when there is none."""
        return next((m.content for m in reversed(self.messages) if m.role == "assistant"), "")

    @property
    def is_prompt(self) -> bool:
        """Whether it asks, and nothing in it can be trained on: earlier answers are context, of weight 0."""
        return self.messages[-1].role == "user" and not any(
            m.role == "assistant" and m.weight != 0 for m in self.messages
        )

    @property
    def answers(self) -> tuple[str, ...]:
        """The acceptable answers to the last turn."""
        return self.references or (self.output,)

    def _first_user(self) -> str:
        return next((m.content for m in self.messages if m.role == "user"), "")


def example_id(
    task: str,
    messages: tuple[Message, ...],
    tools: tuple[str, ...] = (),
    weight: float = 1.0,
    form: Form = "chat",
) -> str:
    """Return the content address of an example: 16 hex digits of blake2b over turns and tools, 16 over those and the task.

    A weight that only says what is so without it (1 of an answer or a record, 0 of another turn) does not change it.
    """
    content: list[Any] = [[_identity(m) for m in messages], list(tools)]
    content += [weight] if weight != 1 else []
    content += [form] if form != "chat" else []
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    said = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
    asked = hashlib.blake2b(said.digest() + task.encode("utf-8", "surrogatepass"), digest_size=8)
    return said.hexdigest() + asked.hexdigest()


def _identity(m: Message) -> dict[str, Any]:
    """Return the fields of a message that its identity depends on."""
    out = message_to_dict(m)
    if m.weight == (m.role == "assistant"):
        del out["weight"]
    return out


def make_example(
    *,
    task: str,
    source: str,
    messages: tuple[Message, ...],
    tools: tuple[str, ...] = (),
    template_kwargs: str | None = None,
    references: tuple[str, ...] = (),
    origin: tuple[str, ...] = (),
    input_start: int | None = None,
    weight: float = 1.0,
    form: Form = "chat",
    question: str | None = None,
    demonstrations: tuple[str, ...] = (),
    license: str | None = None,  # noqa: A002  the field's own name
    choices: tuple[str, ...] = (),
    phrasings: tuple[Phrasing, ...] = (),
    checks: tuple[str, ...] = (),
) -> Example:
    """Build an example and its content address."""
    return Example(
        id=example_id(task, messages, tools, weight, form),
        task=task,
        source=source,
        messages=messages,
        tools=tools,
        template_kwargs=template_kwargs,
        references=references,
        origin=origin,
        input_start=input_start,
        weight=weight,
        form=form,
        question=question,
        demonstrations=demonstrations,
        license=license,
        choices=choices,
        phrasings=phrasings,
        checks=checks,
    )


def single_turn(
    *,
    task: str,
    source: str,
    instruction: str,
    output: str | None,
    input: str = "",  # noqa: A002  the field's own name
    system: str | None = None,
    references: tuple[str, ...] = (),
    origin: tuple[str, ...] = (),
    weight: float = 1.0,
    question: str | None = None,
    demonstrations: tuple[str, ...] = (),
    license: str | None = None,  # noqa: A002  the field's own name
    choices: tuple[str, ...] = (),
    phrasings: tuple[Phrasing, ...] = (),
) -> Example:
    """Build an example from (INSTRUCTION, optional INPUT, OUTPUT): one user turn, one assistant turn; None: a prompt."""
    content = f"{instruction}\n\n{input}" if input else instruction
    messages = (
        *((Message(role="system", content=system),) if system else ()),
        Message(role="user", content=content),
        *(() if output is None else (Message(role="assistant", content=output),)),
    )
    return make_example(
        task=task,
        source=source,
        messages=messages,
        references=references,
        origin=origin,
        input_start=len(instruction) + 2 if input else None,
        weight=weight,
        question=question,
        demonstrations=demonstrations,
        license=license,
        choices=choices,
        phrasings=phrasings,
    )


def message_to_dict(m: Message) -> dict[str, Any]:
    """Return the message as JSON-ready fields, those at their default left out."""
    out: dict[str, Any] = {"role": m.role, "content": m.content}
    if m.reasoning_content is not None:
        out["reasoning_content"] = m.reasoning_content
    if m.tool_calls:
        out["tool_calls"] = [
            {"id": c.id, "name": c.name, "arguments": c.arguments}
            | ({} if c.weight is None else {"weight": c.weight})
            for c in m.tool_calls
        ]
    if m.content_weights:
        out["content_weights"] = [list(w) for w in m.content_weights]
    for key in ("tool_call_id", "name", "weight", "reasoning_weight", "end_weight"):
        if (value := getattr(m, key)) is not None:
            out[key] = value
    return out


def message_from_dict(fields: Mapping[str, Any]) -> Message:
    """Inverse of `message_to_dict`."""
    calls = tuple(ToolCall(**c) for c in fields.get("tool_calls", ()))
    weights = tuple(TextWeight(*w) for w in fields.get("content_weights", ()))
    return Message(**{**fields, "tool_calls": calls, "content_weights": weights})


def example_to_dict(e: Example) -> dict[str, Any]:
    """Return the example as JSON-ready fields, those at their default left out."""
    out: dict[str, Any] = {
        "id": e.id,
        "task": e.task,
        "source": e.source,
        "messages": [message_to_dict(m) for m in e.messages],
    }
    for key in ("tools", "references", "origin", "demonstrations", "choices", "phrasings", "checks"):
        if value := getattr(e, key):
            out[key] = list(value)
    for key in ("template_kwargs", "input_start", "question", "license"):
        if (value := getattr(e, key)) is not None:
            out[key] = value
    if e.weight != 1:
        out["weight"] = e.weight
    if e.form != "chat":
        out["form"] = e.form
    return out


def example_from_dict(fields: Mapping[str, Any]) -> Example:
    """Inverse of `example_to_dict`."""
    return Example(
        id=fields["id"],
        task=fields["task"],
        source=fields["source"],
        messages=tuple(message_from_dict(m) for m in fields["messages"]),
        tools=tuple(fields.get("tools", ())),
        template_kwargs=fields.get("template_kwargs"),
        references=tuple(fields.get("references", ())),
        origin=tuple(fields.get("origin", ())),
        input_start=fields.get("input_start"),
        weight=fields.get("weight", 1.0),
        form=fields.get("form", "chat"),
        question=fields.get("question"),
        demonstrations=tuple(fields.get("demonstrations", ())),
        license=fields.get("license"),
        choices=tuple(fields.get("choices", ())),
        phrasings=tuple(Phrasing(*p) for p in fields.get("phrasings", ())),
        checks=tuple(fields.get("checks", ())),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BadRecord:
    """A record that could not be read: where it lies and why. Counted and quarantined, never a crash."""

    file: str
    line: int | None
    reason: str
    text: str = ""


class Drop(NamedTuple):
    """Why an example was not kept. `reason` is a stable snake_case name, `detail` says what was measured."""

    reason: str
    detail: str


class Span(NamedTuple):
    """Tokens `start .. start+length-1` of a document are targets of loss weight `weight`. `start` is at least 1."""

    start: int
    length: int
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokens:
    """A rendered document: token ids and which of them carry loss. Token 0 never does: nothing predicts it."""

    ids: NDArray[np.int32]  # [T]
    spans: tuple[Span, ...]

    @property
    def target_weight(self) -> float:
        """Sum of loss weights over the tokens that carry loss."""
        return sum(s.length * s.weight for s in self.spans)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Documents packed into one row. A document may be a slice of a stored one (truncation)."""

    docs: NDArray[np.int64]  # [D] index over all stores of the mixture
    starts: NDArray[np.int32]  # [D] first stored token that is used
    lengths: NDArray[np.int32]  # [D] tokens that are used

    @property
    def tokens(self) -> int:
        """Tokens in the row, padding not counted."""
        return int(self.lengths.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """The rows of one global batch, by micro-step and rank.

    Attributes:
        epoch: Zero-based epoch.
        step: Zero-based step inside the epoch.
        micro_rows: `micro_rows[m][r]` are the rows that rank r runs in micro-step m; an empty tuple is an empty
            micro-batch of zero weight, so that every rank runs the same number of micro-steps.
        target_weight: Total loss weight of the global batch, the denominator of its loss.
        imbalance: Max over mean cost of ranks, averaged over micro-steps; 1.0 is perfect.
        fill: Tokens over capacity of the rows.
    """

    epoch: int
    step: int
    micro_rows: tuple[tuple[tuple[Row, ...], ...], ...]
    target_weight: float
    imbalance: float
    fill: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What one rank feeds to the model in one micro-step: documents laid end to end, no padding inside.

    Attributes:
        input_ids: [T] token ids.
        position_ids: [T] restarting at 0 with every document.
        cu_seqlens: [S+1] first token of every document, then T.
        max_seqlen: Longest document, in tokens.
        target_positions: [N] positions whose next token is a target (index of the predicting token).
        target_ids: [N] the token to predict.
        target_weights: [N] its loss weight.
        target_tasks: [N] integer task code of the document it belongs to.
        doc_ids: ids of the examples, for error reports.
        doc_cost_tokens: sum over documents of squared length, for useful FLOPs.
        offset: Where `input_ids[0]` lies in the rows: above 0 in a slice of rows that several ranks share. There
            `cu_seqlens`, `max_seqlen` and `doc_ids` are those of the whole rows, positions count from the slice.
        padding: Tokens at the end of `input_ids` that are no data.
        doc_sources: integer source code of each of `doc_ids`; empty where sources are not told apart.
    """

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    max_seqlen: int
    target_positions: NDArray[np.int64]
    target_ids: NDArray[np.int64]
    target_weights: NDArray[np.float32]
    target_tasks: NDArray[np.int64]
    doc_ids: tuple[str, ...]
    doc_cost_tokens: int
    offset: int = 0
    padding: int = 0
    doc_sources: tuple[int, ...] = ()

    @classmethod
    def of_documents(
        cls,
        ids_T: NDArray[np.integer[Any]],
        lengths_S: Sequence[int] | NDArray[np.integer[Any]],
        targets_N: NDArray[np.integer[Any]],
        *,
        weights_N: NDArray[np.floating[Any]] | None = None,
        tasks_N: NDArray[np.integer[Any]] | None = None,
        doc_ids: tuple[str, ...] = (),
        doc_sources: tuple[int, ...] = (),
    ) -> Batch:
        """Build a batch from documents that lie end to end.

        Args:
            ids_T: Token ids of all documents.
            lengths_S: Tokens of each document.
            targets_N: Positions in `ids_T` of the tokens that carry loss; never the first of a document.
            weights_N: Loss weight of each target; None: 1.
            tasks_N: Task code of each target; None: 0.
            doc_ids: Ids of the examples.
            doc_sources: Source code of each document.
        """
        lengths = np.asarray(lengths_S, np.int64)
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
        ids = ids_T.astype(np.int64, copy=False)
        n = len(targets_N)
        return cls(
            input_ids=ids,
            position_ids=np.arange(len(ids)) - np.repeat(cu_seqlens[:-1], lengths),
            cu_seqlens=cu_seqlens.astype(np.int32),
            max_seqlen=int(lengths.max(initial=0)),
            target_positions=targets_N.astype(np.int64, copy=False) - 1,
            target_ids=ids[targets_N],
            target_weights=np.ones(n, np.float32) if weights_N is None else weights_N.astype(np.float32),
            target_tasks=np.zeros(n, np.int64) if tasks_N is None else tasks_N.astype(np.int64),
            doc_ids=doc_ids,
            doc_cost_tokens=int((lengths**2).sum()),
            doc_sources=doc_sources,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """Where a run stands: optimizer steps done, and the next global batch as (epoch, step inside it).

    Rank and world size are derived, never stored.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """One line of metrics.jsonl: what one optimizer step did, over all ranks.

    Attributes:
        step: One-based count of optimizer steps of the whole run.
        epoch: Zero-based epoch.
        loss: Weighted mean cross-entropy per target token, in nats.
        grad_norm: Global gradient norm before clipping.
        lr: Learning rate that this step used.
        tokens: Real tokens in the global batch, padding not counted.
        target_tokens: Tokens that carried loss.
        tokens_per_s: `tokens` over the wall-clock seconds of the step, all ranks together.
        mfu: Useful FLOPs over peak FLOPs of the devices; None where the peak is unknown (CPU).
        fill: Tokens over capacity of the rows.
        imbalance: Max over mean cost of ranks side by side.
        step_s: Wall-clock seconds of the step.
        data_wait_s: Seconds that rank 0 waited for its batches.
        memory_bytes: Peak device memory of rank 0 (resident set size on CPU).
        skipped: True when the step was not applied (non-finite gradient).
        task_loss: Mean loss per target token of each task present in the batch.
        source_loss: The same of each source.
        target_tokens_per_s: `target_tokens` over the seconds of the step.
        router_load: Of each layer's router (by name), tokens of its busiest expert over the mean; empty without `loss.router_balance`.
    """

    step: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int
    target_tokens: int
    tokens_per_s: float
    mfu: float | None
    fill: float
    imbalance: float
    step_s: float
    data_wait_s: float
    memory_bytes: int
    skipped: bool = False
    task_loss: Mapping[str, float] = field(default_factory=dict)
    source_loss: Mapping[str, float] = field(default_factory=dict)
    target_tokens_per_s: float = 0.0
    router_load: Mapping[str, float] = field(default_factory=dict)
