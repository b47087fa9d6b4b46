"""Messages -> segments with a loss weight -> ids and spans: the renderer that preparation and evaluation share."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint
from sft_dist.core.records import Drop, Example, Message, Role, Tokens, make_example
from sft_dist.render.builtin import (
    BUILTINS,
    BuiltinTemplate,
    control_tokens,
    find_template,
    jinja_text,
    pattern,
    splitter,
    with_system,
)
from sft_dist.render.conversation import Conversation, Thinking, TrainOn, read_conversation
from sft_dist.render.draft import Rendering, Segment
from sft_dist.render.encoder import Encoder
from sft_dist.render.jinja import ChatTemplate, inspect_template
from sft_dist.render.jinja_template import JinjaTemplate
from sft_dist.render.part_weights import weigh_parts
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.render.untemplated import read_tokens, token_segments, write_text

RENDER_VERSION = 1  # raise it whenever the same example would give other tokens or other spans


class Template(Protocol):
    """What the renderer needs of a template: ours in Python, or anyone's in Jinja."""

    splits_thoughts: bool

    def draft(self, conversation: Conversation, generation: bool) -> Rendering | Drop:
        """Return the conversation laid out, with the generation prompt at its end if asked for."""
        ...


class Renderer:
    """Turns examples into tokens of which exactly the answers carry loss.

    Args:
        tokenizer: Any fast tokenizer.
        template: `auto` (the tokenizer's own), a built-in name, or the path of a .jinja file.
        train_on: Which turns carry loss; `last_turn` is everything an assistant says after the last question.
        thinking: Which assistant turns keep their reasoning.
        train_empty_think: Whether an empty think block carries loss.
        system: System prompt of conversations that bring none.

    Attributes:
        fingerprint: Of everything that decides ids and spans.
        template_text: The Jinja text that an exported model carries; it renders what this renderer renders.
        stop_ids: Tokens at which generation ends, the template's end of turn first.
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
        thinking: Thinking = "last_turn",
        train_empty_think: bool = False,
        system: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.counts: Counter[str] = Counter()
        self._train_on, self._system = train_on, system
        text, origin, builtin = find_template(tokenizer, template)
        if builtin is not None:
            writes_bos = tokenizer.bos_id is not None and (tokenizer.adds_bos or BUILTINS[builtin].always_bos)
            text = jinja_text(builtin, thinking=thinking, bos=writes_bos)
        control = control_tokens(tokenizer, text)
        controls = pattern(control)
        self._template: Template
        if builtin is not None:
            self._template = BuiltinTemplate(
                builtin,
                tokenizer,
                split=splitter(controls, tokenizer),
                bos=writes_bos,
                thinking=thinking,
                train_empty_think=train_empty_think,
            )
            stops: tuple[str, ...] = (self._template.stop,)
        else:
            text, stops = inspect_template(text, tokenizer.specials, controls, origin)
            self._template = JinjaTemplate(
                ChatTemplate(text, tokenizer.specials, origin),
                controls=controls,
                id_of=tokenizer.control_id,
                stops=stops,
                thinking=thinking,
                train_empty_think=train_empty_think,
            )
        self.template_text = with_system(text, system)
        self.stop_tokens = stops
        ids = [tokenizer.control_id(s) for s in stops]
        self.stop_ids: tuple[int, ...] = tuple(
            dict.fromkeys([*ids, *([tokenizer.eos_id] if tokenizer.eos_id is not None else [])])
        )
        self._stops = frozenset(ids)
        self._encoder = Encoder(tokenizer, control)
        options = [train_on, thinking, train_empty_think, system]
        self.fingerprint = fingerprint([RENDER_VERSION, tokenizer.fingerprint, self.template_text, options])
        if builtin is None:
            self._probe(origin)

    def render(self, examples: Sequence[Example]) -> list[Tokens | Drop]:
        """Return tokens, or the reason to drop, of every example, in order.

        What is proven of each: the tokens before an answer are those that generation is fed (an answer for which
        that fails carries no loss, counted as `context_differs`); a trained answer ends with the only stop token in
        it; at most one BOS; trained ids decode to the answer (exceptions counted as `decode_differs`).
        """
        with _collector_paused():
            return self._render(examples)

    def _render(self, examples: Sequence[Example]) -> list[Tokens | Drop]:
        out: list[Tokens | Drop] = []
        drafts: list[Rendering] = []
        for example in examples:
            if example.form == "tokens":
                out.append(read_tokens(example, self.tokenizer.vocab_size))
                continue
            draft = self._checked(example, self.counts)
            out.append(draft if isinstance(draft, Drop) else _PENDING)
            if isinstance(draft, Rendering):
                drafts.append(draft)
        tokens = iter(self._encode(drafts))
        out = [next(tokens) if o is _PENDING else o for o in out]
        self.counts["conversations"] += len(examples)
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
        draft = self._template.draft(conversation.head(len(turns) - answered), generation=True)
        if isinstance(draft, Drop):
            raise UserError(_unfit(example, draft))
        parts = draft.parts
        if answered:
            full = self._template.draft(conversation, generation=False)
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
            split_thoughts=self._template.splits_thoughts,
        )

    def _checked(self, example: Example, counts: Counter[str]) -> Rendering | Drop:
        """Return the draft of an example after every check that needs no tokens."""
        if example.form != "chat":
            return write_text(example, self.tokenizer)
        conversation = self._read(example)
        if isinstance(conversation, Drop):
            return conversation
        draft = self._template.draft(conversation, generation=False)
        if isinstance(draft, Drop):
            return draft
        if any(t.parts for t in conversation.turns):
            weighed = weigh_parts(draft, conversation, lambda c: self._template.draft(c, generation=False))
            if isinstance(weighed, Drop):
                return weighed
            draft = weighed
        if draft.context_mismatch:
            counts["context_differs"] += sum(conversation.turns[i].weight > 0 for i in draft.context_mismatch)
            draft = _without(draft, draft.context_mismatch)
        parts = draft.parts
        for a in draft.answers:
            weight = conversation.turns[a.turn].weight
            if not weight or a.turn in draft.context_mismatch:
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
        if bos is not None and bos not in self.stop_ids and sum(p.payload == bos for p in parts) > 1:
            return Drop(
                "double_bos", "the chat template writes the beginning-of-sequence token more than once"
            )
        if not any(p.weight for p in parts):
            return Drop("no_target", _why_no_target(conversation, draft))
        return draft

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

    def _probe(self, origin: str) -> None:
        """Refuse a template that changes what it is given."""
        said = ("What is 2+2? Say it\nin Words.", "Two and two is Four,\n 4.", "Thanks, and 3+3?", "It is 6.")
        messages = [Message(role=("user", "assistant")[i % 2], content=c) for i, c in enumerate(said)]
        draft: Rendering | Drop = Drop("", "")
        for n in (4, 2):  # a template may know one round only
            draft = self._checked(
                make_example(task="probe", source="probe", messages=tuple(messages[:n])), Counter()
            )
            if isinstance(draft, Rendering):
                break
        if isinstance(draft, Drop):
            raise UserError(
                f"{origin} cannot be used for training: {draft.detail}; mend the template, or choose a built-in one with "
                f"render.template ({', '.join(BUILTINS)})"
            )


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


_PENDING = Drop("", "")  # stands for a draft that is still to be encoded


def _without(draft: Rendering, turns: Sequence[int]) -> Rendering:
    """Return the draft with no loss on the answers of `turns`."""
    parts = [p._replace(weight=0.0) if p.body and p.turn in turns else p for p in draft.parts]
    return replace(draft, parts=parts)


def _lost_thoughts(conversation: Conversation, draft: Rendering) -> Iterator[bool]:
    """Yield for each answer with a reasoning whether the rendering leaves that out, by our policy or the template's own."""
    for a in draft.answers:
        if reasoning := (conversation.turns[a.turn].reasoning or "").strip():
            yield reasoning not in "".join(
                p.payload for p in draft.parts[a.start : a.end] if isinstance(p.payload, str)
            )


def _why_no_target(conversation: Conversation, draft: Rendering) -> str:
    if draft.context_mismatch:
        return f"the context of turn {draft.context_mismatch[-1]} (assistant) is not what generation would be fed"
    roles = [t.role for t in conversation.turns]
    if "assistant" not in roles:
        return "no turn is the assistant's"
    return "every turn has loss weight 0, or lies before the last question"


def _unfit(example: Example, drop: Drop) -> str:
    return f"example {example.id} of task {example.task} cannot be rendered ({drop.reason}): {drop.detail}; mend or remove it"
