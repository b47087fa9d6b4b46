"""Look at what will be trained: turns in colour, trained tokens marked, packed rows as bars; in the terminal or as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING

from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.render.draft import Segment
from sft_dist.render.renderer import Renderer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

ROLE_COLOURS = {"system": "magenta", "user": "cyan", "assistant": "green", "tool": "yellow"}
# (label, first token, tokens, tokens that carry loss) of one document in a packed row
PackedDoc = tuple[str, int, int, int]


def preview_terminal(renderer: Renderer, examples: Sequence[Example], console: Console) -> None:
    """Print every example: a colour a role, trained tokens on a coloured ground, control tokens dim.

    Args:
        renderer: As used for training.
        examples: What to show; one that would be dropped is shown with the reason.
        console: Where to print.
    """
    from rich.panel import Panel
    from rich.text import Text

    legend = Text("  ".join(ROLE_COLOURS))
    for role, colour in ROLE_COLOURS.items():
        legend.highlight_words([role], style=colour)
    console.print(legend.append("   on green (or in ⟦⟧): carries loss", style="black on green"))
    for example in examples:
        title = f"{example.task} · {example.id[:8]}"
        try:
            segments = renderer.explain(example)
        except UserError as error:
            console.print(
                Panel(
                    Text(str(error), style="red"), title=Text(title), title_align="left", border_style="red"
                )
            )
            continue
        body = Text()
        for role, block in _blocks(renderer, segments):
            for s in block:
                body.append_text(_coloured(s, role, marks=console.color_system is None))
        console.print(
            Panel(
                body,
                title=Text(title),
                subtitle=Text(_summary(segments)),
                title_align="left",
                subtitle_align="left",
            )
        )


def _blocks(renderer: Renderer, segments: Sequence[Segment]) -> list[tuple[str, list[Segment]]]:
    """Return (who speaks, the segments) turn by turn, also where the template speaks.

    A line end behind a turn belongs to it, and a turn that the template opens the conversation with is a system turn.
    """
    turns: list[list[Segment]] = []
    for s in segments:
        if turns and (turns[-1][-1].turn == s.turn or not s.text.strip()):
            turns[-1].append(s)
        else:
            turns.append([s])
    ends = (
        [n for n, s in enumerate(turns[0]) if s.control and s.text in renderer.stop_tokens] if turns else []
    )
    first = (
        [("system", turns[0][: ends[-2] + 1]), (turns[0][-1].role, turns[0][ends[-2] + 1 :])]
        if len(ends) > 1
        else []
    )
    return [*first, *((turn[0].role, turn) for turn in turns[bool(first) :])]


def _coloured(s: Segment, role: str, marks: bool) -> Text:
    """Return the segment's text; `marks` brackets what carries loss where there are no colours."""
    from rich.text import Text

    colour = ROLE_COLOURS[role]
    style = f"black on {colour}" if s.weight else f"dim {colour}" if s.control else colour
    shown = s.text.replace("\n", "↵\n")
    text = Text(f"⟦{shown}⟧" if marks and s.weight else shown, style=style)
    if s.weight not in (0.0, 1.0) and s.ids:
        text.append(f"*{s.weight:g}", style="bold red")
    return text


def _summary(segments: Sequence[Segment]) -> str:
    """Return the token counts of an example as a sentence."""
    total = sum(len(s.ids) for s in segments)
    trained = _trained(segments)
    weights = sorted({s.weight for s in segments if s.weight and s.ids})
    odd = f", weights {', '.join(f'{w:g}' for w in weights)}" if weights not in ([], [1.0]) else ""
    return f"{total} tokens, {trained} carry loss ({trained / max(total, 1):.0%}){odd}"


def _trained(segments: Sequence[Segment]) -> int:
    """Count tokens that carry loss; nothing predicts the first one."""
    total, first = 0, True
    for s in segments:
        total += (len(s.ids) - (first and bool(s.ids))) * bool(s.weight)
        first = first and not s.ids
    return total


