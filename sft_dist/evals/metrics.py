"""(prediction, references) -> a score from 0 to 1, for every metric; and which metric fits a task.

The metrics of Super-NaturalInstructions (Wang et al., 2022) equal its official script: `exact_match` compares after
lowering, removing ASCII punctuation and collapsing spaces (articles stay); `rouge_l` is its default track (words of
a-z and 0-9, stemmed by Porter), `rouge_l_xlingual` its other track (GPT-2's byte-level BPE). All take the best
reference. The default track sees nothing of most scripts: identical Chinese answers score 0, and "t" equals "ete"
with accents. `metric_of_task` therefore takes `rouge_l_xlingual` where the references need it.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from rapidfuzz.distance import LCSseq

from sft_dist.verifiers.constraints import NUMBER, equal_numbers
from sft_dist.verifiers.table import keeps

GPT2 = "openai-community/gpt2"
MAX_LABELS = 10
"""Distinct answers up to which a task counts as a classification."""
LOST_LETTERS = 0.01
"""Share of letters outside a-z above which the default track of ROUGE-L does not fit a task."""

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NOT_ROUGE = re.compile(r"[^a-z0-9]+")
# Scripts that put no blanks between words: each letter is a token.
_NO_BLANKS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def normalise(text: str) -> str:
    """Return the text lowered, without ASCII punctuation, spaces collapsed."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 when the normalised prediction equals a normalised reference; texts of signs alone are compared as they are."""
    said = normalise(prediction)
    return float(
        any(
            said == (wanted := normalise(r)) and (bool(wanted) or prediction.strip() == r.strip())
            for r in references
        )
    )


def strict_exact_match(prediction: str, references: Sequence[str]) -> float:
    """Return 1 when the trimmed prediction equals a trimmed reference letter by letter."""
    return float(any(prediction.strip() == r.strip() for r in references))


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F1 over the references, words stemmed (Porter): the official default track."""
    said = rouge_tokens(prediction)
    return max(_lcs_f1(said, rouge_tokens(r)) for r in references)


def rouge_l_xlingual(prediction: str, references: Sequence[str]) -> float:
    """Return the best ROUGE-L F1 over byte-level BPE tokens where GPT-2's tokenizer is at hand, else `unicode_tokens`."""
    said = xlingual_tokens(prediction)
    return max(_lcs_f1(said, xlingual_tokens(r)) for r in references)


def token_f1(prediction: str, references: Sequence[str]) -> float:
    """Return the best F1 over bags of normalised words, as in SQuAD, for any script."""
    said = Counter(unicode_tokens(normalise(prediction) or prediction))
    return max(_bag_f1(said, Counter(unicode_tokens(normalise(r) or r))) for r in references)


def numeric(prediction: str, references: Sequence[str]) -> float:
    """Return 1 when the last number of the prediction equals the last number of a reference, to 1e-6."""
    return float(equal_numbers(prediction, references))


def checks(prediction: str, wanted: Sequence[str]) -> float:
    """Return 1 when the prediction keeps all checks of its record."""
    return float(keeps(prediction, wanted))


@dataclass(frozen=True, slots=True)
class Metric:
    """A score of one answer.

    Attributes:
        title: In tables and sentences.
        function: (prediction, references) -> the score.
        note: One sentence for the page.
        higher_is_better: Direction.
        binary: Whether scores are 0 or 1, so that Wilson's interval fits one task.
        by_checks: Whether it takes the checks of the record in place of its references.
    """

    title: str
    function: Callable[[str, Sequence[str]], float]
    note: str
    higher_is_better: bool = True
    binary: bool = False
    by_checks: bool = False


METRICS: dict[str, Metric] = {
    "exact_match": Metric(
        "exact match", exact_match, "Equal after lowering and removing ASCII punctuation.", binary=True
    ),
    "rouge_l": Metric(
        "ROUGE-L",
        rouge_l,
        "F1 of the longest common subsequence of stemmed words, the official default track.",
    ),
    "rouge_l_xlingual": Metric(
        "ROUGE-L, any script",
        rouge_l_xlingual,
        "F1 of the longest common subsequence of tokens of any script.",
    ),
    "token_f1": Metric("token F1", token_f1, "F1 of the bags of words."),
    "accuracy": Metric(
        "accuracy",
        exact_match,
        "Share of right labels; the confusion of the labels stands beside.",
        binary=True,
    ),
    "choice": Metric(
        "choice by likelihood",
        exact_match,
        "The most likely of the answers that the record offers is right; nothing is generated.",
        binary=True,
    ),
    "numeric": Metric(
        "numeric match", numeric, "The last number of the answer is right, to 1e-6.", binary=True
    ),
    "checks": Metric(
        "checks kept",
        checks,
        "The answer keeps all constraints that its record names, as programs check them.",
        binary=True,
        by_checks=True,
    ),
}
"""One entry adds a metric: scoring, report, comparison, sweep and validation read it here (its name: config/train.py)."""

