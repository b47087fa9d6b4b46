"""Raw sources -> one token store a source, evaluation sets, rejects. Builds only what is missing.

<data.dir>/selection*                 which record goes where (pipelines/select.py)
<data.dir>/eval/{seen,heldout}.jsonl  evaluation examples; eval/store: the same, tokenised
<data.dir>/tokenizer/                 with render.train_vocab_size only
<data.dir>/stores/<source>/           manifest.json, shards, index
<data.dir>/rejects/<source>*.jsonl    dropped and unreadable records with their reason
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sft_dist.config import RunConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, Example, Tokens
from sft_dist.core.store import atomic_path, fingerprint
from sft_dist.evals.tasks import SETS, load_eval_sets
from sft_dist.filters import filters_fingerprint
from sft_dist.pipelines.select import TRAIN, Selected, Selection, reject, select, training_examples
from sft_dist.render.chat import Renderer
from sft_dist.render.tokenizer import TextTokenizer, train_tokenizer
from sft_dist.shards import ShardWriter, Store, finish_store, open_build, token_dtype
from sft_dist.shards.staging import publish
from sft_dist.sources import Source, open_source

CHUNK = 500  # examples that a worker renders at a time: large for batch encoding, small for a smooth bar
EVAL_STORE = "eval/store"
RENDERED = (
    "rendered"  # in what is noted of shards and stores: the renderer's own counts, beside drops by reason
)

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What preparation leaves.

    Attributes:
        stores: Folder of each source's store.
        keys: The key of each store, part by part.
        eval_store: Folder of the tokenised evaluation examples, None when nothing is evaluated.
        renderer: How conversations become tokens.
        selected: What became of every record.
    """

    stores: dict[str, Path]
    keys: dict[str, dict[str, str]]
    eval_store: Path | None
    renderer: Renderer
    selected: Selected


def prepare(
    config: RunConfig,
    *,
    rebuild: bool = False,
    build: bool = True,
    part: tuple[int, int] = (0, 1),
    limit: int | None = None,
    folder: Path | None = None,
    command: str = "sft-dist prepare",
    progress: Progress = lambda _: None,
) -> Prepared:
    """Bring every store up to date.

    Args:
        config: The run's config.
        rebuild: Replace stores whose key no longer matches; without it they are an error.
        build: False: refuse when a store is missing instead of building it.
        part: (i, n): build only every n-th shard from the i-th (a Slurm array); whoever finds all done closes the store.
        limit: Build from `limit` evenly spread training examples of each source only (a dry run in another `folder`).
        folder: Instead of data.dir.
        command: The command that rebuilds, for errors.
        progress: Told what is being done.

    Raises:
        UserError: For anything wrong with sources, tokenizer, template, or a store that is out of date.
    """
    folder = folder or Path(config.data.dir)
    if not config.data.sources:
        raise UserError(
            "data.sources is empty, so there is nothing to train on; add a source, such as "
            "data.sources.mine.kind=alpaca data.sources.mine.path=FILE"
        )
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    selected = select(config, sources, folder, progress)
    _refuse_only_prompts(selected)
    renderer = make_renderer(config, folder, lambda: _texts(sources, selected))
    keys = {n: _key(config, s, selected.sources[n], renderer) for n, s in sources.items()}
    stores = {n: folder / "stores" / n for n in sources if selected.sources[n].kept}
    for name in set(sources) - set(stores) if rebuild else ():
        shutil.rmtree(folder / "stores" / name, ignore_errors=True)  # all of it is held out or dropped now
    for name, store in stores.items():
        if not _is_current(store, keys[name], rebuild=rebuild, command=command):
            if not build:
                raise UserError(
                    f"the token store {store} is not built, so training cannot start; run: {command}"
                )
            selection = selected.sources[name]
            examples = _Examples(sources[name], selection, config.data.shard_examples, limit)
            job = _Build(
                name=name,
                examples=examples,
                tasks=selection.tasks,
                renderer=renderer,
                rejects=folder / "rejects",
                store=store,
                key=keys[name],
                processes=config.data.processes,
                progress=progress,
            )
            job.run(part)
        if (
            (url := store_url(config, name))
            and (store / "manifest.json").is_file()
            and build
            and limit is None
        ):
            progress(f"copying {name} to {url}")
            publish(store, url)
    eval_store = _eval_store(folder, config, renderer, progress) if build else folder / EVAL_STORE
    return Prepared(
        stores=stores,
        keys={n: keys[n] for n in stores},
        eval_store=eval_store if eval_store and eval_store.is_dir() else None,
        renderer=renderer,
        selected=selected,
    )


