"""CardFacts -> one page that needs nothing else, in the look of the run report."""

from __future__ import annotations

import re

from sft_dist.core.records import Example
from sft_dist.report.card.charts import columns
from sft_dist.report.card.facts import CardFacts, SourceFacts
from sft_dist.report.card.mixture import diversity, folded, mixture, share_cells
from sft_dist.report.card.wording import (
    DIVERSITY_NOTE,
    ID_FILES,
    LISTED,
    NOT_STATED,
    REASONS,
    RENDERED,
    SET_NAMES,
    ratio,
    share,
    skipped_lines,
    turns_line,
)
from sft_dist.report.formatting import clip, count, decimal, esc, format_bytes, join, percent, short
from sft_dist.report.html import Cell, bar, figure, name_cell, page, pairs, table
from sft_dist.report.html import stat_row as fact_row

SHOWN_DETAIL = 120  # characters of why a record was dropped
SHOWN_CHARS = 900  # of a turn in a sample
SHOWN_DATASETS = 12
SHOWN_FILES = 4
SHOWN_FINDINGS = 200
BESIDE = 6  # sources whose files are listed beside a figure; more are folded away
LICENCE_CHARS = 24  # longer ones are broken over lines

_ADDRESS = re.compile(r" \(https?://[^)]*\)")

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
        _section("mixture", mixture(facts)),
        _section("diversity", diversity(facts), esc(DIVERSITY_NOTE)),
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
        ("Answers", count(sum(k * n for k, n in facts.turns.items())), turns_line(facts.turns)),
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


def _sources(facts: CardFacts) -> str:
    rows = [
        (
            name_cell(s.name, f'<br/><span class="small">{esc(s.kind.replace("_", " "))}</span>'),
            Cell(esc(_licence(s)), classes="wrap" if len(_licence(s)) > LICENCE_CHARS else ""),
            Cell(count(s.read), s.read),
            Cell(count(s.amount.examples), s.amount.examples),
            Cell(short(s.amount.tokens), s.amount.tokens),
            *share_cells(s.amount, facts.total),
            *(Cell(share(part, whole), part / max(1, whole)) for part, whole in _drawn(s, facts)),
        )
        for s in facts.sources
    ]
    heads = (
        *("source", "licence", "records", "examples", "tokens", "share", "in an epoch", "passes"),
        *("of its tokens", "of its loss"),
    )
    origins = join(
        f"<dt>{esc(s.name)}</dt><dd>{_origin(s)}</dd>" for s in facts.sources if s.files or s.datasets
    )
    bins = range(
        min((*facts.answer_lengths, *facts.lengths), default=0),
        max((*facts.answer_lengths, *facts.lengths), default=0) + 1,
    )
    lengths = columns(
        {c: [v.get(k, 0) for k in bins] for c, v in (("a", facts.lengths), ("b", facts.answer_lengths))},
        [short(2**k) for k in bins],
        description="training examples by tokens, and by tokens with loss",
        width=1064 if len(facts.sources) > BESIDE else 520,
    )
    shown = figure(
        "<b>Length</b> <span>of training examples in tokens: from each label to twice it</span><br/>"
        '<span class="key">all tokens</span><span class="key b">tokens with loss</span>',
        lengths,
    )
    listing = f'<dl class="origins">{origins}</dl>' if origins else ""
    if len(facts.sources) > BESIDE:
        body = f'<div class="one">{shown}</div><details><summary>Datasets and files of each source</summary>{listing}</details>'
    else:
        body = f'<div class="two">{shown}<div>{listing}</div></div>'
    return _section(
        "sources", table(heads, rows, left=("licence",), css="sortable") + body + _licences(facts)
    )


def _licences(facts: CardFacts) -> str:
    """Return the examples of each licence, with the sources that bring them."""
    rows = [
        (
            Cell(esc(name or NOT_STATED), classes="wrap"),
            Cell(count(sum(sources.values())), sum(sources.values())),
            Cell(share(sum(sources.values()), facts.total.examples)),
            Cell(esc(", ".join(f"{s} {count(n)}" for s, n in sources.items())), classes="wrap"),
        )
        for name, sources in facts.licenses.items()
    ]
    shown = table(("licence", "examples", "share", "from"), rows, left=("from",), css="sortable fit")
    return f"<h3>Licences</h3>{folded(shown, len(rows), 'licences')}" if rows else ""


