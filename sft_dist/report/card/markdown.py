"""CardFacts -> README.md, readable as it is and where dataset hubs show it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sft_dist.core.records import Example
from sft_dist.report.card.facts import BINS, RARE, Amount, CardFacts, SourceFacts
from sft_dist.report.card.wording import (
    DIVERSITY_NOTE,
    GROUP_NOTES,
    GROUPS,
    ID_FILES,
    NOT_STATED,
    REASONS,
    RENDERED,
    SET_NAMES,
    TOO_SHORT,
    listed,
    ratio,
    share,
    skipped_lines,
    turns_line,
    warning,
)
from sft_dist.report.formatting import (
    clip,
    count,
    decimal,
    leaf,
    markdown_cell,
    markdown_table,
    markdown_text,
    percent,
)

SHOWN_TASKS = 200
SHOWN_VERBS = 20
SHOWN_FINDINGS = 50
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)


def markdown(facts: CardFacts) -> str:
    """Return the whole card."""
    blocks = [
        _front(facts),
        f"# {facts.name}",
        _summary(facts),
        "## Sources",
        *_sources(facts),
        "## What was left out",
        *_left_out(facts),
        "## Tasks and mixture",
        *_mixture(facts),
        "## Diversity",
        *_diversity(facts),
        "## Samples",
        *_samples(facts),
        "## How it was made",
        markdown_table(
            ("setting", "value"), [(f"`{k}`", f"`{leaf(v)}`") for k, v in facts.settings.items()], text=2
        ),
    ]
    return "\n\n".join(b for b in blocks if b) + "\n"


def _front(facts: CardFacts) -> str:
    size = next((name for limit, name in SIZES if facts.total.examples < limit), "n>10M")
    lines = ["---", f"pretty_name: {json.dumps(facts.name)}", "task_categories:", "- text-generation"]
    return "\n".join([*lines, "tags:", "- instruction-tuning", "size_categories:", f"- {size}", "---"])


def _summary(facts: CardFacts) -> str:
    t = facts.total
    return (
        f"{count(t.examples)} training examples of {count(len(facts.tasks))} tasks from {count(len(facts.sources))} sources: "
        f"{count(t.tokens)} tokens, of which {count(t.target_tokens)} ({share(t.target_tokens, t.tokens)}) carry loss. "
        f"Answers: {turns_line(facts.turns)}. "
        f"One epoch of the mixture trains on {count(t.drawn_examples)} examples, {count(t.drawn_tokens)} tokens."
    )


def _sources(facts: CardFacts) -> Iterable[str]:
    rows = [
        (
            f"**{markdown_cell(s.name)}**",
            s.kind,
            markdown_cell(s.license or NOT_STATED),
            count(s.read),
            count(s.amount.examples),
            count(s.amount.tokens),
            *_shares(s.amount, facts.total),
            ratio(s.amount.drawn_examples, s.amount.examples),
            share(s.amount.drawn_tokens, facts.total.drawn_tokens),
            share(s.amount.drawn_target_tokens, facts.total.drawn_target_tokens),
        )
        for s in facts.sources
    ]
    heads = (
        "source",
        "kind",
        "licence",
        "records",
        "examples",
        "tokens",
        "share",
        "share in an epoch",
        "passes",
        "of its tokens",
        "of its loss",
    )
    yield markdown_table(heads, rows, text=3)
    licences = [
        (
            markdown_cell(name or NOT_STATED),
            count(sum(sources.values())),
            share(sum(sources.values()), facts.total.examples),
            markdown_cell(", ".join(f"{s} {count(n)}" for s, n in sources.items())),
        )
        for name, sources in facts.licenses.items()
    ]
    yield markdown_table(("licence", "examples", "share", "from"), licences)
    for s in facts.sources:
        if s.files or s.datasets:
            yield f"**{markdown_cell(s.name)}**: {_origin(s)}"


def _origin(s: SourceFacts) -> str:
    out = []
    if s.datasets:
        shown = ", ".join(f"{markdown_cell(d)} ({count(n)})" for d, n in list(s.datasets.items())[:20])
        more = len(s.datasets) - 20
        out.append(f"from {shown}{f' and {more} more' if more > 0 else ''}")
    if s.files:
        names = ", ".join(f"`{name}`" for name, _ in s.files[:5])
        more = len(s.files) - 5
        total = sum(size for _, size in s.files)
        out.append(f"read from {names}{f' and {more} more files' if more > 0 else ''}, {count(total)} bytes")
    return "; ".join(out) + "."


def _left_out(facts: CardFacts) -> Iterable[str]:
    names = [s.name for s in facts.sources]
    columns = [*names, "all"] if len(names) > 1 else names
    rows: list[Sequence[str]] = []

    def row(label: str, values: Sequence[int]) -> None:
        shown = [*values, sum(values)] if len(names) > 1 else values
        rows.append((label, *map(count, shown)))

    row("records", [s.read for s in facts.sources])
    row("evaluated instead", [s.evaluation for s in facts.sources])
    if any(s.prompts for s in facts.sources):
        row("prompts, for construct to start from", [s.prompts for s in facts.sources])
    row("unreadable", [s.unreadable for s in facts.sources])
    for reason in facts.dropped:
        row(
            f"`{reason}`: {REASONS.get(reason, '')}".rstrip(": "),
            [s.dropped.get(reason, 0) for s in facts.sources],
        )
    row("**kept**", [s.amount.examples for s in facts.sources])
    yield markdown_table(("", *columns), rows)
    if facts.first_dropped:
        dropped = [
            (
                f"`{reason}`",
                markdown_cell(f["source"]),
                f"`{leaf(f['id'])}`",
                markdown_cell(clip(f["detail"], 120)),
            )
            for reason, f in facts.first_dropped.items()
        ]
        yield markdown_table(("reason", "first in", "record", "why"), dropped, text=4)
    if facts.id_files:
        files = [
            (f"`{key}`", f"`{leaf(f['file'])}`", *(count(f[k]) for k in ID_FILES))
            for key, f in facts.id_files.items()
        ]
        yield markdown_table(("file by id", "path", *ID_FILES.values()), files, text=2)
    if kinds := [k for k in RENDERED if any(s.rendered.get(k) for s in facts.sources)]:
        rendered = [
            (markdown_cell(s.name), *(count(s.rendered.get(k, 0)) for k in kinds)) for s in facts.sources
        ]
        yield markdown_table(("source", *(RENDERED[k][0] for k in kinds)), rendered)
        yield "; ".join(f"{RENDERED[k][0]}: {RENDERED[k][1]}" for k in kinds) + "."
    yield from (f"Not read, by design: {skipped}." for skipped in skipped_lines(facts.sources))
    yield f"Not drawn because an earlier source holds the same example: {count(facts.across_sources)}."
    if any(facts.not_trained.values()):
        lost = ", ".join(f"{k} {count(n)}" for k, n in facts.not_trained.items() if n)
        yield f"Of the documents that one epoch draws: {lost}."
    sets = ", ".join(
        f"{SET_NAMES[n]}: {count(k)} of {count(t)} tasks" for n, (t, k) in facts.evaluation.items()
    )
    yield f"Evaluation examples: {sets or 'none'}. Tasks that are never trained on: {markdown_cell(listed(facts.held_out)) or 'none'}."
    yield f"### Contamination\n\n{len(facts.contaminated)} evaluation examples were found in training data; the training examples are dropped."
    if facts.contaminated:
        findings = [
            (
                f"`{c['id'][:8]}`",
                markdown_cell(c["task"]),
                markdown_cell(c["source"]),
                count(c["examples"]),
                percent(c["coverage"]) + " %",
                c["how"].replace("_", " "),
                markdown_cell(c["span"]),
            )
            for c in facts.contaminated[:SHOWN_FINDINGS]
        ]
        yield markdown_table(
            ("example", "task", "found in", "times", "coverage", "how", "words"), findings, text=3
        )


def _mixture(facts: CardFacts) -> Iterable[str]:
    for kind, names in facts.warnings.items():
        yield f"> **{warning(kind, facts.warnings)}** {markdown_cell(listed(names))}."
    for title, b in (("In the stores", facts.before), ("In one epoch", facts.after)):
        rare = markdown_cell(listed(b.rare))
        yield (
            f"{title}: as even as {decimal(b.effective_tasks, 1)} equal tasks; the largest has {percent(b.largest)} %; "
            f"{len(b.rare)} tasks have less than {percent(RARE, 0)} % of an equal share{f' ({rare})' if rare else ''}."
        )
    for kind, groups in facts.groups().items():
        grouped = [
            (markdown_cell(n), count(k), count(a.examples), count(a.tokens), *_shares(a, facts.total))
            for n, (k, a) in groups.items()
        ]
        yield markdown_table(
            (GROUPS[kind], "tasks", "examples", "tokens", "share", "share in an epoch"), grouped
        )
        yield GROUP_NOTES.get(kind, "") if groups else ""
    rows = [
        (
            markdown_cell(t.name),
            markdown_cell(", ".join(t.sources)),
            count(t.amount.examples),
            count(t.amount.tokens),
            count(t.amount.target_tokens),
            *_shares(t.amount, facts.total),
            ratio(t.amount.drawn_examples, t.amount.examples),
        )
        for t in facts.tasks[:SHOWN_TASKS]
    ]
    heads = ("task", "source", "examples", "tokens", "with loss", "share", "share in an epoch", "passes")
    yield markdown_table(heads, rows, text=2)
    if len(facts.tasks) > SHOWN_TASKS:
        yield f"The other {len(facts.tasks) - SHOWN_TASKS} tasks are in card.json."


def _shares(part: Amount, whole: Amount) -> tuple[str, str]:
    return share(part.examples, whole.examples), share(part.drawn_examples, whole.drawn_examples)


def _diversity(facts: CardFacts) -> Iterable[str]:
    d = facts.diversity
    yield (
        f"{count(d.instructions)} distinct instructions, {share(d.with_verb, d.instructions)} of them with a known root verb. {DIVERSITY_NOTE}"
    )
    verbs = [(v, n or "\u2013", count(k)) for v, n, k in d.verbs[:SHOWN_VERBS]]
    yield markdown_table(("root verb", "noun", "instructions"), verbs, text=2)
    rows = [
        (name, *(f"{share(different, everything)} of {count(everything)}" for different, everything in grams))
        for name, grams in d.distinct.items()
    ]
    yield markdown_table(
        (f"of {count(d.sampled)} examples", "distinct words", "distinct pairs", "distinct triples"), rows
    )
    codes = sorted({c for found in d.languages.values() for c in found})
    spoken = [(c or TOO_SHORT, *(count(f.get(c, 0)) for f in d.languages.values())) for c in codes]
    yield markdown_table(("detected language (py3langid), of a sample", *d.languages), spoken)
    heads = ("ROUGE-L with the nearest other", *d.nearest)
    bins = [
        (f"{k / BINS:.2f} to {(k + 1) / BINS:.2f}", *(count(v[k]) for v in d.nearest.values()))
        for k in range(BINS)
        if any(v[k] for v in d.nearest.values())
    ]
    means = [("mean", *(decimal(d.nearest_mean[n]) for n in d.nearest))]
    yield markdown_table(heads, [*bins, *means])


def _samples(facts: CardFacts) -> Iterable[str]:
    for source, examples in facts.samples.items():
        yield f"### {source}"
        for e in examples:
            yield f"`{e.id}` ({markdown_cell(e.task)})\n\n" + "\n\n".join(_turns(e))


def _turns(e: Example) -> Iterable[str]:
    for m in e.messages:
        quoted = "\n".join(
            f"> {line}".rstrip() for line in markdown_text(clip(m.content, 600)).splitlines() or [""]
        )
        yield f"> **{m.role}**\n>\n{quoted}"
