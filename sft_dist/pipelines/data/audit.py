"""A config of another trainer and one of ours -> what each would train on of the same records: loss, cuts, rows.

Both columns count the same rendered sample, by what the trainers document: no code of theirs is run. What depends on a template that
only they have is not seen.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sft_dist.config import RunConfig
from sft_dist.config.convert import convert
from sft_dist.config.convert.reading import read_other
from sft_dist.config.data import PackConfig
from sft_dist.config.load import validate
from sft_dist.mix import Corpus
from sft_dist.pack import assign_rows
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.train.planning import open_corpus

# Trainers whose packing lets documents of a row see one another unless a switch says otherwise.
MIXES = {"llama-factory": "neat_packing"}
DIVISION = {
    "ours": "sum of weighted losses over all target tokens of the global batch",
    "theirs": "mean over the target tokens of the global batch (since transformers 4.46; before, mean of the micro-batches' means)",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """What one trainer makes of the sample.

    Attributes:
        documents: Rendered.
        dropped: Left out: longer than a row, or, by us, without a token of loss once cut.
        cut: Shortened to a row.
        silent: Trained without a token of loss, because the cut took it.
        tokens: In rows.
        target_tokens: Of them, with loss.
        rows: Of `seq_len` tokens.
        fill: Tokens over the capacity of the rows.
        apart: Whether documents of a row do not see one another.
    """

    documents: int
    dropped: int
    cut: int
    silent: int
    tokens: int
    target_tokens: int
    rows: int
    fill: float
    apart: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """The comparison of two trainers.

    Attributes:
        trainer: The other one.
        theirs: What it makes of the sample.
        ours: What we make of it.
        cannot: (their key, why) of what could not be taken over, so that it is not seen here.
    """

    trainer: str
    theirs: Column
    ours: Column
    cannot: tuple[tuple[str, str], ...]

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (what, theirs, ours) in words."""
        a, b = self.theirs, self.ours
        counts = [
            (name, f"{getattr(a, key):,}", f"{getattr(b, key):,}")
            for name, key in (
                ("documents", "documents"),
                ("left out", "dropped"),
                ("cut to a row", "cut"),
                ("trained without any loss", "silent"),
                ("tokens", "tokens"),
                ("tokens with loss", "target_tokens"),
                ("rows", "rows"),
            )
        ]
        return [
            *counts,
            ("fill of rows", f"{a.fill:.0%}", f"{b.fill:.0%}"),
            ("documents of a row see one another", "no" if a.apart else "yes", "no" if b.apart else "yes"),
            ("loss is divided by", DIVISION["theirs"], DIVISION["ours"]),
        ]


def audit(
    file: Path, *, ranks: int, trainer: str | None = None, ours: RunConfig | None = None, limit: int
) -> Audit:
    """Compare what another trainer and we would train on.

    Args:
        file: Config of the other trainer.
        ranks: GPUs that it ran on.
        trainer: Whose config it is; None: told from its keys.
        ours: Our config of the same data; None: the converted one with our own defaults of masks, cuts and packing.
        limit: Examples of each source that are rendered.

    Raises:
        UserError: For a file that is no config, or data that cannot be rendered.
    """
    done = convert(file, ranks=ranks, trainer=trainer)
    theirs = validate(done.values)
    if ours is None:
        default = PackConfig()
        pack = theirs.pack.model_copy(update={"packing": default.packing, "too_long": default.too_long})
        render = theirs.render.model_copy(update={"train_on": type(theirs.render)().train_on})
        ours = theirs.model_copy(update={"pack": pack, "render": render})
    switch = MIXES.get(done.trainer)
    mixes = theirs.pack.packing and switch is not None and not read_other(file, trainer)[1].get(switch)
    return Audit(
        trainer=done.trainer,
        theirs=_column(theirs, limit, apart=not mixes, drops_silent=False),
        ours=_column(ours, limit, apart=True, drops_silent=True),
        cannot=tuple((key, why) for key, why, changes in done.cannot if changes),
    )


def _column(config: RunConfig, limit: int, *, apart: bool, drops_silent: bool) -> Column:
    with tempfile.TemporaryDirectory(prefix="sft-audit-") as scratch:
        prepared = prepare(config, limit=limit, folder=Path(scratch))
        corpus = open_corpus(prepared.stores)
        return count(corpus, config.pack, apart=apart, drops_silent=drops_silent)


def count(corpus: Corpus, pack: PackConfig, *, apart: bool, drops_silent: bool) -> Column:
    """Return what packing and truncation make of every document of the stores.

    `drops_silent`: whether a document without a token of loss is left out, as our planner does.
    """
    docs = np.arange(len(corpus))
    stored = corpus.lengths[docs]
    slices = corpus.slices(docs, pack.seq_len, keep_end=pack.too_long == "truncate_prompt")
    long = stored > pack.seq_len
    kept: NDArray[np.bool_] = ~long if pack.too_long == "drop" else np.ones(len(docs), np.bool_)
    if drops_silent:
        kept = kept & (slices.target_tokens > 0)
    cut = long & kept
    lengths, targets = slices.lengths[kept], slices.target_tokens[kept]
    rows = (
        int(assign_rows(lengths, pack.seq_len, pack.window).max(initial=-1)) + 1
        if pack.packing
        else len(lengths)
    )
    tokens = int(lengths.sum())
    return Column(
        documents=len(docs),
        dropped=int((~kept).sum()),
        cut=int(cut.sum()),
        silent=int((cut & (slices.target_tokens == 0)).sum()),
        tokens=tokens,
        target_tokens=int(targets.sum()),
        rows=rows,
        fill=tokens / max(1, rows * pack.seq_len),
        apart=apart or not pack.packing,
    )
