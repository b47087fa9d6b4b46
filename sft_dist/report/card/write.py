"""CardFacts -> card.html, README.md, card.json."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sft_dist.core.files import write_json, write_text
from sft_dist.report.card.facts import CardFacts
from sft_dist.report.card.markdown import markdown
from sft_dist.report.card.page import html_page


def write(facts: CardFacts, folder: Path) -> list[Path]:
    """Write the card in its three forms; return their paths, the page first."""
    page, text, numbers = folder / "card.html", folder / "README.md", folder / "card.json"
    write_text(page, html_page(facts))
    write_text(text, markdown(facts))
    write_json(numbers, to_json(facts))
    return [page, text, numbers]


def to_json(facts: CardFacts) -> dict[str, Any]:
    """Return everything on the card as JSON-ready values; a mean over nothing is null."""
    out = asdict(facts)
    out["dropped"] = facts.dropped
    for kind, groups in facts.groups().items():
        out[kind] = {n: {"tasks": k, "amount": asdict(a)} for n, (k, a) in groups.items()}
    means = out["diversity"]["nearest_mean"]
    out["diversity"]["nearest_mean"] = {n: None if math.isnan(v) else v for n, v in means.items()}
    return out
