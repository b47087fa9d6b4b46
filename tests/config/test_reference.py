"""docs/config.md is what the schema says now."""

from __future__ import annotations

from pathlib import Path

from sft_dist.config.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "config.md"


def test_the_committed_reference_is_current() -> None:
    assert PAGE.read_text() == reference(), "run `make docs`"


def test_defaults_and_types_by_eye() -> None:
    text = reference()
    assert "| `seed` | `0` | int." in text
    assert "| `stage` | `auto` |" in text
    assert "| `schedule` | `cosine` | `cosine` \\| `linear` \\| `constant` \\| `wsd`." in text
    assert "### data.sources.NAME (kind: alpaca)" in text
