"""What a config would do, before anything is kept: counts in one line, coloured turns."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

from rich.console import Console

from sft_dist.cluster.local_ranks import ranks_of
from sft_dist.config import RunConfig
from sft_dist.mix import Corpus
from sft_dist.mix.extrapolate import ExtrapolatedStore
from sft_dist.model.config_json import text_config
from sft_dist.model.support import rows_for
from sft_dist.pipelines.before_ranks import machine_warnings, refuse_mistakes
from sft_dist.pipelines.data.lost_answers import lost_answers
from sft_dist.pipelines.data.prepare import Prepared, prepare
from sft_dist.pipelines.train.planning import (
    Summary,
    cost_model,
    make_planner,
    open_corpus,
    summarise,
)
from sft_dist.selection.files import stored_sources
from sft_dist.selection.tokenize import SelectedExamples
from sft_dist.shards import Store
from sft_dist.sources import open_source
from sft_dist.sources.base import FileSource
from sft_dist.sources.files.data_files import RawRecord
from sft_dist.sources.marks import unread_marks

MARKED_KINDS = ("alpaca", "chat", "hub")  # sources whose records may mark what carries loss
_ONE_STEP = "an epoch is one step, so every update sees all of the data; use a smaller train.tokens_per_step, or more data"
MARK_RECORDS = 20_000  # of each source, that are looked through for marks that are not read


def check(config: RunConfig, *, limit: int) -> Summary:
    """Return what training would consist of: exact where the stores are built, else from the first examples.

    Args:
        config: The run's config.
        limit: Training examples of each source that are rendered when the stores are not built.

    Raises:
        UserError: For anything that preparation or planning would refuse.
    """
    refuse_mistakes(config)
    marks = (*machine_warnings(config), *unread_mark_warnings(config))
    built = stored_sources(Path(config.data.dir), config.data.sources)
    if built and all((Path(config.data.dir) / "stores" / n / "manifest.json").is_file() for n in built):
        prepared = prepare(config, build=False)
        return _summary(config, prepared, open_corpus(prepared.stores), marks)
    with tempfile.TemporaryDirectory(prefix="sft-check-") as scratch:
        prepared = prepare(config, limit=limit, folder=Path(scratch))
        selected = prepared.selected.scaled({n: s.share for n, s in prepared.sources.items()})
        prepared = replace(prepared, selected=selected)
        sizes = {n: selected.sources[n].kept for n in prepared.stores}
        opened = {n: Store.open(path) for n, path in prepared.stores.items()}
        stores = {n: ExtrapolatedStore.of(s, _documents(s, sizes[n])) for n, s in opened.items()}
        read = _what_was_read(prepared)
        exact = not read and max(sizes.values(), default=0) <= limit
        if not exact:  # the examples that stand for others are no duplicates
            mix = config.mix.model_copy(update={"drop_duplicates": False})
            config = config.model_copy(update={"mix": mix})
        return _summary(config, prepared, Corpus(stores), (*marks, *read), exact=exact)  # type: ignore[arg-type]


def _what_was_read(prepared: Prepared) -> tuple[str, ...]:
    """Say of which sources a sample was read, and what that means."""
    shares = {n: s.share for n, s in prepared.sources.items() if s.share < 1}
    if not shares:
        return ()
    names = ", ".join(f"{name} (about {100 * share:.2g} %)" for name, share in shares.items())
    return (
        (
            f"a sample was read of {names}: numbers are scaled up from it, duplicates and copies of evaluated examples are found inside it alone, "
            "and tasks that it lacks are not named; `sft-dist prepare` decides by every record"
        ),
    )


def _documents(store: Store, examples: int) -> int:
    """Return how many documents the examples of a source make (`render.expand_turns`: more than one, some of them)."""
    expanded = store.info.get("rendered", {}).get("expanded", 0)
    return round(examples * len(store) / max(1, len(store) - expanded)) if expanded else examples


def unread_mark_warnings(config: RunConfig) -> tuple[str, ...]:
    """Say, for each source, which keys look like marks of what carries loss and are not read, with counts."""
    found = []
    for name, source_config in config.data.sources.items():
        if source_config.kind not in MARKED_KINDS:
            continue  # the columns of annotated data are no marks
        source = open_source(name, source_config)
        assert isinstance(source, FileSource)
        counts: Counter[str] = Counter()
        records = [r for r in islice(source.records(), MARK_RECORDS) if isinstance(r, RawRecord)]
        for record in records:
            counts.update(set(unread_marks(record.fields)))
        if counts:
            keys = ", ".join(f"{key} ({n:,})" for key, n in sorted(counts.items()))
            found.append(
                f"data.sources.{name}: of the first {len(records):,} records some have keys that look like marks of what carries loss and "
                f"are not read: {keys}; where they are marks, write them as docs/formats.md shows"
            )
    return tuple(found)


def preview(config: RunConfig, console: Console, *, per_source: int, html: Path | None) -> None:
    """Show training examples of each source, evenly spread over it, and the first packed rows."""
    from sft_dist.core.files import write_text
    from sft_dist.render.preview import preview_html, preview_terminal

    with tempfile.TemporaryDirectory(prefix="sft-preview-") as scratch:
        prepared = prepare(config, limit=max(per_source, 200), folder=Path(scratch))
        examples = []
        for name, source in prepared.sources.items():
            selection = prepared.selected.sources[name]
            spread = SelectedExamples(source, selection, max(1, selection.read), per_source)
            examples += [e for _, members in spread.read({0}) for e in members]
        preview_terminal(prepared.renderer, examples, console)
        if html is not None:
            write_text(html, preview_html(prepared.renderer, examples, _packed_rows(config, prepared)))
            console.print(f"page: {html}")


def _packed_rows(config: RunConfig, prepared: Prepared) -> list[list[tuple[str, int, int, int]]]:
    """Return the first global batch as rows of (label, start, length, supervised tokens)."""
    corpus = open_corpus(prepared.stores)
    planner = make_planner(
        config, corpus, world_size=1, cost=cost_model(config, prepared.renderer.tokenizer.vocab_size)
    )
    rows = []
    for row in planner.epoch(0).rows(0)[:16]:
        slices = corpus.slices(
            row.docs, config.pack.seq_len, keep_end=config.pack.too_long == "truncate_prompt"
        )
        starts = row.lengths.cumsum() - row.lengths
        rows.append(
            [
                (corpus.task_names[int(corpus.task_of[doc])], int(at), int(length), int(targets))
                for doc, at, length, targets in zip(
                    row.docs, starts, row.lengths, slices.target_tokens, strict=True
                )
            ]
        )
    return rows


def _summary(
    config: RunConfig, prepared: Prepared, corpus: Corpus, marks: tuple[str, ...], *, exact: bool = True
) -> Summary:
    tokens = prepared.renderer.tokenizer.vocab_size
    if rows := text_config(config.model).get("vocab_size"):
        rows_for(rows, tokens, config.model.vocab_multiple, str(config.model.path))
    planner = make_planner(config, corpus, world_size=1, cost=cost_model(config, tokens))
    rendered = {
        name: Counter(store.info["dropped"])
        for name, store in zip(corpus.source_names, corpus.stores, strict=True)
    }
    ranks = ranks_of(config.launch.nproc) * config.launch.nodes
    summary = summarise(config, planner, prepared.selected, rendered, exact=exact, ranks=ranks)
    if prepared.lineage:
        marks = (*marks, *prepared.lineage.warnings)
    if planner.epoch(0).n_steps == 1:
        marks = (*marks, _ONE_STEP)
    return replace(summary, warnings=(*summary.warnings, *lost_answers(corpus.stores, config.render), *marks))
