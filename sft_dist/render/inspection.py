"""A chat template -> what is known of it before any record: which tokens end a turn, whether it has a place for thoughts.

The template is rendered with small conversations of several forms. It is refused only where no form works, for what a
template asks for (thoughts, a system prompt) the user's records may have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from sft_dist.core.errors import UserError
from sft_dist.render.compiled_template import ChatTemplate
from sft_dist.render.template_outline import CLOSE, OPEN

THOUGHT_FIELDS = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # names that chat templates read thoughts from


@dataclass(frozen=True, kw_only=True, slots=True)
class InspectedTemplate:
    """What is known of a chat template.

    Attributes:
        template: Compiled; with a generation prompt if it had none.
        stops: Control tokens that end an assistant's turn, that of a final answer first.
        answer_tail: Text up to the stop token that is to be written behind a final answer at the end of a
            conversation, where the template leaves an answer open until the next turn begins; else empty.
        call_tail: The same behind a turn that ends in calls.
        takes_thoughts: Whether a field of the message is the place of thoughts.
        cuts_thoughts: Whether it shows thoughts nowhere, and cuts them from a content even of the last answer.
    """

    template: ChatTemplate
    stops: tuple[str, ...]
    answer_tail: str
    call_tail: str
    takes_thoughts: bool
    cuts_thoughts: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """A form of conversation: what stands in it beside one question and one answer."""

    says: str
    rounds: int = 1
    system: bool = False
    thoughts: bool = False
    variables: Mapping[str, Any] | None = None


_FORMS = (
    _Form(says="two rounds", rounds=2),
    _Form(says="one round"),
    _Form(says="thoughts", thoughts=True),
    _Form(says="a system prompt", system=True),
    _Form(says="a system prompt and thoughts", system=True, thoughts=True),
    _Form(says="enable_thinking=false", variables={"enable_thinking": False}),
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "add_numbers",
        "description": "Add.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "A number."}}},
    },
}


def _said(i: int) -> str:
    return f"{OPEN}{i}{CLOSE}"


_THOUGHT = _said(90)
_ARGUMENTS = (_said(91), _said(92))


class _Trial:
    """Renders sample conversations with one template."""

    def __init__(self, template: ChatTemplate, variables: Mapping[str, Any]) -> None:
        self.template, self._variables = template, variables

    def render(self, form: _Form, turns: int, generation: bool = False, inside: bool = False) -> str:
        """Return a conversation of `turns` turns, the system prompt not counted; `inside`: thoughts inside the contents."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": "S"}] if form.system else []
        for i in range(turns):
            message = {"role": ("user", "assistant")[i % 2], "content": _said(i)}
            if inside and i % 2:
                message["content"] = f"<think>\n{_THOUGHT}\n</think>\n\n{_said(i)}"
            elif form.thoughts and i % 2:
                message |= dict.fromkeys(THOUGHT_FIELDS, _THOUGHT)
            messages.append(message)
        return self._render(messages, form, generation=generation)

    def calls(self, form: _Form, number: int, *, as_text: bool, content: str | None, answered: bool) -> str:
        """Return a question and a turn of `number` calls, with its result if `answered`."""
        arguments = [{"x": a} for a in _ARGUMENTS[:number]]
        calls = [
            {
                "type": "function",
                "id": f"abcdefgh{i}",
                "function": {"name": "add_numbers", "arguments": json.dumps(a) if as_text else a},
            }
            for i, a in enumerate(arguments)
        ]
        messages: list[dict[str, Any]] = [
            *([{"role": "system", "content": "S"}] if form.system else []),
            {"role": "user", "content": _said(0)},
            {"role": "assistant", "content": content, "tool_calls": calls},
        ]
        if form.thoughts:
            messages[-1] |= dict.fromkeys(THOUGHT_FIELDS, _THOUGHT)
        if answered:
            messages.append(
                {"role": "tool", "name": "add_numbers", "tool_call_id": "abcdefgh0", "content": "5"}
            )
        return self._render(messages, form, tools=[_TOOL])

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        form: _Form,
        *,
        generation: bool = False,
        tools: Sequence[Any] = (),
    ) -> str:
        variables = {**(form.variables or {}), **self._variables}
        return self.template.render(messages, tools=tools, generation=generation, variables=variables)


