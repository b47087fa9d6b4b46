"""What data says cannot command a terminal; rich's own colours stay."""

from __future__ import annotations

import io

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sft_dist.core.terminal import SafeConsole, plain
from sft_dist.report.formatting import markdown_text

EVIL = "a\x1b]0;title\x07\x1b[2J\x9b31m\u202eb"


def test_no_sequence_of_the_data_reaches_the_terminal() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, width=200)
    table = Table(EVIL)
    table.add_row(EVIL)
    for shown in (EVIL, Text(EVIL, style="red"), Panel(Text(EVIL)), table):
        console.print(shown)
    text = file.getvalue()
    assert "\x1b[31m" in text  # red: rich's own
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "\x9b" not in text
    assert "\u202e" not in text


def test_plain_keeps_lines_and_tabs() -> None:
    assert plain("a\n\tb\x00") == "a\n\tb\N{REPLACEMENT CHARACTER}"


def test_markdown_shows_html_and_pictures_as_text() -> None:
    shown = markdown_text("<img src=x onerror=y> ![p](http://x/y) \x1b[2J")
    assert "<" not in shown
    assert "](" not in shown
    assert "\x1b" not in shown
