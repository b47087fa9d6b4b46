"""An example as the renderers see it: turns with their loss weight decided, a default system prompt filled in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from sft_dist.core.records import Drop, Example, Message, Role, TextWeight

TrainOn: TypeAlias = Literal["assistant", "last_turn", "all"]
Thinking: TypeAlias = Literal["auto", "keep_all", "last_turn", "strip"]
THINK_END = "</think>"


class PartWeights(NamedTuple):
    """Loss weights inside one turn, where they are not all the turn's own.

    Attributes:
        content: Weights of the content, in order and without a gap.
        reasoning: Weight of the reasoning.
        calls: Weight of each call.
        end: Weight of the token that ends the turn.
    """

    content: tuple[TextWeight, ...]
    reasoning: float
    calls: tuple[float, ...]
    end: float


class Turn(NamedTuple):
    """One message, ready to be written.

    Attributes:
        role: Who speaks.
        content: Text without the reasoning.
        reasoning: What was thought before the content; None where the record has none.
        calls: Tool calls as (name, arguments), arguments re-written as the JSON that `tojson` gives, or as they were.
        name: Name of the speaker or tool.
        tool_call_id: Which call a tool turn answers.
        weight: Loss weight of the turn's text and its end-of-turn token; with `parts` the largest of theirs.
        call_ids: Ids of the calls.
        parts: The weights inside the turn; None where all of it has `weight`.
    """

    role: Role
    content: str
    reasoning: str | None = None
    calls: tuple[tuple[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None
    weight: float = 0.0
    call_ids: tuple[str | None, ...] = ()
    parts: PartWeights | None = None


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, tool schemas and template variables of one example; `frame_weight` is that of the template's own text."""

    turns: tuple[Turn, ...]
    tools: tuple[Any, ...]
    variables: dict[str, Any]
    frame_weight: float = 0.0

    def head(self, n: int) -> Conversation:
        """Return the first `n` turns with everything else as it was."""
        return replace(self, turns=self.turns[:n])

    @property
    def last_trained(self) -> int | None:
        """Index of the last turn that carries loss if it is an assistant's, else None."""
        last = next((i for i in range(len(self.turns) - 1, -1, -1) if self.turns[i].weight), None)
        return last if last is not None and self.turns[last].role == "assistant" else None

    @property
    def last_query(self) -> int:
        """Index of the last question of a user; tool results that pose as a user turn are none.

        Without any, the last turn (so that no turn comes after it), as Qwen3 has it.
        """
        for i in range(len(self.turns) - 1, -1, -1):
            t = self.turns[i]
            wrapped = t.content.startswith("<tool_response>") and t.content.endswith("</tool_response>")
            if t.role == "user" and not wrapped:
                return i
        return len(self.turns) - 1