def inspect_template(
    text: str,
    specials: Mapping[str, str],
    controls: re.Pattern[str],
    origin: str,
    *,
    clock: datetime,
    variables: Mapping[str, Any],
) -> InspectedTemplate:
    """Return what is known of a template.

    Args:
        text: Jinja text.
        specials: Named special tokens.
        controls: Pattern of control tokens.
        origin: Where the template came from, for messages.
        clock: What `strftime_now` reads.
        variables: Of the template, as the config gives them.

    Raises:
        UserError: The template is not valid, renders no form of conversation, ends an answer with no control token,
            or writes before an answer what generation is not told.
    """
    trial = _Trial(ChatTemplate(text, specials, origin, clock), variables)
    forms = _working(trial, origin)
    completed = _with_prompt(trial, forms[0], origin)
    if completed != text:
        trial = _Trial(ChatTemplate(completed, specials, origin, clock), variables)
    stops: list[str] = []
    answer_tail = ""
    for form in forms:
        rendered, longer = trial.render(form, 2 * form.rounds), _longer(trial, form)
        stop = _end_of_answer(rendered, longer, _said(2 * form.rounds - 1), controls)
        if stop is None:
            answer_tail = answer_tail or _up_to_control(rendered, longer, controls)
            found = controls.search(answer_tail)
            stop = found.group() if found else None
        if stop is not None:
            stops.append(stop)
    if not stops:
        raise UserError(
            f"{origin} ends an answer with no control token, so a model trained with it would never stop; let every "
            "assistant turn end with eos_token, or choose a built-in template with render.template"
        )
    call_stop, call_tail = _end_of_call(trial, forms, controls, stops)
    return InspectedTemplate(
        template=trial.template,
        stops=tuple(dict.fromkeys([*stops, *([call_stop] if call_stop else [])])),
        answer_tail=answer_tail,
        call_tail=call_tail,
        takes_thoughts=(takes := _takes_thoughts(trial)),
        cuts_thoughts=not takes and _cuts_thoughts(trial),
    )


def _working(trial: _Trial, origin: str) -> list[_Form]:
    """Return the forms that the template renders with every content in its place."""
    forms: list[_Form] = []
    first: str | None = None
    for form in _FORMS:
        try:
            rendered = trial.render(form, 2 * form.rounds)
            missing = [i for i in range(2 * form.rounds) if _said(i) not in rendered]
            if not missing:
                forms.append(form)
                continue
            role = ("user", "assistant")[missing[0] % 2]
            wrong = f"it leaves out or changes the content of turn {missing[0]} ({role})"
        except TemplateError as error:
            wrong = str(error)
        first = first or wrong
    if not forms:
        tried = ", ".join(form.says for form in _FORMS)
        raise UserError(
            f"{origin} cannot be used for training: it cannot render a conversation ({first}; tried: {tried}); mend the "
            "template, give it the variables it asks for with render.template_kwargs, or choose a built-in one with render.template"
        )
    return forms


def _with_prompt(trial: _Trial, form: _Form, origin: str) -> str:
    """Return the template's text, with a generation prompt if it had none."""
    text = trial.template.text
    try:
        history, prompt = trial.render(form, 1), trial.render(form, 1, generation=True)
    except TemplateError:
        return text  # it renders no question alone; each record will say
    if prompt != history:
        return text
    full = trial.render(form, 2)
    before = full[: full.index(_THOUGHT if form.thoughts and _THOUGHT in full else _said(1))]
    header = before[_common(history, before) :].rstrip(" ")  # a space belongs to the word that follows it
    if not header.strip():
        return text  # the question itself ends in what calls for an answer, as in "[/INST]"
    if not before.startswith(history):
        raise UserError(
            f"{origin} ignores add_generation_prompt, and what it writes before an answer cannot be told from the turn "
            "before, so generation would not see what training saw; add a generation prompt to the template"
        )
    line = text.removesuffix("\n")  # Jinja drops a last newline, and no longer would
    return f"{line}{{% if add_generation_prompt %}}{{{{ {json.dumps(header)} }}}}{{% endif %}}"


