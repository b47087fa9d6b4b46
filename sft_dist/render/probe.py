"""Learn from a foreign chat template, once, what its answers end with, and mend a missing generation prompt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from jinja2 import TemplateError

from sft_dist.core.errors import UserError
from sft_dist.render.jinja import ChatTemplate
from sft_dist.render.skeleton import CLOSE, OPEN

_SAID = tuple(f"{OPEN}{i}{CLOSE}" for i in range(4))


def adopt(
    text: str, specials: Mapping[str, str], controls: re.Pattern[str], origin: str
) -> tuple[str, tuple[str, ...]]:
    """Return the template (with a generation prompt if it had none) and the control tokens that end an answer.

    Args:
        text: Jinja text.
        specials: Named special tokens.
        controls: Pattern of control tokens.
        origin: Where the template came from, for messages.

    Raises:
        UserError: The template cannot render one question and one answer, or its answers end with no control token,
            or it has no generation prompt and its headers cannot be told from the text before them.
    """
    template = ChatTemplate(text, specials, origin)
    full = _render(template, 2, origin)
    stops = _stops(template, full, controls, origin)
    history, prompt = _render(template, 1, origin), _render(template, 1, origin, generation=True)
    if prompt != history:
        return text, stops
    before = full[: full.index(_SAID[1])]
    header = before[_common(history, before) :].rstrip(" ")  # a space belongs to the word that follows it
    if not header.strip():
        return text, stops  # the question itself ends in what calls for an answer, as in "[/INST]"
    if not before.startswith(history):
        raise UserError(
            f"{origin} ignores add_generation_prompt, and what it writes before an answer cannot be told from the turn "
            "before, so generation would not see what training saw; add a generation prompt to the template"
        )
    line = text.removesuffix("\n")  # Jinja drops a last newline, and no longer would
    return f"{line}{{% if add_generation_prompt %}}{{{{ {json.dumps(header)} }}}}{{% endif %}}", stops


def _common(a: str, b: str) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def _stops(template: ChatTemplate, full: str, controls: re.Pattern[str], origin: str) -> tuple[str, ...]:
    """Return the first control token after the last answer, then the one after an earlier answer if it differs."""
    stops = [_first_control(full, _SAID[1], controls)]
    try:
        rounds = _render(template, 4, origin)
        stops.append(_first_control(rounds.split(_SAID[2])[0], _SAID[1], controls))
    except UserError:
        pass  # one round only
    if stops[0] is None or None in stops:
        raise UserError(
            f"{origin} ends an answer with no control token, so a model trained with it would never stop; let every "
            "assistant turn end with eos_token, or choose a built-in template with render.template"
        )
    return tuple(dict.fromkeys(s for s in stops if s is not None))


def _first_control(rendered: str, after: str, controls: re.Pattern[str]) -> str | None:
    found = controls.search(rendered, rendered.index(after) + len(after)) if after in rendered else None
    return found.group() if found else None


def _render(template: ChatTemplate, turns: int, origin: str, generation: bool = False) -> str:
    messages = [{"role": ("user", "assistant")[i % 2], "content": _SAID[i]} for i in range(turns)]
    try:
        out = template.render(messages, generation=generation)
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UserError(
            f"{origin} cannot render a conversation of {turns} turns ({error}), so nothing could be trained with it; mend "
            "the template, or choose a built-in one with render.template"
        ) from error
    return out
