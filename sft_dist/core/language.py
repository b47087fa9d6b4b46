"""The identifier of languages: py3langid, naive Bayes over byte n-grams, 140 languages, no network."""

from __future__ import annotations

from functools import cache
from typing import Any

JUDGED_CHARS = 1000  # of a text: its language shows in fewer, and the time goes with the length


@cache
def identifier() -> Any:
    """Return the identifier; its model takes a second to load, so only where a language is asked for."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