def preview_html(
    renderer: Renderer, examples: Sequence[Example], packed_rows: Sequence[Sequence[PackedDoc]] | None = None
) -> str:
    """Return one self-contained HTML page.

    Args:
        renderer: As used for training.
        examples: What to show; one that would be dropped is shown with the reason.
        packed_rows: Rows of a few global batches, each a list of (label, first token, tokens, trained tokens).
    """
    page = resources.files("sft_dist.render") / "templates" / "preview.html"
    cards = "\n".join(_card(renderer, e) for e in examples)
    rows = _rows(packed_rows) if packed_rows else ""
    facts = [
        ("tokenizer", renderer.tokenizer.path),
        ("vocabulary", f"{renderer.tokenizer.vocab_size:,}"),
        ("stop tokens", " ".join(renderer.tokenizer.text_of(i) for i in renderer.stop_ids)),
        ("fingerprint", renderer.fingerprint),
    ]
    fields = {
        "FACTS": "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts),
        "ROWS": rows,
        "CARDS": cards,
        "TEMPLATE": escape(renderer.template_text),
    }
    text = page.read_text(encoding="utf-8")
    head, *pieces = text.split("<!--")
    out = [head]
    for piece in pieces:  # a field's content may itself hold comments, so it is never searched again
        name, _, rest = piece.partition("-->")
        out += [fields[name], rest]
    return "".join(out)


def _card(renderer: Renderer, example: Example) -> str:
    title = (
        f"<h3>{escape(example.task)} <small>{escape(example.source)} · {escape(example.id[:8])}</small></h3>"
    )
    try:
        segments = renderer.explain(example)
    except UserError as error:
        return f'<article class="dropped">{title}<p>{escape(str(error))}</p></article>'
    blocks = "".join(
        f'<div class="turn {role}"><b>{role}</b><div class="text">'
        f"{''.join(_tokens(renderer, s) for s in turn)}</div>"
        f"<i>{sum(len(s.ids) for s in turn)}</i></div>"
        for role, turn in _blocks(renderer, segments)
    )
    return f"<article>{title}<p>{escape(_summary(segments))}</p>{blocks}</article>"


def _tokens(renderer: Renderer, s: Segment) -> str:
    """Return the segment token by token; tokens that share a character are shown as one."""
    kind = "control" if s.control else "token"
    trained = " trained" if s.weight else ""
    weight = f' style="--weight:{min(max(s.weight, 0.15), 1):.2f}"' if s.weight not in (0.0, 1.0) else ""
    out = []
    for ids, text in _characters(renderer, s):
        shown = escape(text).replace("\n", '<span class="nl">↵</span>\n')
        note = f"{' '.join(map(str, ids))} · weight {s.weight:g}"
        out.append(f'<span class="{kind}{trained}" title="{note}"{weight}>{shown}</span>')
    return "".join(out)


def _characters(renderer: Renderer, s: Segment) -> Iterator[tuple[list[int], str]]:
    """Yield (ids, text) of the fewest tokens that make whole characters."""
    if s.control:
        yield list(s.ids), s.text
        return
    waiting: list[int] = []
    for token_id in s.ids:
        waiting.append(token_id)
        text = renderer.tokenizer.decode(waiting)
        if "\ufffd" not in text or len(waiting) >= 8:  # a character has at most four bytes; eight is given up
            yield waiting, text
            waiting = []
    if waiting:
        yield waiting, renderer.tokenizer.decode(waiting)


def _rows(packed_rows: Sequence[Sequence[PackedDoc]]) -> str:
    """Return the packed rows as bars: a colour a document, its lower part as wide as the share that carries loss."""
    capacity = max((start + length for row in packed_rows for _, start, length, _ in row), default=0) or 1
    bars = []
    for number, row in enumerate(packed_rows):
        docs = "".join(
            f'<span style="left:{100 * start / capacity:.3f}%;width:{100 * length / capacity:.3f}%;--hue:{137.5 * i % 360:.0f}"'
            f' title="{escape(label)}: tokens {start} to {start + length - 1}, {trained} of {length} carry loss">'
            f'<u style="width:{100 * trained / max(length, 1):.1f}%"></u></span>'
            for i, (label, start, length, trained) in enumerate(row)
        )
        used = sum(length for _, _, length, _ in row)
        bars.append(
            f'<div class="row"><b>{number}</b><div class="bar">{docs}</div>'
            f"<i>{len(row)} docs · {used:,} tokens · {used / capacity:.1%}</i></div>"
        )
    return f"<section><h2>Packed rows</h2>{''.join(bars)}</section>"
