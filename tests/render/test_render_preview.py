"""Previews show roles, weights, counts and reasons, and are safe to open."""

from __future__ import annotations

import io
import re

import pytest
from render_helpers import chat
from rich.console import Console

from sft_dist.core.records import Message
from sft_dist.render.preview import preview_html, preview_terminal
from sft_dist.render.renderer import Renderer
from sft_dist.render.tokenizer import train_tokenizer

EVIL = "<script>alert(1)</script> [red]<!--CARDS-->"


@pytest.fixture(scope="module")
def renderer():
    return Renderer(train_tokenizer(["user assistant"] * 4, 300), template="chatml")


EXAMPLES = [
    chat(("u", EVIL), ("a", "你好")),
    chat(("u", "q"), Message(role="assistant", content="half", weight=0.5)),
    chat(("u", "unanswered")),
]


def test_terminal(renderer):
    out = io.StringIO()
    preview_terminal(renderer, EXAMPLES, Console(file=out, width=120))
    text = out.getvalue()
    assert EVIL in text
    assert "⟦你好⟧⟦<|im_end|>⟧" in text  # brackets stand for colours in a file
    assert "*0.5" in text
    assert "no_target" in text
    tokens = renderer.render(EXAMPLES[:1])[0]
    assert f"{len(tokens.ids)} tokens, {tokens.spans[0].length} carry loss" in text


def test_terminal_with_colours(renderer):
    out = io.StringIO()
    preview_terminal(
        renderer, EXAMPLES, Console(file=out, width=120, force_terminal=True, color_system="standard")
    )
    assert "⟦你" not in out.getvalue()
    assert "\x1b[30;42m你好" in out.getvalue()  # black on green


def test_html(renderer):
    page = preview_html(renderer, EXAMPLES, [[("a&b", 0, 60, 20), ("c", 60, 40, 0)], [("d", 0, 50, 50)]])
    assert "<script>" not in page
    assert "http" not in page  # self-contained
    assert page.count("<article") == 3
    assert page.count('class="dropped"') == 1
    assert re.search(
        r'class="token trained" title="[\d ]+ · weight 1">你<', page
    )  # several tokens, one character
    assert (
        '<span class="control trained" title="2 · weight 0.5" style="--weight:0.50">&lt;|im_end|&gt;</span>'
        in page
    )
    assert 'title="a&amp;b: tokens 0 to 59, 20 of 60 carry loss"' in page
    assert "left:60.000%;width:40.000%" in page
    assert "50 tokens · 50.0%" in page
    assert "{%- for m in messages %}" in page


def test_html_without_rows(renderer):
    assert "Packed rows" not in preview_html(renderer, EXAMPLES[:1])
