"""Example -> ids and spans of what carries loss: the renderer that preparation and evaluation share."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example, Role, Tokens
from sft_dist.render.conversation import Conversation, Thinking, TrainOn, read_conversation
from sft_dist.render.draft import Rendering, Segment
from sft_dist.render.encoder import Encoder
from sft_dist.render.part_weights import weigh_parts
from sft_dist.render.resolve import resolve_template
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.render.untemplated import read_tokens, token_segments, write_text

RENDER_VERSION = 3  # raise it whenever the same example would give other tokens or other spans


class Renderer:
    """Turns examples into tokens of which exactly the answers carry loss.

    Args:
        tokenizer: Any fast tokenizer.
        template: `auto` (the tokenizer's own), a built-in name, or the path of a .jinja file.
        train_on: Which turns carry loss; `last_turn` is everything an assistant says after the last question.
        thinking: Which assistant turns keep their reasoning.
        train_empty_think: Whether an empty think block carries loss.
        system: System prompt of conversations that bring none.
        template_kwargs: Variables of the template where a record does not say otherwise.
        clock: What the template reads as the time; None: now.
        expand_turns: Whether `documents` makes one more document of each answer that carries no loss in the whole.

    Attributes:
        fingerprint: Of everything that decides ids and spans.
        template_text: The Jinja text that an exported model carries; it renders what this renderer renders.
        stop_ids: Tokens at which generation ends: those that end a turn in the template, that of a final answer first,
            then the tokenizer's end of text.
        clock: What the template reads as the time; None where it does not ask.
        counts: What was checked and what stood out, over all calls of `render`.

    Raises:
        UserError: The template does not exist, is not valid, or does not fit the tokenizer.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        *,
        template: str = "auto",
        train_on: TrainOn = "assistant",
        thinking: Thinking = "auto",
        train_empty_think: bool = False,
        system: str | None = None,
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
        clock: datetime | None = None,
        expand_turns: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self._train_on, self._system, self._variables = train_on, system, dict(template_kwargs)
        clock = clock or datetime.now()
        resolved = resolve_template(
            tokenizer,
            template,
            thinking=thinking,
            train_empty_think=train_empty_think,
            system=system,
            template_kwargs=template_kwargs,
            clock=clock,
        )
        self._layout, self._expand_turns = resolved.layout, expand_turns
        self.template_text, self.stop_tokens = resolved.text, resolved.stops
        self.clock = clock if resolved.reads_clock else None
        ids = [tokenizer.control_id(s) for s in resolved.stops]
        self.stop_ids = tuple(
            dict.fromkeys([*ids, *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])])
        )
        self._stops = frozenset(ids)
        self._encoder = Encoder(tokenizer, resolved.control)
        options = [
            train_on,
            thinking,
            train_empty_think,
            system,
            self.clock and self.clock.isoformat(),
            expand_turns,
        ]
        self.fingerprint = fingerprint([RENDER_VERSION, tokenizer.fingerprint, self.template_text, options])

    def render(self, examples: Sequence[Example]) -> list[Tokens | Drop]:
        """Return tokens, or the reason to drop, of every example, in order.

        What is proven of each: the tokens before an answer are those that generation is fed, and the answer is what
        generation has to write (an answer for which that fails carries no loss, counted as `context_differs` or
        `answer_differs`); a trained answer ends with the only stop token in it; BOS is not doubled; trained ids
        decode to the answer (exceptions counted as `decode_differs`).
        """
        with _collector_paused():
            drafts = [[self._made(e)] for e in examples]
            return [d if isinstance(d, Drop) else d[0] for d in self._encoded(drafts)]

    def documents(self, examples: Sequence[Example]) -> list[list[Tokens] | Drop]:
        """Return the documents of every example, in order: one, or with `expand_turns` one more for each lost answer.

        The first is the whole conversation, unless none of its answers carries loss. The others end with an answer that
        carries none in the whole conversation, and carry loss on that alone.
        """
        with _collector_paused():
            return self._encoded([list(self._expanded(e)) for e in examples])

    def _made(self, example: Example) -> Rendering | Tokens | Drop:
        if example.form == "tokens":
            return read_tokens(example, self.tokenizer.vocab_size)
        return self._checked(example, self.counts)

    def _expanded(self, example: Example) -> Iterator[Rendering | Tokens | Drop]:
        yield self._made(example)
        if not self._expand_turns or example.form != "chat":
            return
        conversation = self._read(example)
        if isinstance(conversation, Drop):
            return
        conversation, draft = self._laid_out(conversation)
        for lost in draft.lost if isinstance(draft, Rendering) else ():
            if not conversation.turns[lost.turn].weight or lost.reason == "not_ended":
                continue
            counts: Counter[str] = Counter()
            alone = self._checked_conversation(_only(conversation, lost.turn), counts)
            if isinstance(alone, Rendering):
                self.counts[lost.reason] -= 1
                self.counts["expanded"] += 1
                self.counts.update(counts)
                yield alone

    def _encoded(self, drafts: Sequence[Sequence[Rendering | Tokens | Drop]]) -> list[list[Tokens] | Drop]:
        """Encode the drafts of each example; what has none is dropped for its first reason."""
        tokens = iter(self._encode([d for group in drafts for d in group if isinstance(d, Rendering)]))
        out: list[list[Tokens] | Drop] = []
        for group in drafts:
            made = [next(tokens) if isinstance(d, Rendering) else d for d in group]
            whole = [t for t in made if isinstance(t, Tokens)]
            out.append(whole or next(d for d in made if isinstance(d, Drop)))
        self.counts["conversations"] += len(drafts)
        self.counts += self._encoder.take_counts()
        return out

    def prompt(self, example: Example) -> list[int]:
        """Return what generation is fed before the last answer (an answer that the example has is left out).

        Raises:
            UserError: The template cannot render the conversation.
        """
        conversation = self._read(example)
        if example.form != "chat":
            conversation = Drop("no_prompt", "it is a text that no template touches, so nothing is asked")
        if isinstance(conversation, Drop):
            raise UserError(_unfit(example, conversation))
        turns = conversation.turns
        answered = turns[-1].role == "assistant"
        draft = self._layout.draft(conversation.head(len(turns) - answered), generation=True)
        if isinstance(draft, Drop):
            raise UserError(_unfit(example, draft))
        parts = draft.parts
        if answered:
            full = self._layout.draft(conversation, generation=False)
            last = full.answers[-1] if isinstance(full, Rendering) and full.answers else None
            if last is not None and last.turn == len(turns) - 1:
                parts = parts + full.parts[last.start : last.content]  # type: ignore[union-attr]  # full is a Draft
        return [int(i) for i in self._encoder.encode([Rendering(parts, [])])[0].ids]

    def explain(self, example: Example) -> list[Segment]:
        """Return the example piece by piece, for people to look at.

        Raises:
            UserError: The example would be dropped; the message says why.
        """
        if example.form == "tokens":
            tokens = read_tokens(example, self.tokenizer.vocab_size)
            if isinstance(tokens, Drop):
                raise UserError(_unfit(example, tokens))
            return token_segments(tokens, self.tokenizer)
        draft = self._checked(example, Counter())
        conversation = self._read(example)
        if isinstance(draft, Drop) or isinstance(conversation, Drop):
            raise UserError(_unfit(example, draft if isinstance(draft, Drop) else Drop("", "")))
        roles: list[Role] = [*(t.role for t in conversation.turns), "assistant"]
        return self._encoder.segments(draft, roles)

    def save_tokenizer(self, folder: Path) -> None:
        """Write tokenizer and chat template as `transformers.AutoTokenizer` opens them; servers stop at our stop token."""
        self.tokenizer.save(folder, template_text=self.template_text, eos=self.stop_tokens[0])

    def _read(self, example: Example) -> Conversation | Drop:
        return read_conversation(
            example,
            train_on=self._train_on,
            system=self._system,
            split_thoughts=self._layout.splits_thoughts,
            variables=self._variables,
        )

    def _checked(self, example: Example, counts: Counter[str]) -> Rendering | Drop:
        """Return the draft of an example after every check that needs no tokens."""
        if example.form != "chat":
            return write_text(example, self.tokenizer)
        conversation = self._read(example)
        return (
            conversation
            if isinstance(conversation, Drop)
            else self._checked_conversation(conversation, counts)
        )

    def _laid_out(self, conversation: Conversation) -> tuple[Conversation, Rendering | Drop]:
        """Return the draft of a conversation, and the conversation up to where the draft goes.

        What stands behind the last answer that carries loss is left out where it costs that answer its loss.
        """
        draft = self._layout.draft(conversation, generation=False)
        last = conversation.last_trained
        if last is None or last + 1 == len(conversation.turns) or not _loses(draft, last):
            return conversation, draft
        head = conversation.head(last + 1)
        shorter = self._layout.draft(head, generation=False)
        return (conversation, draft) if _loses(shorter, last) else (head, shorter)

    def _checked_conversation(self, conversation: Conversation, counts: Counter[str]) -> Rendering | Drop:
        conversation, draft = self._laid_out(conversation)
        if isinstance(draft, Drop):
            return draft
        if any(t.parts for t in conversation.turns):
            weighed = weigh_parts(draft, conversation, lambda c: self._layout.draft(c, generation=False))
            if isinstance(weighed, Drop):
                return weighed
            draft = weighed
        lost = {a.turn: a for a in draft.lost}
        for turn, answer in lost.items():
            if not conversation.turns[turn].weight:
                continue
            if answer.reason == "not_ended":
                return Drop("template_mangles_content", answer.detail)
            counts[answer.reason] += 1
        draft = _without(draft, lost.keys())
        parts = draft.parts
        for a in draft.answers:
            weight = conversation.turns[a.turn].weight
            if not weight or a.turn in lost:
                continue
            counts["answers"] += 1
            stops = sum(p.payload in self._stops for p in parts[a.start : a.end])
            if stops != 1 or parts[a.end - 1].payload not in self._stops:
                return Drop(
                    "stop_token", f"turn {a.turn} (assistant) holds {stops} end-of-turn tokens instead of one"
                )
        if dropped := sum(_lost_thoughts(conversation, draft)):
            counts["thoughts_dropped"] += dropped
        bos = self.tokenizer.bos_id
        if bos is not None and [p.payload for p in parts[:2]] == [bos, bos]:
            return Drop("double_bos", "the chat template writes the beginning-of-sequence token twice")
        if not any(p.weight for p in parts):
            return Drop("no_target", self._why_no_target(conversation, draft))
        return draft

    def _why_no_target(self, conversation: Conversation, draft: Rendering) -> str:
        roles = [t.role for t in conversation.turns]
        if "assistant" not in roles:
            return "no turn is the assistant's"
        lost = [a for a in draft.lost if conversation.turns[a.turn].weight]
        if not lost:
            return "every turn has loss weight 0, or lies before the last question"
        last = lost[-1]
        what = "answer" if last.reason == "answer_differs" else "context"
        said = f"the {what} of turn {last.turn} (assistant) is not what generation would have: {last.detail}"
        for name, value in product(("enable_thinking", "thinking"), (False, True)):
            changed = replace(conversation, variables={**conversation.variables, name: value})
            other = self._layout.draft(changed, generation=False)
            if isinstance(other, Rendering) and last.turn not in {a.turn for a in other.lost}:
                return f"{said}; with render.template_kwargs={{{name}: {str(value).lower()}}} it would be"
        return said

    def _encode(self, drafts: Sequence[Rendering]) -> list[Tokens | Drop]:
        """Encode a batch; text that is not Unicode spoils a whole batch, so the culprit is then found one by one."""
        try:
            tokens = self._encoder.encode(drafts)
        except (TypeError, UnicodeEncodeError):
            if len(drafts) == 1:
                return [Drop("not_unicode", "the text holds a lone surrogate, which no tokenizer can encode")]
            return [t for draft in drafts for t in self._encode([draft])]
        return [
            t if t.spans else Drop("no_target", "the only token that would carry loss has nothing before it")
            for t in tokens
        ]


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause cyclic garbage collection: a batch makes 10^5 tuples without a cycle, and every pass would walk them all."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _loses(draft: Rendering | Drop, turn: int) -> bool:
    """Whether the answer of a turn carries no loss in a draft."""
    return isinstance(draft, Drop) or turn in {a.turn for a in draft.lost}


