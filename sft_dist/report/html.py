"""The few building blocks of the page. Everything is well-formed XML, so that a test can prove it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sft_dist.report.formatting import count, decimal, esc, join, leaf, p_value, percent, points, printable
from sft_dist.report.run_files import MADE_BY, RunFiles

Row: TypeAlias = "Sequence[Cell | str]"

HERE = Path(__file__).parent


class Cell(NamedTuple):
    """A table cell: its HTML, what it sorts by (None: the number that its text begins with, else its text), CSS classes."""

    html: str
    value: float | None = None
    classes: str = ""


def page(title: str, body: str) -> str:
    """Return a whole page that asks for nothing from outside, which its policy forbids as well."""
    style = (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    return render("base.html", title=title, style=style, script=script, body=body) + "\n"


def render(template: str, **values: Any) -> str:
    """Return a template of `report/templates` with values, which are escaped; pieces of HTML pass with `| safe`."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=False,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "count": count,
        "decimal": decimal,
        "p_value": p_value,
    }
    environment.finalize = printable
    return environment


def table(
    heads: Sequence[str],
    rows: Iterable[Row],
    *,
    left: Collection[str] = (),
    total: Row = (),
    css: str = "",
) -> str:
    """Return a table that scrolls sideways where it is too wide. Text cells are escaped here, Cells are not.

    Args:
        heads: One a column; a line break in one is kept.
        rows: As many cells each.
        left: Heads of the columns besides the first that hold text, not figures.
        total: A last row that sorting leaves in place.
        css: Classes: "sortable", "fit" (no wider than its content).
    """
    lefts = [h in left for h in heads]
    head = join(
        f'<th{_classes("left" if x else "")} scope="col">{esc(h)}</th>'
        for h, x in zip(heads, lefts, strict=True)
    )
    body = join(_tr(row, lefts) for row in rows)
    last = _tr(total, lefts, "total") if total else ""
    return f'<div class="scroll"><table{_classes(css)}><thead><tr>{head}</tr></thead><tbody>{body}{last}</tbody></table></div>'


def name_cell(name: str, rest: str = "") -> Cell:
    """Return the cell of a name, which may break after an underscore, followed by HTML."""
    return Cell(esc(name).replace("_", "_<wbr/>") + rest)


def pairs(rows: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    shown = [(k, Cell(f'<span class="mono">{esc(leaf(v))}</span>', classes="wrap")) for k, v in rows.items()]
    return table(("name", "value"), shown, left=("value",), css="fit")


def stat_row(items: Iterable[tuple[str, str, str]]) -> str:
    """Return a row of (label, figure, remark)."""
    shown = [_fact(*item) for item in items]
    columns = 3 if len(shown) % 4 and len(shown) % 3 == 0 else 4
    return f'<dl class="facts" style="--columns:{columns}">{join(shown)}</dl>'


def bar(share: float, css: str = "") -> str:
    """Return the inside of a track: a bar of this part of its width."""
    width = 100 * min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    return (
        f'<i class="{css}" style="width:{width:.1f}%"></i>' if css else f'<i style="width:{width:.1f}%"></i>'
    )


def figure(caption: str, svg: str, css: str = "") -> str:
    """Return a figure; `caption` and `svg` are HTML."""
    return f"<figure{_classes(css)}><figcaption>{caption}</figcaption>{svg}</figure>"


def missing(run: RunFiles, *names: str) -> str:
    """Return a notice for each of the files that has a problem, with the command that makes it; "" when all is well."""
    out = []
    for name in names:
        if problem := run.problems.get(name):
            config = " my.yaml" if MADE_BY[name].endswith("train") else f" {run.path}"
            out.append(
                f'<p class="missing"><b>{esc(name)}</b> is {esc(problem)}. <code>{esc(MADE_BY[name])}{esc(config)}</code> writes it.</p>'
            )
    return join(out)


def _tr(row: Row, lefts: Sequence[bool], css: str = "") -> str:
    cells = join(_td(cell, left=left) for cell, left in zip(row, lefts, strict=True))
    return f"<tr{_classes(css)}>{cells}</tr>"


def _td(cell: Cell | str, *, left: bool) -> str:
    if isinstance(cell, str):
        cell = Cell(esc(cell))
    # What is unknown sorts below everything.
    value = (
        "" if cell.value is None else f' data-v="{cell.value if math.isfinite(cell.value) else -1e12:.6g}"'
    )
    return f"<td{value}{_classes('left' if left else '', cell.classes)}>{cell.html}</td>"


def _classes(*names: str) -> str:
    return f' class="{text}"' if (text := " ".join(filter(None, names))) else ""


def _fact(label: str, value: str, remark: str) -> str:
    small = f"<small>{esc(remark)}</small>" if remark else ""
    return f"<div><dt>{esc(label)}</dt><dd>{esc(value)}{small}</dd></div>"