def read_conversation(
    example: Example,
    *,
    train_on: TrainOn,
    system: str | None,
    split_thoughts: bool,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> Conversation | Drop:
    """Return the example's turns with loss weights decided.

    Args:
        example: Any example.
        train_on: Which turns carry loss where `Message.weight` does not say.
        system: System prompt for a conversation that brings none.
        split_thoughts: Move `<think>...</think>` at the head of an answer into `reasoning`.
        variables: Of the template, where the example does not say otherwise.
    """
    messages = example.messages
    if not messages:
        return Drop("no_messages", "the conversation has no turns")
    if system is not None and all(m.role != "system" for m in messages):
        messages = (Message(role="system", content=system), *messages)
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    turns = []
    for i, m in enumerate(messages):
        answered = m.role == "assistant" and (train_on == "assistant" or i > last_user)
        weight = m.weight if m.weight is not None else float(answered or train_on == "all")
        content, reasoning = m.content, m.reasoning_content
        if split_thoughts and m.role == "assistant" and reasoning is None and THINK_END in content:
            content, reasoning = split_reasoning(content)
        parts = _part_weights(m, content, weight, example.weight)
        weight *= example.weight
        if isinstance(parts, PartWeights):
            weight = max(parts.end, parts.reasoning, *parts.calls, *(w.weight for w in parts.content))
        elif parts is not None:
            return Drop(parts.reason, f"turn {i} ({m.role}): {parts.detail}")
        if not (math.isfinite(weight) and weight >= 0):
            return Drop(
                "bad_weight", f"turn {i} ({m.role}) has loss weight {weight}; use 0 or a positive number"
            )
        if reasoning is not None and not reasoning.strip("\n"):
            reasoning = ""
        turns.append(
            Turn(
                role=m.role,
                content=content,
                reasoning=reasoning,
                calls=tuple((c.name, _parsed(c.arguments)) for c in m.tool_calls),
                name=m.name,
                tool_call_id=m.tool_call_id,
                weight=weight,
                call_ids=tuple(c.id for c in m.tool_calls),
                parts=parts,
            )
        )
    try:
        own = json.loads(example.template_kwargs) if example.template_kwargs else {}
        tools = tuple(json.loads(t) for t in example.tools)
        if not isinstance(own, dict):
            return Drop("bad_json", f"template_kwargs is no JSON object: {example.template_kwargs}")
    except json.JSONDecodeError as error:
        return Drop("bad_json", f"tools or template_kwargs are not JSON: {error}")
    given = {"input_start": example.input_start} if example.input_start is not None else {}
    return Conversation(
        tuple(turns), tools, {**given, **variables, **own}, float(train_on == "all") * example.weight
    )


def _part_weights(m: Message, content: str, weight: float, factor: float) -> PartWeights | Drop | None:
    """Return the weights inside a turn, or None where all of it has one.

    Args:
        m: The message.
        content: Its content, without the thoughts that were cut from its head.
        weight: What its parts have unless they say otherwise.
        factor: On every weight: the record's own.
    """
    calls = tuple((weight if c.weight is None else c.weight) * factor for c in m.tool_calls)
    end = (weight if m.end_weight is None else m.end_weight) * factor
    reasoning = (weight if m.reasoning_weight is None else m.reasoning_weight) * factor
    whole = tuple(w._replace(weight=w.weight * factor) for w in _filled(m, weight))
    if {*calls, end, reasoning, *(w.weight for w in whole)} <= {weight * factor}:
        return None
    cut = len(m.content) - len(content)  # thoughts that stood in the content
    if thoughts := {w.weight for w in whole if w.start < cut}:
        if len(thoughts) > 1:
            return Drop("part_weights", "the thoughts inside its content have several loss weights")
        reasoning = thoughts.pop()
    shown = tuple(TextWeight(max(w.start - cut, 0), w.end - cut, w.weight) for w in whole if w.end > cut)
    return PartWeights(shown, reasoning, calls, end)


def _filled(m: Message, weight: float) -> Iterator[TextWeight]:
    """Yield the weights of the whole content; what no piece covers has `weight`."""
    position = 0
    for piece in (*m.content_weights, TextWeight(len(m.content), len(m.content), weight)):
        if piece.start > position:
            yield TextWeight(position, piece.start, weight)
        if piece.end > piece.start:
            yield piece
        position = piece.end


def split_reasoning(content: str) -> tuple[str, str]:
    """Return (answer, thoughts) of a text that has a think block before the answer."""
    head, _, answer = content.rpartition(THINK_END)
    thoughts = head.split(THINK_END, 1)[0].rstrip("\n").rpartition("<think>")[2].lstrip("\n")
    return answer.lstrip("\n"), thoughts


def drop_thoughts(turns: Sequence[Turn], keep_after: int) -> tuple[Turn, ...]:
    """Return the turns with no reasoning up to and including turn `keep_after`.

    An empty reasoning stays where the content spells `</think>`, for a template would cut such a content in two.
    """
    return tuple(
        t._replace(reasoning="" if THINK_END in t.content else None)
        if t.reasoning is not None and i <= keep_after
        else t
        for i, t in enumerate(turns)
    )


def _parsed(arguments: str) -> Any:
    """Return the arguments of a call as the object that chat templates expect; as text where it is no JSON object."""
    try:
        value = json.loads(arguments)
    except json.JSONDecodeError:
        return arguments
    return value if isinstance(value, dict) else arguments