def _refuse_only_prompts(selected: Selected) -> None:
    prompts = {name: s.prompts for name, s in selected.sources.items() if s.prompts}
    if prompts and not any(s.kept for s in selected.sources.values()):
        raise UserError(
            f"data.sources keep {sum(prompts.values()):,} prompts ({', '.join(prompts)}) and no example with an answer, so there is "
            f"nothing to train on; generate answers with `sft-dist construct` and construct.sets.NAME={{method: answer, seeds: "
            f"[{', '.join(prompts)}]}}, and add what it writes as a source of kind examples"
        )


def store_url(config: RunConfig, source: str) -> str | None:
    """Return where the store of a source lies on object storage, if it does."""
    return f"{config.data.remote.rstrip('/')}/{source}" if config.data.remote else None


def has_eval(folder: Path) -> bool:
    """True when anything was held out for evaluation."""
    return any(
        (folder / "eval" / f"{name}.jsonl").stat().st_size
        for name in SETS
        if (folder / "eval" / f"{name}.jsonl").is_file()
    )


def make_renderer(config: RunConfig, folder: Path, texts: Callable[[], Iterable[str]]) -> Renderer:
    """Return the renderer of a config; trains the tokenizer first where the config asks for it and there is none."""
    render = config.render
    if render.train_vocab_size is not None:
        path = folder / "tokenizer"
        if not (path / "tokenizer.json").is_file():
            train_tokenizer(texts(), render.train_vocab_size).save(path)
        tokenizer = TextTokenizer.load(str(path))
    else:
        own = config.model.tokenizer is None
        named = config.model.path if own else config.model.tokenizer
        assert named is not None  # validated by the config
        tokenizer = TextTokenizer.load(named, config.model.revision if own else None)
    return Renderer(
        tokenizer,
        template=render.template,
        train_on=render.train_on,
        thinking=render.thinking,
        train_empty_think=render.train_empty_think,
        system=render.system,
    )


def _texts(sources: dict[str, Source], selected: Selected) -> Iterator[str]:
    for name, source in sources.items():
        for example in training_examples(source, selected.sources[name]):
            yield from (m.content for m in example.messages)


def _key(config: RunConfig, source: Source, selection: Selection, renderer: Renderer) -> dict[str, str]:
    """Everything that the content of a store depends on, part by part, so that an error can name what changed."""
    return {
        "input": source.fingerprint(),
        "filters": filters_fingerprint(config.data.filters),
        "selection": selection.fingerprint,
        "render": renderer.fingerprint,
        "shard_examples": str(config.data.shard_examples),
    }


def _is_current(store: Path, key: dict[str, str], *, rebuild: bool, command: str) -> bool:
    if not (store / "manifest.json").is_file():
        return False
    try:
        Store.open(store, key, rebuild=f"{command} --rebuild")
    except UserError:
        if not rebuild:
            raise
        shutil.rmtree(store)
        return False
    return True


def _eval_store(folder: Path, config: RunConfig, renderer: Renderer, progress: Progress) -> Path | None:
    """Tokenise the evaluation examples, for the held-out loss during training. Small: rebuilt whenever its key moved."""
    store = folder / EVAL_STORE
    if not has_eval(folder):
        shutil.rmtree(store, ignore_errors=True)
        return None
    sets = load_eval_sets(folder, max_per_task=config.eval.max_examples_per_task, seed=config.seed)
    examples = [e for members in sets.values() for e in members]
    key = {"examples": fingerprint([e.id for e in examples]), "render": renderer.fingerprint}
    if not _is_current(store, key, rebuild=True, command=""):
        shutil.rmtree(store, ignore_errors=True)
        job = _Build(
            name="eval",
            examples=_Listed(examples),
            tasks=tuple(sorted({e.task for e in examples})),
            renderer=renderer,
            rejects=folder / "rejects",
            store=store,
            key=key,
            processes=1,
            progress=progress,
        )
        job.run((0, 1))
    return store


@dataclass(frozen=True)
class _Listed:
    """Examples in memory, as one block."""

    members: list[Example]
    blocks: int = 1

    @property
    def count(self) -> int:
        return len(self.members)

    def read(self, wanted: set[int]) -> Iterator[tuple[int, list[Example]]]:
        if 0 in wanted:
            yield 0, self.members