def _drawn(s: SourceFacts, facts: CardFacts) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return (of this source, of all) for the tokens of an epoch, and for those that carry loss."""
    a, t = s.amount, facts.total
    return (a.drawn_tokens, t.drawn_tokens), (a.drawn_target_tokens, t.drawn_target_tokens)


def _licence(s: SourceFacts) -> str:
    """Return the licence; where they are many, without the addresses that their names carry."""
    return _ADDRESS.sub("", s.license) if s.license else NOT_STATED


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
        size = format_bytes(sum(size for _, size in s.files))
        out.append(f"Files: {shown}{f' and {more} more' if more > 0 else ''}, {size}")
    return "<br/>".join(out)


def _left_out(facts: CardFacts) -> str:
    lines: list[tuple[str, str, list[int]]] = [
        ("evaluated instead", "", [s.evaluation for s in facts.sources]),
        ("prompts", "for construct to start from", [s.prompts for s in facts.sources]),
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
                f'<span style="display:inline-block;min-width:15rem">{esc(label.replace("_", " "))}<br/><span class="small">{esc(meaning)}</span>'
                f"{_first(facts, label)}</span>"
                if meaning
                else esc(label)
            ),
            Cell(f'<span class="share">{bar(sum(values) / max(1, highest))}</span>'),
            *((Cell(count(sum(values)), sum(values)),) if several else ()),
            *(Cell(count(v), v, "" if v else "small") for v in values),
        )
        for label, meaning, values in lines
        if sum(values)
    ]
    kept = [s.amount.examples for s in facts.sources]
    total = (
        Cell("kept"),
        Cell(""),
        *((Cell(count(sum(kept))),) if several else ()),
        *(Cell(count(v)) for v in kept),
    )
    heads = ("reason", "", *(("all",) if several else ()), *(s.name for s in facts.sources))
    notes = [f"Not read, by design: {skipped}." for skipped in skipped_lines(facts.sources)]
    notes += [f"Not drawn because an earlier source holds the same example: {count(facts.across_sources)}."]
    if lost := [f"{k.replace('_', ' ')} {count(n)}" for k, n in facts.not_trained.items() if n]:
        notes.append(f"Of the documents that one epoch draws: {', '.join(lost)}.")
    sets = [f"{count(k)} of {SET_NAMES[n]} ({count(t)} tasks)" for n, (t, k) in facts.evaluation.items()]
    notes.append(f"Evaluation examples: {', '.join(sets) or 'none'}.")
    body = (
        table(heads, rows, total=total, css="fit")
        + f'<div class="notes">{join(f"<p>{esc(n)}</p>" for n in notes)}</div>'
        + _held_out(facts)
    )
    return _section(
        "left-out",
        body + _id_files(facts) + _rendered(facts) + _contamination(facts),
        "Every record with its reason lies in rejects/ of the data folder.",
    )


def _first(facts: CardFacts, reason: str) -> str:
    """Return the first record that a reason dropped, in small."""
    found = facts.first_dropped.get(reason)
    if not found:
        return ""
    said = clip(f"{found['source']}: {found['detail']}", SHOWN_DETAIL)
    return (
        f'<br/><span class="small">first: <span class="mono">{esc(found["id"])}</span> of {esc(said)}</span>'
    )


def _held_out(facts: CardFacts) -> str:
    if not facts.held_out:
        return ""
    names = esc(", ".join(facts.held_out)).replace("_", "_<wbr/>")
    if len(facts.held_out) <= LISTED:
        return f"<p>Never trained on: {names}.</p>"
    return f'<details><summary>{count(len(facts.held_out))} tasks are never trained on</summary><p class="small">{names}</p></details>'


def _id_files(facts: CardFacts) -> str:
    """Return what was found in the files of scores and listed ids."""
    rows = [
        (
            name_cell(key, f'<br/><span class="small mono">{esc(f["file"])}</span>'),
            *(Cell(count(f[k]), f[k]) for k in ID_FILES),
        )
        for key, f in facts.id_files.items()
    ]
    shown = table(("file by id", *ID_FILES.values()), rows, css="fit")
    return f"<h3>Scores and lists by id</h3>{shown}" if rows else ""


def _rendered(facts: CardFacts) -> str:
    """Return what the renderer counted, source by source; kinds that never occurred are left out."""
    kinds = [k for k in RENDERED if any(s.rendered.get(k) for s in facts.sources)]
    if not kinds:
        return ""
    rows = [
        (name_cell(s.name), *(Cell(count(s.rendered.get(k, 0)), s.rendered.get(k, 0)) for k in kinds))
        for s in facts.sources
    ]
    sums = [sum(s.rendered.get(k, 0) for s in facts.sources) for k in kinds]
    meanings = join(f"<p><b>{esc(RENDERED[k][0])}</b>: {esc(RENDERED[k][1])}.</p>" for k in kinds)
    shown = table(
        ("source", *(RENDERED[k][0] for k in kinds)),
        rows,
        total=(Cell("all"), *(Cell(count(n)) for n in sums)),
        css="sortable fit",
    )
    return f'<h3>Rendering</h3>{shown}<div class="notes">{meanings}</div>'


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
    shown = folded(shown, len(rows), "of them, the most frequent first")
    return f"<h3>Contamination</h3><p>{note}</p>{shown}"


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