AUTO = "auto"
"""Each task by the metric that fits it."""


def title_of(metric: str) -> str:
    """Return how a metric is called in tables; `auto` is the score by each task's own metric."""
    return METRICS[metric].title if metric in METRICS else "score" if metric == AUTO else metric


def metric_of_task(
    asked: str,
    references: Sequence[Sequence[str]],
    *,
    told: str | None = None,
    classification: bool = False,
    choices: bool = False,
    checked: bool = False,
) -> str:
    """Return the metric that judges a task.

    Args:
        asked: `eval.metric`. `auto` chooses; `rouge_l` gives way to its cross-lingual track where the script needs it.
        references: Of each evaluated example.
        told: What the source of the task says.
        classification: Whether the source says that it is one.
        choices: Whether every example offers answers to choose from.
        checked: Whether every example names checks.
    """
    if asked not in (AUTO, "rouge_l"):
        return asked
    answers = [r for rs in references for r in rs]
    if asked == AUTO:
        if told in METRICS and (told != "choice" or choices):
            return str(told)
        if checked:
            return "checks"
        labels = {normalise(rs[0]) for rs in references}
        few = 1 < len(labels) <= min(MAX_LABELS, len(references) // 3)
        if classification or (few and all(len(label.split()) <= 4 for label in labels)):
            return "accuracy"
        if answers and all(NUMBER.fullmatch(a.strip()) for a in answers):
            return "numeric"
    return "rouge_l_xlingual" if needs_xlingual(answers) else "rouge_l"


def needs_xlingual(references: Iterable[str]) -> bool:
    """Return whether the default track of ROUGE-L loses an answer whole, or more than 1 % of all letters."""
    letters = lost = 0
    for text in references:
        here = [c for c in text if c.isalpha()]
        letters += len(here)
        lost += sum(not c.isascii() for c in here)
        if text.strip() and not rouge_tokens(text):
            return True
    return lost > LOST_LETTERS * letters


def rouge_tokens(text: str) -> list[str]:
    """Return the tokens of the default track: runs of a-z and 0-9, those of more than three letters stemmed."""
    return [_stem(w) if len(w) > 3 else w for w in _NOT_ROUGE.sub(" ", text.lower()).split()]


def unicode_tokens(text: str) -> list[str]:
    """Return words of letters, marks and digits of any script, single letters where words have no blanks, single signs."""
    out: list[str] = []
    joins = False
    for c in text.lower():
        kind = unicodedata.category(c)[0]
        if kind in "LMN":
            alone = kind == "L" and unicodedata.name(c, "").startswith(_NO_BLANKS)
            if (joins and not alone) or (kind == "M" and out):
                out[-1] += c
            else:
                out.append(c)
            joins = not alone
        else:
            joins = False
            if not c.isspace():
                out.append(c)
    return out


def xlingual_tokens(text: str) -> list[str]:
    """Return GPT-2's tokens without the sign of a leading blank, as the official script; else `unicode_tokens`."""
    tokenizer = gpt2_tokenizer()
    if tokenizer is None:
        return unicode_tokens(text)
    return [t.lstrip("\u0120") for t in tokenizer.encode(text, add_special_tokens=False).tokens]


def xlingual_tokens_title() -> str:
    """Return what `rouge_l_xlingual` counts, for the page."""
    if gpt2_tokenizer() is not None:
        return "tokens of GPT-2's byte-level BPE, as the official script"
    return "Unicode words, and single characters of scripts without blanks, because GPT-2's tokenizer is not at hand"


@cache
def gpt2_tokenizer(path: str = GPT2) -> Any:
    """Return GPT-2's tokenizer from a local tokenizer.json, the hub's cache or the hub; None where it cannot be had."""
    import httpx
    from huggingface_hub import constants, hf_hub_download
    from tokenizers import Tokenizer

    if Path(path).is_file():
        return Tokenizer.from_file(path)
    with suppress(Exception):
        return Tokenizer.from_file(hf_hub_download(path, "tokenizer.json", local_files_only=True))
    with suppress(Exception):
        httpx.head(
            constants.ENDPOINT, timeout=2
        )  # without a network the hub's client tries for half a minute
        return Tokenizer.from_file(hf_hub_download(path, "tokenizer.json"))
    return None


@lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    return str(_stemmer().stem(word))


@cache
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer()


def _lcs_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return 0.0
    common = int(LCSseq.similarity(said, wanted))
    return 2 * common / (len(said) + len(wanted))


def _bag_f1(said: Counter[str], wanted: Counter[str]) -> float:
    common = sum((said & wanted).values())
    return 2 * common / (said.total() + wanted.total()) if common else 0.0
