"""The table of verifiers, and checks: a verifier with its options, as a JSON object that stands in a record."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sft_dist.core.errors import nearest
from sft_dist.verifiers.code_sandbox import CPU_SECONDS, code_of, failing_tests
from sft_dist.verifiers.constraints import (
    LANGUAGES,
    NUMBER,
    bullets,
    equal_numbers,
    in_words,
    is_json,
    language_of,
    last_number,
    number,
    sentences,
    words,
)

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verifier:
    """One way to tell whether an answer is kept.

    Attributes:
        holds: (answer, options, references) -> whether; the references are empty where it needs none. Or a text: why not.
        options: Name -> an example of its value; values of other types are refused.
        optional: Names of options that may be missing.
        wording: How an instruction asks for it; None: it is nothing that one asks for.
        aspect: Of the answer; no instruction asks for two of one aspect.
        draws: Values of the options that are drawn for instructions; without any there is one.
        needs_reference: Whether it compares with what the record holds.
        runs_code: Whether it runs code, so that no record may ask for it.
    """

    holds: Callable[[str, Options, Sequence[str]], bool | str]
    options: Mapping[str, Any] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    wording: Callable[[Options], str] | None = None
    aspect: str = ""
    draws: Sequence[Options] = ({},)
    needs_reference: bool = False
    runs_code: bool = False


def _exact(text: str, _: Options, references: Sequence[str]) -> bool | str:
    said = _final(text)
    wanted = [_final(r) for r in references]
    return said in wanted or f"{said[:60]!r} is not {wanted[0][:60]!r}"


def _final(text: str) -> str:
    """Return what is compared: what stands behind the last "####", "answer is" or "answer:", or in a box of TeX; else the text."""
    marks = re.split(r"####|(?:final )?answer(?: is|:)", text.strip(), flags=re.IGNORECASE)
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    last = boxed[-1] if boxed else marks[-1] if marks[-1].strip() else text
    folded = unicodedata.normalize("NFKC", last).casefold().strip().strip("*").rstrip(".!").strip(" \"'`$*")
    return " ".join(folded.replace(",", "").split() if NUMBER.fullmatch(folded) else folded.split())


def _number(text: str, _: Options, references: Sequence[str]) -> bool | str:
    return (
        equal_numbers(text, references)
        or f"the last number is {last_number(text)}, not {last_number(references[0])}"
    )


def _unit_tests(text: str, options: Options, references: Sequence[str]) -> bool | str:
    return (
        failing_tests(
            code_of(text), "\n".join(references), cpu_seconds=options.get("cpu_seconds", CPU_SECONDS)
        )
        or True
    )


def _some(*values: Any, name: str) -> list[Options]:
    return [{name: v} for v in values]


VERIFIERS: dict[str, Verifier] = {
    "exact": Verifier(holds=_exact, needs_reference=True),
    "number": Verifier(holds=_number, needs_reference=True),
    "unit_tests": Verifier(
        holds=_unit_tests, options={"cpu_seconds": 10}, optional=frozenset({"cpu_seconds"}), needs_reference=True, runs_code=True
    ),
    "at_least_words": Verifier(
        holds=lambda t, o, _: len(words(t)) >= o["words"], options={"words": 20},
        aspect="length", wording=lambda o: f"Use at least {o['words']} words.", draws=_some(20, 50, 100, 200, name="words"),
    ),
    "at_most_words": Verifier(
        holds=lambda t, o, _: 0 < len(words(t)) <= o["words"], options={"words": 8},
        aspect="length", wording=lambda o: f"Use at most {o['words']} words.", draws=_some(8, 20, 50, 100, name="words"),
    ),
    "sentences": Verifier(
        holds=lambda t, o, _: sentences(t) == o["number"], options={"number": 2},
        aspect="length", wording=lambda o: f"Write exactly {number(o['number'])} sentence{'s' * (o['number'] != 1)}.", draws=_some(1, 2, 3, 4, name="number"),
    ),
    "bullets": Verifier(
        holds=lambda t, o, _: bullets(t) == o["number"], options={"number": 3},
        aspect="form", wording=lambda o: f"Write exactly {number(o['number'])} bullet points that begin with a hyphen.", draws=_some(2, 3, 4, 5, name="number"),
    ),
    "keyword": Verifier(
        holds=lambda t, o, _: in_words(t, o["word"]), options={"word": "river"}, aspect="words", wording=lambda o: f"Use the word {o['word']}.",
        draws=_some("river", "however", "simple", "today", "careful", name="word"),
    ),
    "no_keyword": Verifier(
        holds=lambda t, o, _: bool(words(t)) and not in_words(t, o["word"]), options={"word": "the"},
        aspect="words", wording=lambda o: f"Do not use the word {o['word']}.", draws=_some("the", "and", "is", "very", name="word"),
    ),
    "capitals": Verifier(holds=lambda t, _, __: t.isupper(), aspect="case", wording=lambda _: "Write in capital letters only."),
    "lower_case": Verifier(holds=lambda t, _, __: t.islower(), aspect="case", wording=lambda _: "Write in lower-case letters only."),
    "no_commas": Verifier(holds=lambda t, _, __: bool(t.strip()) and "," not in t, aspect="commas", wording=lambda _: "Do not use commas."),
    "json": Verifier(holds=lambda t, _, __: is_json(t), aspect="form", wording=lambda _: "Answer with valid JSON only."),
    "start": Verifier(
        holds=lambda t, o, _: t.lstrip().lower().startswith(o["text"].lower()), options={"text": "Well"},
        aspect="form", wording=lambda o: f"Begin with the word {o['text']}.", draws=_some("Well", "Certainly", "Here", name="text"),
    ),
    "end": Verifier(
        holds=lambda t, o, _: t.rstrip(" .!").lower().endswith(o["text"].lower()), options={"text": "that is all"},
        aspect="form", wording=lambda o: f"End with the words {o['text']}.", draws=_some("that is all", "nothing more", "and so on", name="text"),
    ),
    "quotes": Verifier(
        holds=lambda t, _, __: len(t.strip()) > 2 and t.strip()[0] == t.strip()[-1] == '"',
        aspect="form", wording=lambda _: "Put the whole answer in double quotation marks.",
    ),
    "language": Verifier(
        holds=lambda t, o, _: language_of(t) == o["code"], options={"code": "de"},
        aspect="words", wording=lambda o: f"Answer in {LANGUAGES.get(o['code'], o['code'])}.", draws=_some("de", "fr", "es", "it", name="code"),
    ),
}  # fmt: skip
"""One entry adds a verifier: construct's `verify` and `constraints`, and the metric `checks`, read it here."""

