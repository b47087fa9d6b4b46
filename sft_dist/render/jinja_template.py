"""Any Jinja chat template -> drafts with exact answer borders.

The template is rendered with a sentinel in place of every content; where the sentinels come out tells template text
(whose control tokens are real) from record text (whose control tokens are spelled out). Sentinel renderings depend
on the shape of a conversation only and are cached. Two things are then proven for each conversation: filling the
contents back in gives the template's true rendering, and an answer starts where the generation prompt of the turns
before it ends. Where sentinels disturb the template (it looks into a content), borders come from the difference
between renderings of the record itself instead, the control tokens that it spells being marked. Where that changes
the rendering, too, or the answer does not come out, the turn is named and refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError

from sft_dist.core.records import Drop
from sft_dist.render.conversation import (
    THINK_END,
    Conversation,
    Thinking,
    Turn,
    drop_thoughts,
    split_reasoning,
)
from sft_dist.render.draft import Rendering
from sft_dist.render.jinja import ChatTemplate
from sft_dist.render.template_outline import (
    CLOSE,
    MARK,
    OPEN,
    SLOT,
    Atom,
    Region,
    TemplateOutline,
    build,
    fill,
)

EMPTY_THINK = re.compile(r"<think>\s*</think>\n*")
CACHE_SHAPES = 4096
# What a template can raise: it refuses, or it meets a type or a key that it did not expect.
RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class TemplateRefusal(Exception):  # noqa: N818  internal, turned into a Drop
    """A conversation that the template cannot render faithfully."""

    def __init__(self, detail: str, reason: str = "template_mangles_content") -> None:
        super().__init__(detail)
        self.drop = Drop(reason, detail)


class JinjaTemplate:
    """A Jinja template that is not one of ours.

    Args:
        template: The compiled template.
        controls: Pattern of the control tokens that the template's own text may hold, longest first.
        id_of: Text of a control token -> id.
        stops: Control tokens that end an assistant's turn.
        thinking: Which assistant turns keep their reasoning; the template may drop more.
        train_empty_think: Whether an empty think block that the template writes carries loss.
    """

    def __init__(
        self,
        template: ChatTemplate,
        *,
        controls: re.Pattern[str],
        id_of: Callable[[str], int],
        stops: tuple[str, ...],
        thinking: Thinking,
        train_empty_think: bool,
    ) -> None:
        self.template = template
        self.splits_thoughts = "reasoning_content" in template.text or "thinking" in template.text
        self._controls = controls
        self._marked = re.compile(f"{MARK}?(?:{controls.pattern})")
        self._id_of = id_of
        self._stops = stops
        self._thinking = thinking
        self._train_empty_think = train_empty_think
        self._shapes: dict[Any, TemplateOutline] = {}

    def draft(self, conversation: Conversation, generation: bool) -> Rendering | Drop:
        """Return the rendered conversation, or why it cannot be rendered faithfully."""
        if "input_start" in conversation.variables and "input_start" not in self.template.text:
            # it would give every record a shape of its own
            rest = {k: v for k, v in conversation.variables.items() if k != "input_start"}
            conversation = replace(conversation, variables=rest)
        if conversation.tools and "tools" not in self.template.text:
            return Drop(
                "template_without_tools", "the example has tools, which the chat template would leave out"
            )
        try:
            return self._draft(conversation, generation)
        except TemplateRefusal as refusal:
            return refusal.drop
        except RENDER_ERRORS as error:
            return Drop("template_error", f"the chat template refuses the conversation: {error}")

    def _draft(self, conversation: Conversation, generation: bool) -> Rendering:
        shown = self._shown(conversation)
        true = self._render(shown, generation)
        contents = {2 * i: t.content for i, t in enumerate(shown.turns) if t.content}
        contents |= {2 * i + 1: t.reasoning for i, t in enumerate(shown.turns) if t.reasoning}
        filled: list[str] | None = None
        try:
            skeleton = self._by_sentinels(conversation, shown, generation)
            filled = fill(true, skeleton, contents)
        except (TemplateRefusal, *RENDER_ERRORS):
            pass  # the template looks into the contents; true renderings decide
        if filled is None:
            skeleton, filled = self._by_difference(conversation, shown, true, generation), []
        return skeleton.parts(shown, filled, self._train_empty_think)

    def _shown(self, conversation: Conversation) -> Conversation:
        """Apply the thinking policy; put thoughts into the content where the template knows no other place."""
        turns = conversation.turns
        last = {"keep_all": -1, "last_turn": conversation.last_query, "strip": len(turns)}[self._thinking]
        if all(t.reasoning is None and THINK_END not in t.content for t in turns):
            return conversation
        turns = drop_thoughts(turns, last)
        if not self.splits_thoughts:
            turns = tuple(_inlined(t, i > last) if t.role == "assistant" else t for i, t in enumerate(turns))
        return replace(conversation, turns=turns)

    def _render(self, conversation: Conversation, generation: bool) -> str:
        return self.template.render(
            [_message(t) for t in conversation.turns],
            tools=conversation.tools,
            generation=generation,
            variables=conversation.variables,
        )

    def _marks(self, value: Any) -> Any:
        """Return the value with a mark before every control token that its strings spell."""
        if isinstance(value, str):
            return self._controls.sub(lambda m: MARK + m.group(), value)
        if isinstance(value, Mapping):
            return {k: self._marks(v) for k, v in value.items()}
        return [self._marks(v) for v in value] if isinstance(value, (list, tuple)) else value

    def _sentinels(self, conversation: Conversation, generation: bool) -> str:
        """Render with a sentinel for every content that is not empty; other record text is marked."""
        messages = []
        for i, t in enumerate(self._shown(conversation).turns):
            message = self._marks(_message(t._replace(content="", reasoning=None)))
            message["content"] = f"{OPEN}{2 * i}{CLOSE}" if t.content else ""
            if t.reasoning is not None:
                message["reasoning_content"] = f"{OPEN}{2 * i + 1}{CLOSE}" if t.reasoning else ""
                message["thinking"] = message["reasoning_content"]
            messages.append(message)
        return self.template.render(
            messages,
            tools=self._marks(conversation.tools),
            generation=generation,
            variables=self._marks(conversation.variables),
        )

    def _render_marked(self, conversation: Conversation, generation: bool) -> str:
        """Render the record with a mark before every control token that it spells."""
        return self.template.render(
            [self._marks(_message(t)) for t in self._shown(conversation).turns],
            tools=self._marks(conversation.tools),
            generation=generation,
            variables=self._marks(conversation.variables),
        )

    def _by_sentinels(
        self, conversation: Conversation, shown: Conversation, generation: bool
    ) -> TemplateOutline:
        """Return the skeleton of a conversation's shape, from the cache if it is there."""
        shape = [
            (t.role, bool(t.content), t.reasoning and 1, t.calls, t.name, t.tool_call_id, t.call_ids)
            for t in shown.turns
        ]
        key: Any = (*shape, shown.last_query, generation)
        if shown.tools or shown.variables or any(t.calls for t in shown.turns):
            key = _dumps([key, shown.tools, shown.variables])
        if (found := self._shapes.get(key)) is not None:
            return found
        full = self._sentinels(conversation, generation)
        skeleton = self._skeleton(conversation, full, self._sentinels)
        for i, t in enumerate(shown.turns):
            if t.content and 2 * i not in skeleton.slots:
                raise TemplateRefusal(f"the chat template leaves out turn {i} ({t.role})")
        if len(self._shapes) >= CACHE_SHAPES:
            self._shapes.clear()
        self._shapes[key] = skeleton
        return skeleton

    def _by_difference(
        self, conversation: Conversation, shown: Conversation, true: str, generation: bool
    ) -> TemplateOutline:
        """Find the answers by comparing renderings of the record itself, its control tokens marked."""
        full = self._render_marked(conversation, generation)
        if full.replace(MARK, "") != true:
            turns = [t for t in enumerate(shown.turns) if self._controls.search(_dumps(t[1]))]
            where = f"turn {turns[0][0]} ({turns[0][1].role})" if turns else "a tool"
            raise TemplateRefusal(
                f"the chat template changes contents, and {where} spells a control token, so the two cannot be told apart"
            )
        for i, t in enumerate(shown.turns):
            if t.role != "assistant" and t.weight != conversation.frame_weight:
                raise TemplateRefusal(
                    f"the chat template changes contents, so turn {i} ({t.role}) cannot have a loss weight of its own"
                )
        skeleton = self._skeleton(conversation, full, self._render_marked)
        for i, t in enumerate(shown.turns):
            answer = next((a for a in skeleton.answers if a.turn == i), None)
            said = true if answer is None else _text(skeleton.atoms[answer.start : answer.end])
            if t.content.strip() not in said:
                raise TemplateRefusal(f"the chat template changes the content of turn {i} ({t.role})")
            if answer and not _in_order(
                [u.content.strip() for u in shown.turns[i + 1 :]], _text(skeleton.atoms[answer.end :])
            ):
                raise TemplateRefusal(f"turn {i} (assistant) is not ended by one of {' '.join(self._stops)}")
        return skeleton

    def _skeleton(
        self, conversation: Conversation, full: str, render: Callable[[Conversation, bool], str]
    ) -> TemplateOutline:
        """Find each answer: it starts where the generation prompt ends, and ends with the first end-of-turn token."""
        regions, context_mismatch = [], []
        for i, t in enumerate(conversation.turns):
            if t.role != "assistant":
                continue
            prompt = render(conversation.head(i), True) if i else None
            if prompt is None or not full.startswith(prompt):
                context_mismatch.append(i)
                continue
            start = len(prompt)
            end = next(
                (m.end() for m in self._marked.finditer(full, start) if m.group() in self._stops), None
            )
            if end is None or any(int(m.group(1)) // 2 != i for m in SLOT.finditer(full, start, end)):
                raise TemplateRefusal(f"turn {i} (assistant) is not ended by one of {' '.join(self._stops)}")
            for name, _ in t.calls:
                if name not in full[start:end].replace(MARK, ""):
                    raise TemplateRefusal(
                        f"the chat template leaves out the tool call of turn {i} (assistant)",
                        "template_without_tools",
                    )
            empty = EMPTY_THINK.match(full, start)
            regions.append(Region(i, start, min(empty.end(), end) if empty else start, end))
        return build(
            full,
            regions,
            context_mismatch,
            len(conversation.turns),
            controls=self._marked,
            id_of=self._id_of,
            stops=self._stops,
        )


def _inlined(t: Turn, keep: bool) -> Turn:
    """Return the turn with its thoughts inside the content, or with none at all."""
    if t.reasoning is not None:
        thoughts = t.reasoning.strip("\n")
        content = f"<think>\n{thoughts}\n</think>\n\n{t.content}" if thoughts else t.content
        return t._replace(content=content, reasoning=None)
    if not keep and THINK_END in t.content:
        return t._replace(content=split_reasoning(t.content)[0])
    return t


def _message(t: Turn) -> dict[str, Any]:
    """Return the turn as the dict that chat templates expect."""
    out: dict[str, Any] = {"role": t.role, "content": t.content}
    if t.reasoning is not None:
        out |= {"thinking": t.reasoning, "reasoning_content": t.reasoning}
    if t.calls:
        out["tool_calls"] = [
            {
                "type": "function",
                **({"id": i} if i else {}),
                "function": {"name": name, "arguments": arguments},
            }
            for (name, arguments), i in zip(t.calls, t.call_ids, strict=True)
        ]
    for key in ("name", "tool_call_id"):
        if (value := getattr(t, key)) is not None:
            out[key] = value
    return out


def _text(atoms: Sequence[Atom]) -> str:
    return "".join(a.payload for a in atoms if isinstance(a.payload, str))


def _in_order(contents: Sequence[str], text: str) -> bool:
    """Whether all contents come one after the other in the text."""
    position = 0
    for content in contents:
        position = text.find(content, position)
        if position < 0:
            return False
        position += len(content)
    return True


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