def _common(a: str, b: str) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def _longer(trial: _Trial, form: _Form) -> str:
    """Return a form with one more question behind it; empty where the template does not render that."""
    try:
        return trial.render(form, 2 * form.rounds + 1)
    except TemplateError:
        return ""


def _up_to_control(shorter: str, longer: str, controls: re.Pattern[str]) -> str:
    found = controls.search(longer, len(shorter)) if longer.startswith(shorter) else None
    between = longer[len(shorter) : found.end()] if found else ""
    return between if found and not between[: -len(found.group())].strip() else ""


def _end_of_call(
    trial: _Trial, forms: Sequence[_Form], controls: re.Pattern[str], stops: Sequence[str]
) -> tuple[str | None, str]:
    """Return the token that ends a turn of calls, and what has to be written behind the calls for that."""
    for form in (f for f in forms if f.rounds == 1):
        for as_text in (False, True):
            for content in ("", None):
                try:
                    alone = trial.calls(form, 1, as_text=as_text, content=content, answered=False)
                except TemplateError:
                    continue
                if _ARGUMENTS[0] not in alone:
                    continue
                tail = alone[alone.rindex(_ARGUMENTS[0]) :]
                found = list(controls.finditer(tail))
                if known := next((m.group() for m in found if m.group() in stops), None):
                    return known, ""
                between = _between_calls(trial, form, as_text, content)
                if found and not tail[found[-1].end() :].strip() and found[-1].group() not in between:
                    return found[-1].group(), ""
                try:
                    longer = trial.calls(form, 1, as_text=as_text, content=content, answered=True)
                except TemplateError:
                    return None, ""
                call_tail = _up_to_control(alone, longer, controls)
                stop = controls.search(call_tail)
                return (stop.group() if stop else None), call_tail
    return None, ""


def _between_calls(trial: _Trial, form: _Form, as_text: bool, content: str | None) -> str:
    """Return what the template writes between two calls of one turn: what stands there ends no turn."""
    try:
        two = trial.calls(form, 2, as_text=as_text, content=content, answered=False)
    except TemplateError:
        return ""
    first, second = (two.find(a) for a in _ARGUMENTS)
    return two[first:second] if 0 <= first < second else ""


def _takes_thoughts(trial: _Trial) -> bool:
    for form in (f for f in _FORMS if f.thoughts):
        try:
            if _THOUGHT in trial.render(form, 2):
                return True
        except TemplateError:
            continue
    return False


def _cuts_thoughts(trial: _Trial) -> bool:
    for form in (f for f in _FORMS if f.rounds == 1):
        try:
            rendered = trial.render(form, 2, inside=True)
        except TemplateError:
            continue
        return _said(1) in rendered and _THOUGHT not in rendered
    return False


def _end_of_answer(rendered: str, longer: str, said: str, controls: re.Pattern[str]) -> str | None:
    """Return the token that ends an answer.

    Of those that follow its content, it is the last that is there before another question as well (a message may end
    before its turn does, and a conversation after it); where there is no such, the first.
    """
    tail = rendered[rendered.rindex(said) + len(said) :]
    history = longer[longer.rindex(said) + len(said) :] if said in longer else ""
    found = list(controls.finditer(tail))
    shared = [m for m in found if m.end() <= _common(tail, history)]
    last = next(iter(shared[-1:] or found[:1]), None)
    return last.group() if last else None
