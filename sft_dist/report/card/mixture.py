"""The sections of the card's page that are about its tasks and its texts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sft_dist.report.card.charts import columns, rings
from sft_dist.report.card.facts import BINS, RARE, Amount, Balance, CardFacts, Diversity, TaskFacts
from sft_dist.report.card.wording import GROUP_NOTES, GROUPS, TOO_SHORT, listed, share, warning
from sft_dist.report.charts import Line, chart
from sft_dist.report.formatting import count, decimal, esc, join, percent, short
from sft_dist.report.html import Cell, bar, figure, name_cell, table

OPEN_ROWS = 20  # longer tables are folded away


def mixture(facts: CardFacts) -> str:
    """Return the body of the section on tasks and mixture: warnings, balance, groups of tasks, tasks."""
    cards = join(
        _balance_card(title, b, len(facts.tasks))
        for title, b in (("In the stores", facts.before), ("In one epoch", facts.after))
    )
    parts = [_warnings(facts), f'<div class="results">{cards}</div>']
    if len(facts.tasks) > 2:
        parts.append(f'<div class="one">{_task_shares(facts.tasks)}</div>')
    for kind, groups in facts.groups().items():
        if groups:
            note = f'<p class="note">{GROUP_NOTES[kind]}</p>' if kind in GROUP_NOTES else ""
            parts.append(f"<h3>{kind.capitalize()}</h3>{note}{_groups(facts, kind, groups)}")
    parts.append(f"<h3>Tasks</h3>{_tasks(facts)}")
    return join(parts)


def _warnings(facts: CardFacts) -> str:
    return join(
        f'<p class="missing"><b>{esc(warning(kind, facts.warnings))}</b> {esc(listed(names))}.</p>'
        for kind, names in facts.warnings.items()
    )


def _groups(facts: CardFacts, kind: str, groups: Mapping[str, tuple[int, Amount]]) -> str:
    rows = [
        (
            Cell(esc(name)),
            Cell(count(tasks), tasks),
            Cell(count(a.examples), a.examples),
            Cell(short(a.tokens), a.tokens),
            *share_cells(a, facts.total),
        )
        for name, (tasks, a) in groups.items()
    ]
    heads = (GROUPS[kind], "tasks", "examples", "tokens", "share", "in an epoch", "passes")
    return folded(table(heads, rows, css="sortable"), len(rows), kind)


def _balance_card(title: str, b: Balance, tasks: int) -> str:
    rare = f'<p class="small">{esc(listed(b.rare))}</p>' if b.rare else ""
    return (
        f'<div class="card"><h3>{title}</h3><p class="big">{decimal(b.effective_tasks, 1)}</p>'
        f'<p class="under">equal tasks would be as diverse as these {count(tasks)}</p>'
        f'<p style="margin-top:14px">The largest has {percent(b.largest)} %. {len(b.rare)} are under-represented '
        f"(less than {percent(RARE, 0)} % of an equal share).</p>{rare}</div>"
    )


def _task_shares(tasks: Sequence[TaskFacts]) -> str:
    x = np.arange(len(tasks) + 1, dtype=np.float64)

    def line(values: Iterable[int], colour: str) -> Line:
        y = np.sort(np.array(list(values), np.float64))[::-1]
        return Line(x=x, y=np.concatenate([[0.0], y.cumsum() / max(1.0, float(y.sum()))]), colour=colour)

    svg = chart(
        [line((t.amount.examples for t in tasks), "c"), line((t.amount.drawn_examples for t in tasks), "a")],
        name="shares",
        description="share of the largest tasks together, in the stores and in one epoch",
        width=1064,
        height=220,
        low=0,
        high=1,
        x_label="the largest tasks",
        y_format="percent",
    )
    caption = '<b>Share of the largest tasks together</b> <span>the straighter, the more even</span> <span class="key muted">in the stores</span><span class="key">in one epoch</span>'
    return figure(caption, svg)


def _tasks(facts: CardFacts) -> str:
    shown = [(t, share_cells(t.amount, facts.total)) for t in facts.tasks]
    highest = max((cell.value or 0 for _, (*shares, _) in shown for cell in shares), default=0)
    rows = []
    for t, cells in shown:
        a = t.amount
        tag = ' <span class="tag">rare</span>' if t.name in facts.after.rare else ""
        bars = Cell(_tracks(cells[0].value or 0, cells[1].value or 0, highest), cells[1].value)
        tokens = (Cell(short(a.tokens), a.tokens), Cell(short(a.target_tokens), a.target_tokens))
        rows.append(
            (
                name_cell(t.name, tag),
                ", ".join(t.sources),
                Cell(count(a.examples), a.examples),
                *tokens,
                *cells,
                bars,
            )
        )
    heads = ("task", "source", "examples", "tokens", "with loss", "share", "in an epoch", "passes", "")
    return folded(table(heads, rows, left=("source",), css="sortable"), len(rows), "tasks")


def folded(shown: str, rows: int, what: str) -> str:
    """Return a table, folded away when it is long."""
    return shown if rows <= OPEN_ROWS else f"<details><summary>{rows} {what}</summary>{shown}</details>"


def share_cells(part: Amount, whole: Amount) -> tuple[Cell, Cell, Cell]:
    """Return the cells of the share in the stores, the share in an epoch, and the passes over it."""
    before = part.examples / max(1, whole.examples)
    after = part.drawn_examples / max(1, whole.drawn_examples)
    passes = part.drawn_examples / max(1, part.examples)
    return (
        Cell(f"{percent(before)} %", before),
        Cell(f"{percent(after)} %", after),
        Cell(f"{passes:.2f}", passes),
    )


def _tracks(before: float, after: float, highest: float) -> str:
    """Return two bars on top of one another: the part in the stores, and in an epoch."""
    return (
        '<span class="pair">'
        f'<span class="track">{bar(before / highest if highest else 0)}</span>'
        f'<span class="track">{bar(after / highest if highest else 0, "model")}</span></span>'
    )


def _languages(d: Diversity) -> str:
    """Return how many of the sampled prompts and answers are in each language."""
    codes = sorted(
        {c for found in d.languages.values() for c in found},
        key=lambda c: (-sum(found.get(c, 0) for found in d.languages.values()), c),
    )
    rows: list[list[Cell | str]] = [
        [c or TOO_SHORT, *(Cell(count(found.get(c, 0)), found.get(c, 0)) for found in d.languages.values())]
        for c in codes
    ]
    return table(("detected (py3langid), of a sample", *d.languages), rows, css="sortable fit")


def diversity(facts: CardFacts) -> str:
    """Return the body of the section on how different the texts are."""
    d = facts.diversity
    labels = [f"{k / BINS:.2f}" for k in range(BINS)]
    colours = {"instructions": "a", "prompts": "b"}
    series = {colours[n]: v for n, v in d.nearest.items() if sum(v)}
    means = ", ".join(f"{n} {decimal(v)}" for n, v in d.nearest_mean.items() if math.isfinite(v))
    keys = '<span class="key">instructions</span><span class="key b">prompts</span>'
    histogram = figure(
        f"<b>Likeness to the nearest other text</b> <span>ROUGE-L; mean: {esc(means)}</span><br/>{keys}",
        columns(series, labels, description="histogram of nearest-neighbour ROUGE-L", every=4, height=230),
    )
    grams: list[list[Cell | str]] = [
        [
            name,
            *(
                Cell(f"{share(k, n)}<br/><span class='small'>{count(k)} of {count(n)}</span>", k / max(1, n))
                for k, n in found
            ),
        ]
        for name, found in d.distinct.items()
    ]
    spread = table(
        (f"of {count(d.sampled)} examples", "distinct words", "pairs", "triples"), grams, css="fit"
    )
    drawn = rings(d.verbs)
    nouns = [(v, n or "\u2013", Cell(count(k), k)) for v, n, k in d.verbs[:400]]
    all_verbs = table(("root verb", "noun", "instructions"), nouns, left=("noun",), css="sortable fit")
    left = figure(
        f"<b>Root verbs and their nouns</b> <span>the most frequent in {count(d.with_verb)} of {count(d.instructions)} distinct instructions</span>",
        drawn or "<p>No instruction begins with a known imperative.</p>",
    )
    return (
        f'<div class="two">{left}{histogram}</div><details><summary>All verbs and nouns</summary>{all_verbs}</details>'
        f'<div class="two"><div><h3>Distinct n-grams</h3>{spread}</div><div><h3>Languages</h3>{_languages(d)}</div></div>'
    )
