"""Conversation -> parts with exact answer borders, through any Jinja chat template.

The template is rendered with a sentinel in place of every content; where the sentinels come out tells template text
(whose control tokens are real) from record text (whose control tokens are spelled out). Sentinel renderings depend
on the shape of a conversation only and are cached. Three things are then proven for each conversation: filling the
contents back in gives the template's true rendering; an answer starts where the generation prompt of the turns before
it ends; and what stands there is what the template writes of that answer when it is the last turn, which is what
generation has to write. An answer for which that fails is listed as lost; if that is the last one that carries loss
(the template rewrites the turns before it, or shows an empty think block to generation alone), the document is what
generation has: its generation prompt, and behind it what the template writes of that answer. Where sentinels disturb
the template (it looks into a content), borders come from renderings of the record itself, the control tokens that it
spells being marked. Where that changes the rendering, too, the turn is named and refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

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
from sft_dist.render.draft import LostAnswer, Rendering, to_json
from sft_dist.render.inspection import THOUGHT_FIELDS, InspectedTemplate
from sft_dist.render.template_outline import (
    CLOSE,
    MARK,
    OPEN,
    SLOT,
    Atom,
    Extract,
    Region,
    TemplateOutline,
    build,
    fill,
)
from sft_dist.render.think_blocks import aligned, closes, empty_block, opens, starts_closed

CACHE_SHAPES = 4096
SHOWN_CHARS = 40  # of each side, where two renderings part
# What a template can raise: it refuses, or it meets a type or a key that it did not expect.
RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError)


class TemplateRefusal(Exception):  # noqa: N818  internal, turned into a Drop
    """A conversation that the template cannot render faithfully."""

    def __init__(self, detail: str, reason: str = "template_mangles_content") -> None:
        super().__init__(detail)
        self.drop = Drop(reason, detail)


class _Generated(NamedTuple):
    """What generation has and writes of a turn.

    Attributes:
        text: Generation prompt and answer.
        start: Where in the rendering of the turn as the last one the answer begins.
        thoughts: Whether thoughts were put in that no template shows.
    """

    text: str
    start: int
    thoughts: bool = False


class _Handing(NamedTuple):
    """How a conversation is handed to a template, where templates differ in what they expect.

    Attributes:
        wrapped: Tools as `{"type": "function", "function": ...}` (True), bare (False), or as the record has them.
        absent: The content of a turn that only calls is None instead of empty.
        as_text: Arguments of calls are JSON text instead of an object.
    """

    wrapped: bool | None = None
    absent: bool = False
    as_text: bool = False


class JinjaTemplate:
    """A Jinja template for one tokenizer.

    Args:
        inspected: The compiled template and what is known of it.
        controls: Pattern of the control tokens that the template's own text may hold, longest first.
        id_of: Text of a control token -> id.
        thinking: Which assistant turns keep their reasoning; the template may drop more.
        train_empty_think: Whether an empty think block that the template writes carries loss.
    """

    def __init__(
        self,
        inspected: InspectedTemplate,
        *,
        controls: re.Pattern[str],
        id_of: Callable[[str], int],
        thinking: Thinking,
        train_empty_think: bool,
    ) -> None:
        self.template = inspected.template
        self.splits_thoughts = inspected.takes_thoughts or inspected.cuts_thoughts
        self._inspected, self._stops = inspected, inspected.stops
        self._controls = controls
        self._marked = re.compile(f"{MARK}?(?:{controls.pattern})")
        self._id_of = id_of
        self._thinking = thinking
        self._train_empty_think = train_empty_think
        self._shapes: dict[Any, TemplateOutline | Drop] = {}

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
        refused: Drop | None = None
        for handing in _handings(conversation):
            try:
                return self._draft(_handed(conversation, handing), generation, handing.absent)
            except TemplateRefusal as refusal:
                refused = refused or refusal.drop
            except RENDER_ERRORS as error:
                refused = refused or Drop(
                    "template_error", f"the chat template refuses the conversation: {error}"
                )
        assert refused is not None
        return refused

    def _draft(self, conversation: Conversation, generation: bool, absent: bool) -> Rendering:
        shown = self._shown(conversation)
        true = self._render(shown, generation, absent)
        _check_tools(shown, true)
        filled: list[str] | None = None
        try:
            outline = self._by_sentinels(conversation, shown, generation, absent)
            filled = self._filled(conversation, true, outline, absent)
        except (TemplateRefusal, *RENDER_ERRORS):
            pass  # the template looks into the contents; true renderings decide
        if filled is None:
            outline, filled = self._by_difference(conversation, shown, true, generation, absent), []
        return outline.parts(shown, filled, self._train_empty_think)

    def _filled(
        self, conversation: Conversation, true: str, outline: TemplateOutline, absent: bool
    ) -> list[str] | None:
        """Return what stands in the holes of an outline, or None if the contents do not explain the true renderings."""
        out: list[str] = []
        for extract in outline.extracts:
            shown = self._shown(conversation.head(extract.turns))
            contents = {2 * i: t.content for i, t in enumerate(shown.turns) if t.content}
            contents |= {2 * i + 1: t.reasoning for i, t in enumerate(shown.turns) if t.reasoning}
            whole = len(outline.extracts) == 1
            found = fill(
                true if whole else self._render(shown, extract.generation, absent), extract, contents
            )
            if found is None:
                return None
            out += found
        return out

    def _shown(self, conversation: Conversation) -> Conversation:
        """Apply the thinking policy; put thoughts into the content where the template knows no other place."""
        turns = tuple(
            t._replace(reasoning=None) if t.reasoning == "" and THINK_END not in t.content else t
            for t in conversation.turns
        )
        last = {"last_turn": conversation.last_query, "strip": len(turns)}.get(self._thinking, -1)
        if all(t.reasoning is None and THINK_END not in t.content for t in turns):
            return replace(conversation, turns=turns)
        turns = drop_thoughts(turns, last)
        if not self.splits_thoughts:
            turns = tuple(_inlined(t, i > last) if t.role == "assistant" else t for i, t in enumerate(turns))
        return replace(conversation, turns=turns)

    def _render(self, shown: Conversation, generation: bool, absent: bool) -> str:
        messages = [_message(t, absent) for t in shown.turns]
        return self._closed(shown, messages, shown.tools, shown.variables, generation)

    def _closed(
        self,
        shown: Conversation,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any],
        variables: Mapping[str, Any],
        generation: bool,
    ) -> str:
        """Render, and end an answer that the template leaves open as the next turn would end it."""
        text = self.template.render(messages, tools=tools, generation=generation, variables=variables)
        if generation or not shown.turns or shown.turns[-1].role != "assistant":
            return text
        tail = self._inspected.call_tail if shown.turns[-1].calls else self._inspected.answer_tail
        return text if not tail or text.rstrip().endswith(self._stops) else text + tail

    def _marks(self, value: Any) -> Any:
        """Return the value with a mark before every control token that its strings spell."""
        if isinstance(value, str):
            return self._controls.sub(lambda m: MARK + m.group(), value)
        if isinstance(value, Mapping):
            return {k: self._marks(v) for k, v in value.items()}
        return [self._marks(v) for v in value] if isinstance(value, (list, tuple)) else value

    def _sentinels(self, conversation: Conversation, generation: bool, absent: bool) -> str:
        """Render with a sentinel for every content that is not empty; other record text is marked."""
        shown = self._shown(conversation)
        messages = []
        for i, t in enumerate(shown.turns):
            message = self._marks(_message(t._replace(content="", reasoning=None), absent))
            if t.content:
                message["content"] = f"{OPEN}{2 * i}{CLOSE}"
            if t.reasoning is not None:
                message |= dict.fromkeys(THOUGHT_FIELDS, f"{OPEN}{2 * i + 1}{CLOSE}" if t.reasoning else "")
            messages.append(message)
        return self._closed(
            shown, messages, self._marks(shown.tools), self._marks(shown.variables), generation
        )

    def _render_marked(self, conversation: Conversation, generation: bool, absent: bool) -> str:
        """Render the record with a mark before every control token that it spells."""
        shown = self._shown(conversation)
        messages = [self._marks(_message(t, absent)) for t in shown.turns]
        return self._closed(
            shown, messages, self._marks(shown.tools), self._marks(shown.variables), generation
        )

    def _by_sentinels(
        self, conversation: Conversation, shown: Conversation, generation: bool, absent: bool
    ) -> TemplateOutline:
        """Return the outline of a conversation's shape, from the cache if it is there."""
        shape = [
            (t.role, *_traits(t), *_traits(s), t.calls, t.name, t.tool_call_id, t.call_ids)
            for t, s in zip(conversation.turns, shown.turns, strict=True)
        ]
        key: Any = (*shape, shown.last_query, conversation.last_trained, generation, absent)
        if shown.tools or shown.variables or any(t.calls for t in shown.turns):
            key = _dumps([key, shown.tools, shown.variables])
        found = self._shapes.get(key)
        if found is None:
            try:
                found = self._outline_of_shape(conversation, shown, generation, absent)
            except TemplateRefusal as refusal:
                found = refusal.drop
            if len(self._shapes) >= CACHE_SHAPES:
                self._shapes.clear()
            self._shapes[key] = found
        if isinstance(found, Drop):
            raise TemplateRefusal(found.detail, found.reason)
        return found

    def _outline_of_shape(
        self, conversation: Conversation, shown: Conversation, generation: bool, absent: bool
    ) -> TemplateOutline:
        full = self._sentinels(conversation, generation, absent)
        whole = [Extract.of(full, len(conversation.turns), generation)]
        outline = self._outline(conversation, full, self._sentinels, absent, extracts=whole)
        last = conversation.last_trained
        if last == len(shown.turns) - 1 and last in {a.turn for a in outline.lost}:
            outline = self._behind_its_prompt(conversation, last, absent) or outline
        slots = {s for e in outline.extracts for s in e.slots[e.skip :]}
        for i, t in enumerate(shown.turns):
            if t.content and 2 * i not in slots:
                of_record = conversation.turns[i]
                inside = not self.splits_thoughts and (of_record.reasoning or THINK_END in of_record.content)
                hint = "; its thoughts stand inside its content, for the template has no other place: render.thinking=strip leaves them out"
                raise TemplateRefusal(
                    f"the chat template leaves out turn {i} ({t.role}){hint if inside else ''}"
                )
        return outline

    def _behind_its_prompt(self, conversation: Conversation, i: int, absent: bool) -> TemplateOutline | None:
        """Return the generation prompt of the last turn and what the template writes of it; None where that is not to be found."""
        if not i:
            return None
        prompt = self._sentinels(conversation.head(i), True, absent)
        alone = self._sentinels(conversation, False, absent)
        adds = self._adds_thoughts(conversation, self._sentinels, absent)
        own = self._generated(conversation, i, prompt, alone, adds)
        if own is None:
            return None
        extracts = [Extract.of(prompt, i, True), Extract.of(alone, i + 1, False, own.start)]
        outline = self._outline(
            conversation,
            own.text,
            self._sentinels,
            absent,
            extracts=extracts,
            thoughts=2 * i + 1 if own.thoughts else None,
        )
        return None if i in {a.turn for a in outline.lost} else outline

    def _by_difference(
        self, conversation: Conversation, shown: Conversation, true: str, generation: bool, absent: bool
    ) -> TemplateOutline:
        """Find the answers by comparing renderings of the record itself, its control tokens marked."""
        full = self._render_marked(conversation, generation, absent)
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
        outline = self._outline(conversation, full, self._render_marked, absent)
        answers = {a.turn: a for a in outline.answers}
        # an assistant's turn without loss may stand in history without its thoughts
        contents = [
            (
                split_reasoning(t.content)[0] if t.role == "assistant" and i not in answers else t.content
            ).strip()
            for i, t in enumerate(shown.turns)
        ]
        for i, t in enumerate(shown.turns):
            answer = answers.get(i)
            said = true if answer is None else _text(outline.atoms[answer.start : answer.end])
            if contents[i] not in said:
                raise TemplateRefusal(f"the chat template changes the content of turn {i} ({t.role})")
            if answer and not _in_order(contents[i + 1 :], _text(outline.atoms[answer.end :])):
                raise TemplateRefusal(self._open(i))
        return outline

    def _open(self, i: int) -> str:
        return f"turn {i} (assistant) is not ended by one of {' '.join(self._stops)}"

    def _outline(
        self,
        conversation: Conversation,
        full: str,
        render: Callable[[Conversation, bool, bool], str],
        absent: bool,
        *,
        extracts: Sequence[Extract] = (),
        thoughts: int | None = None,
    ) -> TemplateOutline:
        """Find each answer: it starts where the generation prompt ends, and is what the template writes of it as the last turn."""
        regions: list[Region] = []
        lost: list[LostAnswer] = []
        last = len(conversation.turns) - 1
        adds = self._adds_thoughts(conversation, render, absent)
        for i, t in enumerate(conversation.turns):
            if t.role != "assistant":
                continue
            if i == 0:
                lost.append(LostAnswer(i, "context_differs", "nothing comes before it"))
                continue
            if reason := self._inlined_otherwise(conversation, i):
                lost.append(LostAnswer(i, reason, "thoughts that stand there are left out later"))
                continue
            prompt = render(conversation.head(i), True, absent)
            alone = full if i == last else render(conversation.head(i + 1), False, absent)
            own = (
                _Generated(full, len(prompt))
                if i == last and len(extracts) > 1
                else self._generated(conversation, i, prompt, alone, adds)
            )
            if not full.startswith(prompt) or own is None:
                lost.append(LostAnswer(i, "context_differs", _difference(prompt, full, alone)))
                continue
            end = self._end(own.text, len(prompt))
            if end is None or any(
                int(m.group(1)) // 2 != i for m in SLOT.finditer(own.text, len(prompt), end)
            ):
                lost.append(LostAnswer(i, "not_ended", self._open(i)))
                continue
            answer = own.text[len(prompt) : end]
            if any(int(m.group(1)) // 2 == i for m in SLOT.finditer(own.text, end)):
                raise TemplateRefusal(f"turn {i} (assistant) goes on behind its end-of-turn token")
            _check_calls(i, t, answer.replace(MARK, ""))
            region = self._region(i, full, len(prompt), answer)
            if region:
                regions.append(region)
            else:
                lost.append(
                    LostAnswer(
                        i, "answer_differs", _parting(answer, full[len(prompt) : len(prompt) + len(answer)])
                    )
                )
        return build(
            full,
            regions,
            lost,
            len(conversation.turns),
            extracts=extracts,
            thoughts=thoughts,
            controls=self._marked,
            id_of=self._id_of,
            stops=self._stops,
        )

    def _adds_thoughts(
        self, conversation: Conversation, render: Callable[[Conversation, bool, bool], str], absent: bool
    ) -> bool:
        """Whether generation writes thoughts that the template cuts: not where the first generation prompt closes their block."""
        if not self._inspected.cuts_thoughts or all(t.reasoning is None for t in conversation.turns):
            return False
        first = next((i for i, t in enumerate(conversation.turns) if i and t.role == "assistant"), 0)
        return bool(first) and not closes(render(conversation.head(first), True, absent))

    def _generated(
        self, conversation: Conversation, i: int, prompt: str, alone: str, adds: bool
    ) -> _Generated | None:
        """Return what generation has and writes of turn `i`; None where the rendering does not say.

        Args:
            conversation: Any.
            i: Index of an assistant turn.
            prompt: The generation prompt of the turns before it.
            alone: The rendering that ends with the turn.
            adds: Whether thoughts that the turn has are put in.
        """
        found = (len(prompt), prompt) if alone.startswith(prompt) else aligned(prompt, alone)
        if found is None:
            return None
        start, fed = found
        rest = alone[start:]
        adds = adds and bool(self._shown(conversation.head(i + 1)).turns[i].reasoning)
        if adds and not SLOT.search(alone):
            return None  # without sentinels thoughts have no place that could be proven
        opened = opens(prompt)
        if adds:
            head = "" if opened else "<think>\n"
            closing = "" if starts_closed(rest) else "\n</think>\n\n"
            return _Generated(f"{prompt}{head}{OPEN}{2 * i + 1}{CLOSE}{closing}{rest}", start, thoughts=True)
        shows = f"{OPEN}{2 * i + 1}{CLOSE}" in rest
        if fed != prompt and (opened or shows or empty_block("", rest)):
            return None
        return _Generated(prompt + rest, start)

    def _inlined_otherwise(self, conversation: Conversation, i: int) -> str | None:
        """Return how the texts of turn `i`, or before it, change with the turns behind it: sentinels do not show that."""
        if self.splits_thoughts or self._thinking != "last_turn":
            return None
        now, later = (self._shown(c).turns for c in (conversation.head(i + 1), conversation))
        if any(a.content != b.content for a, b in zip(now[:i], later[:i], strict=True)):
            return "context_differs"
        return "answer_differs" if now[i].content != later[i].content else None

    def _end(self, text: str, start: int) -> int | None:
        """Return where the first end-of-turn token behind `start` ends."""
        ends = (m.end() for m in self._marked.finditer(text, start) if m.group() in self._stops)
        return next(ends, None)

    def _region(self, i: int, full: str, start: int, answer: str) -> Region | None:
        """Return where an answer lies, with or without the empty think block that it has as the last turn."""
        block = empty_block(full[:start], answer)
        if full.startswith(answer, start):
            return Region(i, start, start + min(block, len(answer)), start + len(answer))
        if block and not self._train_empty_think and full.startswith(answer[block:], start):
            return Region(i, start, start, start + len(answer) - block)
        return None


def _traits(t: Turn) -> tuple[Any, ...]:
    """Return what the thinking policy and the template's sentinel rendering see of a turn's texts."""
    wrapped = t.content.startswith("<tool_response>")
    return bool(t.content), THINK_END in t.content, wrapped, t.reasoning and 1


def _handings(conversation: Conversation) -> Iterator[_Handing]:
    """Yield the ways in which a conversation can be handed to a template, the usual one first."""
    calls = [a for t in conversation.turns for _, a in t.calls]
    wrapped: list[bool | None] = [None]
    if conversation.tools and all(isinstance(t, dict) for t in conversation.tools):
        wrapped.append(not all("function" in t for t in conversation.tools))
    absent = [False, True] if any(t.calls and not t.content for t in conversation.turns) else [False]
    as_text = [False, True] if any(not isinstance(a, str) for a in calls) else [False]
    yield from (_Handing(w, a, t) for w, a, t in product(wrapped, absent, as_text))


def _handed(conversation: Conversation, handing: _Handing) -> Conversation:
    tools, turns = conversation.tools, conversation.turns
    if handing.wrapped is True:
        tools = tuple(t if "function" in t else {"type": "function", "function": t} for t in tools)
    elif handing.wrapped is False:
        tools = tuple(t.get("function", t) for t in tools)
    if handing.as_text:
        text = lambda a: a if isinstance(a, str) else to_json(a)  # noqa: E731
        turns = tuple(
            t._replace(calls=tuple((n, text(a)) for n, a in t.calls)) if t.calls else t for t in turns
        )
    return replace(conversation, tools=tools, turns=turns)


def _check_tools(shown: Conversation, true: str) -> None:
    """Refuse a rendering that leaves out a tool."""
    for tool in shown.tools:
        schema = tool.get("function", tool) if isinstance(tool, dict) else {}
        name = schema.get("name") if isinstance(schema, dict) else None
        if isinstance(name, str) and name not in true and to_json(name)[1:-1] not in true:
            raise TemplateRefusal(f"the chat template leaves out the tool {name}", "template_without_tools")


def _check_calls(i: int, t: Turn, said: str) -> None:
    """Refuse an answer that leaves out a call or an argument, or writes arguments as Python does."""
    position = 0
    for name, arguments in t.calls:
        position = said.find(name, position)
        left_out = position < 0 or any(
            not any(form in said[position:] for form in (v, to_json(v)[1:-1], json.dumps(v)[1:-1], v.strip()))
            for v in _strings(arguments)
        )
        if left_out:
            raise TemplateRefusal(
                f"the chat template leaves out a tool call of turn {i} (assistant), or an argument of it",
                "template_without_tools",
            )
        if (
            isinstance(arguments, dict)
            and arguments
            and str(arguments) in said
            and to_json(arguments) not in said
        ):
            raise TemplateRefusal(
                f"the chat template writes the arguments of turn {i} (assistant) as Python does"
            )
        position += len(name)


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts inside the arguments of a call."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for k, v in value.items():
            yield k
            yield from _strings(v)
    elif isinstance(value, list):
        for v in value:
            yield from _strings(v)


def _difference(prompt: str, full: str, alone: str) -> str:
    other = full if not full.startswith(prompt) else alone
    return _parting(prompt, other)


def _parting(fed: str, shown: str) -> str:
    """Say where two renderings part."""
    at = next(
        (n for n, (a, b) in enumerate(zip(fed, shown, strict=False)) if a != b), min(len(fed), len(shown))
    )
    texts = [repr(SLOT.sub("…", s[at : at + SHOWN_CHARS]).replace(MARK, "")) for s in (fed, shown)]
    return f"generation has {texts[0]} where the whole conversation has {texts[1]}"


def _inlined(t: Turn, keep: bool) -> Turn:
    """Return the turn with its thoughts inside the content, or with none at all."""
    if t.reasoning is not None:
        thoughts = t.reasoning.strip("\n")
        content = f"<think>\n{thoughts}\n</think>\n\n{t.content}" if thoughts else t.content
        return t._replace(content=content, reasoning=None)
    if not keep and THINK_END in t.content:
        return t._replace(content=split_reasoning(t.content)[0])
    return t


def _message(t: Turn, absent: bool = False) -> dict[str, Any]:
    """Return the turn as the dict that chat templates expect."""
    out: dict[str, Any] = {
        "role": t.role,
        "content": None if absent and t.calls and not t.content else t.content,
    }
    if t.reasoning is not None:
        out |= dict.fromkeys(THOUGHT_FIELDS, t.reasoning)
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