def _only(conversation: Conversation, turn: int) -> Conversation:
    """Return the conversation up to an answer, which alone carries loss."""
    head = conversation.head(turn + 1)
    turns = tuple(t._replace(weight=0.0, parts=None) if i < turn else t for i, t in enumerate(head.turns))
    return replace(head, turns=turns, frame_weight=0.0)


def _without(draft: Rendering, turns: Collection[int]) -> Rendering:
    """Return the draft with no loss on the answers of `turns`."""
    if not turns:
        return draft
    parts = [p._replace(weight=0.0) if p.body and p.turn in turns else p for p in draft.parts]
    return replace(draft, parts=parts)


def _lost_thoughts(conversation: Conversation, draft: Rendering) -> Iterator[bool]:
    """Yield for each answer with a reasoning whether it is trained without, by our policy or the template's own."""
    lost = {a.turn for a in draft.lost}
    for a in draft.answers:
        if a.turn in lost:
            continue
        if reasoning := (conversation.turns[a.turn].reasoning or "").strip():
            yield reasoning not in "".join(
                p.payload for p in draft.parts[a.start : a.end] if isinstance(p.payload, str)
            )


def _unfit(example: Example, drop: Drop) -> str:
    return f"example {example.id} of task {example.task} cannot be rendered ({drop.reason}): {drop.detail}; mend or remove it"