@dataclass(frozen=True)
class _Examples:
    """The training examples of a source, in blocks of `size` records. A block is a shard."""

    source: Source
    selection: Selection
    size: int
    limit: int | None

    @property
    def blocks(self) -> int:
        return max(1, -(-self.selection.read // self.size))

    @property
    def count(self) -> int:
        return min(self.selection.kept, self.limit or self.selection.kept)

    def read(self, wanted: set[int]) -> Iterator[tuple[int, list[Example]]]:
        """Yield (block, its training examples); the records of unwanted blocks are passed over."""
        stream, taken = iter(self.source), 0
        for block in range(self.blocks):
            codes = self.selection.codes[block * self.size : (block + 1) * self.size]
            members = [
                r
                for r, c in zip(islice(stream, self.size), codes, strict=True)
                if c == TRAIN and isinstance(r, Example)
            ]
            if self.limit is not None and self.selection.kept > self.limit:
                share = self.limit / self.selection.kept
                number = taken
                taken += len(members)
                members = [m for i, m in enumerate(members, number) if int((i + 1) * share) > int(i * share)]
            if block in wanted:
                yield block, members


@dataclass(frozen=True, kw_only=True)
class _Build:
    """The build of one store: a block is a shard, rendered by a pool, written in order."""

    name: str
    examples: _Examples | _Listed
    tasks: tuple[str, ...]
    renderer: Renderer
    rejects: Path
    store: Path
    key: dict[str, str]
    processes: int | None
    progress: Progress

    def run(self, part: tuple[int, int]) -> None:
        """Build the missing shards of this part; close the store when no shard is missing any more."""
        everything = set(range(self.examples.blocks))
        missing = {b for b in everything - set(open_build(self.store, self.key)) if b % part[1] == part[0]}
        if missing:
            with ExitStack() as stack:
                pool = self._pool(stack)
                for block, members in self.examples.read(missing):
                    self.progress(f"rendering {self.name}: shard {block + 1} of {self.examples.blocks}")
                    self._shard(block, members, pool)
        done = open_build(self.store, self.key)
        if set(done) >= everything:
            dropped: Counter[str] = Counter()
            rendered: Counter[str] = Counter()
            for record in done.values():
                dropped.update({reason: n for reason, n in record.note.items() if reason != RENDERED})
                rendered.update(record.note.get(RENDERED, {}))
            finish_store(
                self.store,
                key=self.key,
                tasks=self.tasks,
                sources=[self.name],
                shards=everything,
                info={"dropped": dict(dropped), RENDERED: dict(rendered)},
            )

    def _pool(self, stack: ExitStack) -> Executor | None:
        """A pool of forked workers; None for small sources, which the tokenizer's own threads handle faster."""
        processes = self.processes or len(os.sched_getaffinity(0))
        if processes == 1 or self.examples.count < 4 * CHUNK * processes:
            return None
        os.environ["TOKENIZERS_PARALLELISM"] = (
            "false"  # one thread a worker: the processes are the parallelism
        )
        context = multiprocessing.get_context("fork")
        return stack.enter_context(
            ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=(self.renderer,))
        )

    def _shard(self, block: int, members: list[Example], pool: Executor | None) -> None:
        dropped: Counter[str] = Counter()
        counted: Counter[str] = Counter()
        code = {t: i for i, t in enumerate(self.tasks)}
        with ExitStack() as stack:
            file = stack.enter_context(
                stack.enter_context(atomic_path(self.rejects / f"{self.name}-render-{block:05d}.jsonl")).open(
                    "w"
                )
            )
            writer = stack.enter_context(
                ShardWriter(self.store, block, token_dtype(self.renderer.tokenizer.vocab_size), key=self.key)
            )
            chunks = [members[i : i + CHUNK] for i in range(0, len(members), CHUNK)]
            rendered = pool.map(_work, chunks) if pool else (_render(self.renderer, c) for c in chunks)
            for chunk, (outcomes, counts) in zip(chunks, rendered, strict=True):
                counted += counts
                for example, tokens in zip(chunk, outcomes, strict=True):
                    if isinstance(tokens, Drop):
                        dropped[tokens.reason] += 1
                        reject(file, tokens, example)
                    else:
                        writer.add(example.id, code[example.task], 0, tokens)
            writer.close(note={**dropped, RENDERED: dict(counted)})


_renderer: Renderer | None = None  # of a worker process


def _start_worker(renderer: Renderer) -> None:
    global _renderer  # noqa: PLW0603  set once, by the pool's initializer
    _renderer = renderer


def _work(examples: list[Example]) -> tuple[list[Tokens | Drop], Counter[str]]:
    assert _renderer is not None
    return _render(_renderer, examples)


def _render(renderer: Renderer, examples: list[Example]) -> tuple[list[Tokens | Drop], Counter[str]]:
    """Return the outcomes, and what the renderer counted meanwhile."""
    renderer.counts.clear()
    outcomes = renderer.render(examples)
    return outcomes, renderer.counts.copy()
