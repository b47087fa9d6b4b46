"""docs/patterns.md: each file of patterns, its records and what comes of them stand on the page as they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sft_dist.core.records import Example
from sft_dist.sources.patterns.reader import PatternsReader

PAGE = Path(__file__).resolve().parents[2] / "docs/patterns.md"
CASES = re.findall(
    r"```yaml\n(.*?)```\n\n```(jsonl|csv)\n(.*?)```\n\n```text\n(.*?)```", PAGE.read_text(), re.DOTALL
)


def test_every_family_stands_on_the_page():
    families = re.findall(r"^### (.*)$", PAGE.read_text(), re.MULTILINE)
    assert families == [
        "Classification",
        "Natural language inference",
        "Translation",
        "Summarisation",
        "Question answering",
    ]
    assert len(CASES) == 7


@pytest.mark.parametrize("patterns, kind, records, shown", CASES)
def test_the_page_shows_what_comes_of_its_records(tmp_path, patterns, kind, records, shown):
    (tmp_path / "patterns.yaml").write_text(patterns)
    (tmp_path / f"rows.{kind}").write_text(records)
    source = PatternsReader(
        "task",
        path=str(tmp_path / f"rows.{kind}"),
        patterns=str(tmp_path / "patterns.yaml"),
        patterns_per_record=None,
    )
    found = [
        e if not isinstance(e, Example) else f"{e.task}: {e.messages[0].content} => {e.output}"
        for e in source
    ]
    assert [str(f).replace("\n", "↵") for f in found] == shown.splitlines()
