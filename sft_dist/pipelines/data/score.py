"""Base model + training examples -> <data.dir>/scores/<source>.jsonl: how much the prompt helps the answer (IFD).

IFD = loss of the answer given its prompt / loss of the answer alone, both over the same tokens, in the trainer's own
packed pass. "Alone" still sees the one token before the answer (the end of the assistant header, say), for the first
token of a document is never a target. Each assistant turn of a conversation is taken alone by itself.

<source>.jsonl      {"id", "task", "ifd", "loss", "loss_alone", "tokens"}, one line an example; ifd null: not renderable
<source>.json       what the scores depend on
.selection/         what would be trained on without `filters.scores` (selection/sides.py)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sft_dist.config import RunConfig
from sft_dist.config.auto import asked, supposed
from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object, write_json
from sft_dist.core.records import Batch, Drop, Example, Tokens
from sft_dist.model import isolation_check
from sft_dist.model.load import load_packed
from sft_dist.model.packed import PackedLM, to_inputs
from sft_dist.pack import assign_rows
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.render.renderer import Renderer
from sft_dist.selection.files import Selected, training_examples
from sft_dist.selection.id_files import scores_path
from sft_dist.selection.sides import select
from sft_dist.shards.format import key_changes
from sft_dist.sources import Source, open_source

BLOCK = 1024  # examples between two writes: what an interruption loses; enough documents to fill rows

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Document:
    """What is run through the model: an example whole, or one of its answers alone. T tokens.

    Attributes:
        ids: int32 [T].
        targets: int64 [N] places in `ids` that count.
        example: Index of the example in its block.
        alone: Whether the prompt was left out.
    """

    ids: NDArray[np.int32]
    targets: NDArray[np.int64]
    example: int
    alone: bool


def score(
    config: RunConfig, *, rebuild: bool = False, progress: Progress = lambda _: None
) -> dict[str, Path]:
    """Score what has no score yet; return the score file of each source.

    Args:
        config: The run's config; `filters.scores` are left out of it while the examples are chosen.
        rebuild: Start over where scores were made with other settings; without it they are an error.
        progress: Told what is being done.

    Raises:
        UserError: There is no trained base model, it cannot be used packed, or scores of other settings are there.
    """
    if config.model.path is None:
        raise UserError(
            "model.path is not set, and the losses of an untrained model say nothing about the data; "
            "set model.path to the base model that is fine-tuned"
        )
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    paths = {name: scores_path(config.data, name) for name in sources}
    if not paths:
        raise UserError("data.sources is empty, so there is nothing to score; add a source")
    data = config.data.model_copy(update={"filters": config.data.filters.without_scores()})
    plain = config.model_copy(update={"data": data})
    selected = select(
        plain.data, sources, next(iter(paths.values())).parent / ".selection", progress, seed=plain.seed
    )
    renderer = make_renderer(config, Path(config.data.dir), lambda: _texts(sources, selected))
    key = {
        "model": config.model.path,
        "revision": str(config.model.revision),
        "render": renderer.fingerprint,
        "seq_len": str(config.pack.seq_len),
    }
    for path in paths.values():
        _open(path, key, rebuild=rebuild)
    losses = _Losses.load(config, renderer)
    for name, source in sources.items():
        selection = selected.sources[name]
        _score_source(
            training_examples(source, selection), selection.kept, paths[name], renderer, losses, progress
        )
    return paths


def documents(tokens: Tokens, example: int, seq_len: int) -> Iterator[Document]:
    """Yield the example whole (its last `seq_len` tokens), and each of its answers alone, over the same targets."""
    cut = max(0, len(tokens.ids) - seq_len)
    # The first token that is left is never a target: nothing predicts it.
    spans = [(max(s.start, cut + 1), s.start + s.length) for s in tokens.spans if s.weight > 0]
    spans = [(first, end) for first, end in spans if first < end]
    if not spans:
        return
    whole = np.concatenate([np.arange(first, end) for first, end in spans]) - cut
    yield Document(tokens.ids[cut:], whole, example, alone=False)
    for first, end in spans:
        yield Document(tokens.ids[first - 1 : end], np.arange(1, end - first + 1), example, alone=True)


def pack(members: Sequence[Document]) -> Batch:
    """Lay documents end to end."""
    lengths = [len(d.ids) for d in members]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    targets = np.concatenate([start + d.targets for start, d in zip(starts, members, strict=False)])
    return Batch.of_documents(np.concatenate([d.ids for d in members]), lengths, targets)


@dataclass(frozen=True, kw_only=True)
class _Losses:
    """The model, and how many tokens it takes at once."""

    module: PackedLM
    device: str
    seq_len: int
    rows: int

    @classmethod
    def load(cls, config: RunConfig, renderer: Renderer) -> _Losses:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        assert config.model.path is not None
        loaded = load_packed(
            config.model.path,
            config.model.model_copy(update={"gradient_checkpointing": False}),
            device=device,
            seq_len=config.pack.seq_len,
            min_vocab_size=renderer.tokenizer.vocab_size,
        )
        module = loaded.module.to(device).eval()
        vocab = isolation_check.tokens_of(module.hf)

        def loss_of(batch: Batch) -> torch.Tensor:
            return module(*to_inputs(batch, device))[1]

        isolation_check.settle_kernels(loaded, loss_of, config.model.recurrent, config.pack.seq_len)
        moved = isolation_check.measure_isolation(loss_of, vocab)
        if not moved <= isolation_check.TOLERANCE[module.hf.dtype]:  # NaN must not pass
            raise UserError(
                f"packed documents see one another with model.attention={loaded.backend} (by {moved:.2g}), so scores would be "
                "wrong; use model.attention=sdpa_dense, or another model"
            )
        return cls(
            module=module,
            device=device,
            seq_len=config.pack.seq_len,
            rows=asked(supposed(config))["micro_rows"],
        )

    @torch.inference_mode()
    def of(self, members: Sequence[Document], examples: int) -> NDArray[np.float64]:
        """Return the total loss of each example, [examples, 2]: with its prompt, and without; in nats."""
        totals = np.zeros((examples, 2))
        if not members:
            return totals
        row_of = assign_rows(np.array([len(d.ids) for d in members], np.int32), self.seq_len) // self.rows
        order = np.argsort(row_of, kind="stable")
        for places in np.split(order, np.flatnonzero(np.diff(row_of[order])) + 1):
            together = [members[i] for i in places]
            nll_N = self.module(*to_inputs(pack(together), self.device))[1].double().cpu().numpy()
            ends = np.cumsum([len(d.targets) for d in together])
            for d, nll in zip(together, np.split(nll_N, ends[:-1]), strict=True):
                totals[d.example, int(d.alone)] += nll.sum()
        return totals


def _score_source(
    examples: Iterator[Example],
    total: int,
    path: Path,
    renderer: Renderer,
    losses: _Losses,
    progress: Progress,
) -> None:
    done = _scored(path)
    waiting = (e for e in examples if e.id not in done)
    count = len(done)
    with path.open("a", encoding="utf-8") as file:
        while block := list(islice(waiting, BLOCK)):
            progress(f"scoring {path.stem}: {count:,} of {total:,}")
            file.writelines(json.dumps(line) + "\n" for line in _lines(block, renderer, losses))
            file.flush()
            os.fsync(file.fileno())
            count += len(block)


def _scored(path: Path) -> set[str]:
    """Return the ids that a score file holds. Raises UserError for a line that is no score."""
    ids = set()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                ids.add(str(json.loads(line)["id"]))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(
                    f"{path}:{number} is no score ({error!r}), so scoring cannot go on from it; remove the line"
                ) from None
    return ids


def _lines(block: Sequence[Example], renderer: Renderer, losses: _Losses) -> Iterator[dict[str, Any]]:
    rendered = renderer.render(block)
    members = [
        d
        for i, tokens in enumerate(rendered)
        if not isinstance(tokens, Drop)
        for d in documents(tokens, i, losses.seq_len)
    ]
    counts = {d.example: len(d.targets) for d in members if not d.alone}
    totals = losses.of(members, len(block))
    for i, example in enumerate(block):
        tokens, (given, alone) = counts.get(i, 0), totals[i].tolist()
        known = tokens > 0 and alone > 0
        yield {
            "id": example.id,
            "task": example.task,
            "ifd": round(given / alone, 6) if known else None,
            "loss": round(given / tokens, 6) if known else None,
            "loss_alone": round(alone / tokens, 6) if known else None,
            "tokens": tokens,
        }


def _open(path: Path, key: dict[str, str], *, rebuild: bool) -> None:
    """Leave a score file of this key to append to: whole lines only."""
    about = path.with_suffix(".json")
    remedy = "start over with --rebuild"
    changed: list[str] = []
    if about.is_file():
        try:
            changed = key_changes(read_object(about, remedy), key)
        except UserError:
            if not rebuild:
                raise
            changed = [about.name]
    if changed:
        if not rebuild:
            raise UserError(
                f"{path} was made with other settings; changed: {', '.join(changed)}. Scores of two models cannot be "
                "compared, so it is not continued; start over with --rebuild, or move the folder (data.filters.scores.NAME.file then names it)"
            )
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(about, key)
    with path.open("ab+") as file:
        file.seek(0)
        whole = 0
        for line in file:  # a crash leaves at most one torn line, the last
            whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)


def _texts(sources: dict[str, Source], selected: Selected) -> Iterator[str]:
    for name, source in sources.items():
        for example in training_examples(source, selected.sources[name]):
            yield from (m.content for m in example.messages)