CONSTRAINTS = tuple(name for name, v in VERIFIERS.items() if v.wording is not None)
"""Those that an instruction can ask for."""


def fault(name: str, options: Any) -> str | None:
    """Return what is wrong with a verifier and its options; None: nothing."""
    if name not in VERIFIERS:
        return f"{name!r} is no verifier; use {', '.join(VERIFIERS)}.{nearest(name, VERIFIERS)}"
    known = VERIFIERS[name]
    if not isinstance(options, Mapping):
        return f"{name} takes its options as a mapping, such as {{{', '.join(f'{k}: {v}' for k, v in known.options.items())}}}"
    for key, value in options.items():
        if key not in known.options:
            return f"{name} has no option {key!r}; it has {', '.join(known.options) or 'none'}"
        if (
            type(value) is not type(known.options[key])
            or value in ("", 0)
            or (isinstance(value, int) and value < 0)
        ):
            return f"{name}: {key}={value!r} is of no use; write something like {known.options[key]!r}"
    if missing := [k for k in known.options if k not in options and k not in known.optional]:
        return f"{name} needs {missing[0]}, such as {known.options[missing[0]]!r}"
    return None


def check_of(name: str, options: Options) -> str:
    """Return a check, as it stands in a record."""
    return json.dumps({"verifier": name, **options}, sort_keys=True, ensure_ascii=False)


def read_check(text: str) -> tuple[str, dict[str, Any]]:
    """Return the verifier and the options of a check.

    Raises:
        ValueError: When it is none, or one that no record may ask for; the message says why.
    """
    try:
        options = dict(json.loads(text))
        name = str(options.pop("verifier"))
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError(f"{text[:60]!r} is no JSON object with a 'verifier'") from None
    if wrong := fault(name, options):
        raise ValueError(wrong)
    if VERIFIERS[name].needs_reference or VERIFIERS[name].runs_code:
        raise ValueError(f"{name} cannot stand in a record; it is for construct's `verify`")
    return name, options


def broken(answer: str, name: str, options: Options, references: Sequence[str] = ()) -> str | None:
    """Return why an answer does not pass a verifier; None: it does.

    Args:
        answer: Of the model.
        name: Of the verifier.
        options: Its options.
        references: What the record holds, for verifiers that compare.
    """
    found = VERIFIERS[name].holds(answer, options, references)
    return None if found is True else found or f"it breaks {check_of(name, options)}"


def keeps(answer: str, checks: Sequence[str]) -> bool:
    """Return whether an answer passes all checks of a record."""
    return all(broken(answer, *read_check(c)) is None for c in checks)
