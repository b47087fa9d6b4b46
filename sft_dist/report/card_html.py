"""CardFacts -> one page that needs nothing else, in the look of the run report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from sft_dist.core.records import Example
from sft_dist.report.card_facts import BINS, RARE, Balance, CardFacts, SourceFacts, TaskFacts
from sft_dist.report.card_figures import columns, rings
from sft_dist.report.card_words import DIVERSITY_NOTE, REASONS, SET_NAMES, ratio, share
from sft_dist.report.figures import Line, chart
from sft_dist.report.markup import Cell, bar, figure, name_cell, page, pairs, table
from sft_dist.report.markup import facts as fact_row
from sft_dist.report.text import clip, count, decimal, esc, join, memory, percent, short

SHOWN_CHARS = 900  # of a turn in a sample
SHOWN_DATASETS = 12
SHOWN_FILES = 4
SHOWN_FINDINGS = 200
LICENCE_CHARS = 24  # longer ones are broken over lines
OPEN_ROWS = 20  # longer tables are folded away

SECTIONS = (
    ("sources", "Sources"),
    ("left-out", "Left out"),
    ("mixture", "Tasks and mixture"),
    ("diversity", "Diversity"),
    ("samples", "Samples"),
    ("made", "How it was made"),
)


def html_page(facts: CardFacts) -> str:
    """Return the whole card."""
    sections = (
        _sources(facts),
        _left_out(facts),
        _mixture(facts),
        _diversity(facts),
        _samples(facts),
        _section(
            "made", pairs(facts.settings), "What of the config shapes the data; what is off is not listed."
        ),
    )
    footer = "<footer>Made by sft_dist; <code>sft-dist card</code> makes it anew. Every figure is in card.json.</footer>"
    return page(f"{facts.name} \u00b7 dataset card", _header(facts) + join(sections) + footer)


def _header(facts: CardFacts) -> str:
    t = facts.total
    links = join(f'<a href="#{anchor}">{title}</a>' for anchor, title in SECTIONS)
    removed = sum(facts.dropped.values()) + sum(s.unreadable for s in facts.sources)
    lead = (
        f"{count(t.examples)} training examples of {count(len(facts.tasks))} task{'s' * (len(facts.tasks) != 1)} from "
        f"{count(len(facts.sources))} source{'s' * (len(facts.sources) != 1)}. {count(sum(s.evaluation for s in facts.sources))} "
        f"records are kept for evaluation, {count(removed)} are left out, each with its reason."
    )
    figures = (
        ("Training examples", count(t.examples), f"of {count(sum(s.read for s in facts.sources))} records"),
        ("Tokens", short(t.tokens), f"{decimal(t.tokens / max(1, t.examples), 0)} an example"),
        ("Tokens with loss", short(t.target_tokens), f"{share(t.target_tokens, t.tokens)} of all"),
        (
            "Tasks",
            count(len(facts.tasks)),
            f"as even as {decimal(facts.before.effective_tasks, 1)} equal ones",
        ),
        ("Examples in an epoch", count(t.drawn_examples), f"{ratio(t.drawn_examples, t.examples)} passes"),
        ("Tokens in an epoch", short(t.drawn_tokens), f"{short(t.drawn_target_tokens)} with loss"),
        ("Distinct instructions", count(facts.diversity.instructions), ""),
        ("Contamination", count(len(facts.contaminated)), "evaluation examples found in training data"),
    )
    return (
        f'<header><p class="eyebrow">Dataset card</p><h1>{esc(facts.name)}</h1><p class="lead">{lead}</p>'
        f"<nav>{links}</nav>{fact_row(figures)}</header>"
    )


def _section(anchor: str, body: str, note: str = "") -> str:
    said = f'<p class="note">{note}</p>' if note else ""
    return f'<section><h2 id="{anchor}">{dict(SECTIONS)[anchor]}</h2>{said}{body}</section>'


def _tracks(before: float, after: float, highest: float) -> str:
    """Return two bars on top of one another: the part in the stores, and in an epoch."""
    return (
        '<span class="pair">'
        f'<span class="track">{bar(before / highest if highest else 0)}</span>'
        f'<span class="track">{bar(after / highest if highest else 0, "model")}</span></span>'
    )


def _sources(facts: CardFacts) -> str:
    total = facts.total
    rows = [
        (
            name_cell(s.name, f'<br/><span class="small">{esc(s.kind)}</span>'),
            Cell(
                esc(s.license or "not stated"), classes="wrap" if len(s.license or "") > LICENCE_CHARS else ""
            ),
            Cell(count(s.read), s.read),
            Cell(count(s.amount.examples), s.amount.examples),
            Cell(short(s.amount.tokens), s.amount.tokens),
            *_share_cells(s.amount.examples, s.amount.drawn_examples, total.examples, total.drawn_examples),
        )
        for s in facts.sources
    ]
    heads = ("source", "licence", "records", "examples", "tokens", "share", "in an epoch", "passes")
    origins = join(
        f"<dt>{esc(s.name)}</dt><dd>{_origin(s)}</dd>" for s in facts.sources if s.files or s.datasets
    )
    lengths = columns(
        {"a": list(facts.lengths.values())},
        [short(2**k) for k in facts.lengths],
        description="training examples by tokens",
    )
    shown = figure(
        "<b>Length</b> <span>of training examples in tokens: from each label to twice it</span>", lengths
    )
    listed = f'<div><dl class="origins">{origins}</dl></div>' if origins else ""
    return _section(
        "sources",
        table(heads, rows, left=("licence",), css="sortable") + f'<div class="two">{shown}{listed}</div>',
    )


def _origin(s: SourceFacts) -> str:
    out = []
    if s.datasets:
        shown = ", ".join(
            f'{esc(d)} <span class="small">{count(n)}</span>'
            for d, n in list(s.datasets.items())[:SHOWN_DATASETS]
        )
        more = len(s.datasets) - SHOWN_DATASETS
        out.append(f"Datasets: {shown}{f' and {more} more' if more > 0 else ''}")
    if s.files:
        shown = ", ".join(f"<code>{esc(name)}</code>" for name, _ in s.files[:SHOWN_FILES])
        more = len(s.files) - SHOWN_FILES
        size = memory(sum(size for _, size in s.files))
        out.append(f"Files: {shown}{f' and {more} more' if more > 0 else ''}, {size}")
    return "<br/>".join(out)


def _left_out(facts: CardFacts) -> str:
    lines: list[tuple[str, str, list[int]]] = [
        ("evaluated instead", "", [s.evaluation for s in facts.sources]),
        ("unreadable", "cannot be read as an example", [s.unreadable for s in facts.sources]),
        *(
            (reason, REASONS.get(reason, ""), [s.dropped.get(reason, 0) for s in facts.sources])
            for reason in facts.dropped
        ),
    ]
    several = len(facts.sources) > 1
    highest = max((sum(values) for _, _, values in lines), default=0)
    rows = [
        (
            Cell(
                f'{esc(label.replace("_", " "))}<br/><span class="small">{esc(meaning)}</span>'
                if meaning
                else esc(label)
            ),
            *(Cell(count(v), v) for v in values),
            *((Cell(count(sum(values)), sum(values)),) if several else ()),
            Cell(f'<span class="share">{bar(sum(values) / max(1, highest))}</span>', sum(values)),
        )
        for label, meaning, values in lines
        if sum(values)
    ]
    kept = [s.amount.examples for s in facts.sources]
    total = (
        Cell("kept"),
        *(Cell(count(v)) for v in kept),
        *((Cell(count(sum(kept))),) if several else ()),
        Cell(""),
    )
    heads = ("", *(s.name for s in facts.sources), *(("all",) if several else ()), "")
    notes = [f"Not drawn because an earlier source holds the same example: {count(facts.across_sources)}."]
    if lost := [f"{k.replace('_', ' ')} {count(n)}" for k, n in facts.not_trained.items() if n]:
        notes.append(f"Of the documents that one epoch draws: {', '.join(lost)}.")
    sets = [f"{count(k)} of {SET_NAMES[n]} ({count(t)} tasks)" for n, (t, k) in facts.evaluation.items()]
    notes.append(f"Evaluation examples: {', '.join(sets) or 'none'}.")
    if facts.held_out:
        notes.append(f"Never trained on: {', '.join(facts.held_out)}.")
    body = (
        table(heads, rows, total=total, css="fit")
        + f'<div class="notes">{join(f"<p>{esc(n)}</p>" for n in notes)}</div>'
    )
    return _section(
        "left-out",
        body + _contamination(facts),
        "Every record with its reason lies in rejects/ of the data folder.",
    )


def _contamination(facts: CardFacts) -> str:
    rows = [
        (
            name_cell(c["task"], f'<br/><span class="small mono">{esc(c["id"][:12])}</span>'),
            c["source"],
            Cell(count(c["examples"]), c["examples"]),
            Cell(f"{percent(c['coverage'])} %", c["coverage"]),
            c["how"].replace("_", " "),
            Cell(f"<q>{esc(c['span'])}</q>", classes="wrap"),
        )
        for c in sorted(facts.contaminated, key=lambda c: -int(c["examples"]))[:SHOWN_FINDINGS]
    ]
    if not rows:
        return "<h3>Contamination</h3><p>No evaluation example was found in training data, or data.filters.leakage is off.</p>"
    note = f"{count(len(facts.contaminated))} evaluation examples were found in training data. The training examples are dropped."
    heads = ("evaluation example", "found in", "times", "coverage", "how", "words that both hold")
    shown = table(heads, rows, left=("found in", "how", heads[-1]), css="sortable")
    shown = _folded(shown, len(rows), "of them, the most frequent first")
    return f"<h3>Contamination</h3><p>{note}</p>{shown}"


def _share_cells(before: int, after: int, all_before: int, all_after: int) -> tuple[Cell, Cell, Cell]:
    first, second = before / max(1, all_before), after / max(1, all_after)
    passes = after / max(1, before)
    return (
        Cell(f"{percent(first)} %", first),
        Cell(f"{percent(second)} %", second),
        Cell(f"{passes:.2f}", passes),
    )


def _mixture(facts: CardFacts) -> str:
    cards = join(
        _balance_card(title, b, len(facts.tasks))
        for title, b in (("In the stores", facts.before), ("In one epoch", facts.after))
    )
    parts = [f'<div class="results">{cards}</div>']
    if len(facts.tasks) > 2:
        parts.append(f'<div class="one">{_task_shares(facts.tasks)}</div>')
    if categories := facts.categories():
        rows = [
            (
                Cell(esc(name)),
                Cell(count(tasks), tasks),
                Cell(count(a.examples), a.examples),
                Cell(short(a.tokens), a.tokens),
                *_share_cells(a.examples, a.drawn_examples, facts.total.examples, facts.total.drawn_examples),
            )
            for name, (tasks, a) in categories.items()
        ]
        heads = ("category", "tasks", "examples", "tokens", "share", "in an epoch", "passes")
        parts.append(
            f"<h3>Categories</h3>{_folded(table(heads, rows, css='sortable'), len(rows), 'categories')}"
        )
    parts.append(f"<h3>Tasks</h3>{_tasks(facts)}")
    return _section("mixture", join(parts))


def _balance_card(title: str, b: Balance, tasks: int) -> str:
    rare = ", ".join(b.rare[:8]) + (f" and {len(b.rare) - 8} more" if len(b.rare) > 8 else "")
    listed = f'<p class="small">{esc(rare)}</p>' if rare else ""
    return (
        f'<div class="card"><h3>{title}</h3><p class="big">{decimal(b.effective_tasks, 1)}</p>'
        f'<p class="under">equal tasks would be as diverse as these {count(tasks)}</p>'
        f'<p style="margin-top:14px">The largest has {percent(b.largest)} %. {len(b.rare)} are under-represented '
        f"(less than {percent(RARE, 0)} % of an equal share).</p>{listed}</div>"
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
    highest = max((max(t.amount.examples / max(1, facts.total.examples), t.amount.drawn_examples / max(1, facts.total.drawn_examples)) for t in facts.tasks), default=0)  # fmt: skip
    rows = []
    for t in facts.tasks:
        a = t.amount
        cells = _share_cells(a.examples, a.drawn_examples, facts.total.examples, facts.total.drawn_examples)
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
    return _folded(table(heads, rows, left=("source",), css="sortable"), len(rows), "tasks")


def _folded(shown: str, rows: int, what: str) -> str:
    return shown if rows <= OPEN_ROWS else f"<details><summary>{rows} {what}</summary>{shown}</details>"


def _diversity(facts: CardFacts) -> str:
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
    listed = table(("root verb", "noun", "instructions"), nouns, left=("noun",), css="sortable fit")
    left = figure(
        f"<b>Root verbs and their nouns</b> <span>the most frequent in {count(d.with_verb)} of {count(d.instructions)} distinct instructions</span>",
        drawn or "<p>No instruction begins with a known imperative.</p>",
    )
    body = (
        f'<div class="two">{left}{histogram}</div><details><summary>All verbs and nouns</summary>{listed}</details>'
        f"<h3>Distinct n-grams</h3>{spread}"
    )
    return _section("diversity", body, esc(DIVERSITY_NOTE))


def _samples(facts: CardFacts) -> str:
    parts = []
    for source, examples in facts.samples.items():
        cards = join(_sample(e) for e in examples)
        parts.append(f'<h3>{esc(source)}</h3><div class="samples">{cards}</div>')
    return _section("samples", join(parts), "Drawn by seed.")


def _sample(e: Example) -> str:
    turns = join(f"<dt>{m.role}</dt><dd>{esc(clip(m.content, SHOWN_CHARS))}</dd>" for m in e.messages)
    return (
        f'<article class="sample"><header><span>{esc(e.task)}</span><span class="mono">{esc(e.id[:12])}</span></header>'
        f"<dl>{turns}</dl></article>"
    )
