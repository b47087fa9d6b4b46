"""Raw sources -> one token store a source, evaluation sets, rejects. Builds only what is missing.

<data.dir>/facts/<source>/            what is known of each record alone (selection/facts.py)
<data.dir>/selection*                 which record goes where (selection/sides.py)
<data.dir>/eval/<set>.jsonl           examples of the sets validation, seen, heldout; eval/near.json: held-out tasks that are near
<data.dir>/eval/stores/<curve>/       the same, tokenised, a store for each curve of the training log
<data.dir>/tokenizer/                 with render.train_vocab_size only
<data.dir>/stores/<source>/           manifest.json, shards, index
<data.dir>/rejects/<source>*.jsonl    dropped and unreadable records with their reason
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sft_dist.config import RunConfig
from sft_dist.core.errors import UserError
from sft_dist.core.files import fingerprint, read_json, remove_leftovers
from sft_dist.core.locks import take_lock
from sft_dist.core.records import Example
from sft_dist.core.sets import CURVES, SETS, CurveName, curve_of
from sft_dist.evals.splits import has_sets, load_eval_sets, near_tasks
from sft_dist.filters import filters_fingerprint
from sft_dist.pipelines.data.lineage import Lineage, check_stage, lineage_of
from sft_dist.pipelines.data.lost_answers import lost_answers
from sft_dist.pipelines.data.renderer import make_renderer
from sft_dist.render.renderer import Renderer
from sft_dist.selection.facts import FOLDER
from sft_dist.selection.files import Selected, Selection, make_folder, training_examples
from sft_dist.selection.sides import facts_folder, make_facts, select
from sft_dist.selection.tokenize import ExampleList, SelectedExamples, StoreBuild
from sft_dist.selection.workers import Workers
from sft_dist.shards import Store, remove_manifest
from sft_dist.shards.staging import publish_stores
from sft_dist.sources import Source, open_source
from sft_dist.sources.sampled import sampled

EVAL_STORES = "eval/stores"
SAMPLE_BYTES = 3 << 20  # of input, that a dry run reads of all sources together, where they hold more

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What preparation leaves.

    Attributes:
        stores: Folder of each source's store.
        keys: The key of each store, part by part.
        eval_stores: Folder of the tokenised examples of each curve (`core.sets.CURVES`) that has any.
        renderer: How conversations become tokens.
        sources: The readers; in a dry run, of samples.
        selected: What became of every record that they read.
        lineage: The runs before this one, with `model.from_run`.
    """

    stores: dict[str, Path]
    keys: dict[str, dict[str, str]]
    eval_stores: dict[CurveName, Path]
    renderer: Renderer
    sources: dict[str, Source]
    selected: Selected
    lineage: Lineage | None = None


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
        limit: Build from `limit` evenly spread training examples of each source only (a dry run in another `folder`), and of large
            sources read a sample.
        folder: Instead of data.dir.
        command: The command that rebuilds, for errors.
        progress: Told what is being done.

    Raises:
        UserError: For anything wrong with sources, tokenizer, template, or a store that is out of date.
    """
    if not config.data.sources:
        raise UserError(
            "data.sources is empty, so there is nothing to train on; add a source, such as "
            "data.sources.mine.kind=alpaca data.sources.mine.path=FILE"
        )
    check_stage(config)
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    dry_run = folder is not None
    folder = folder or Path(config.data.dir)
    with _turn(folder, slices=part[1] > 1, progress=progress) if build else nullcontext():
        if dry_run:
            sources, selected = _select_dry(config, sources, folder, progress)
        else:
            selected = select(config.data, sources, folder, progress, seed=config.seed, part=part)
        _refuse_only_prompts(selected)
        renderer = make_renderer(
            config, folder, lambda: _texts(sources, selected), rebuild=rebuild, command=command
        )
        check_stage(config, renderer)
        keys = {n: _key(config, s, selected.sources[n], renderer) for n, s in sources.items()}
        stores = {n: folder / "stores" / n for n in sources if selected.sources[n].kept}
        for name in set(sources) - set(stores) if rebuild else ():
            shutil.rmtree(
                folder / "stores" / name, ignore_errors=True
            )  # all of it is held out or dropped now
        for name, store in stores.items():
            verify = rebuild and part[1] == 1  # a slice would read what all the others read
            if not _is_current(store, keys[name], rebuild=rebuild, verify=verify, command=command):
                if not build:
                    raise UserError(
                        f"the token store {store} is not built, so there is nothing to train on; run: {command}"
                    )
                selection = selected.sources[name]
                examples = SelectedExamples(sources[name], selection, config.data.shard_examples, limit)
                job = StoreBuild(
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
                _refuse_empty(name, store, folder / "rejects")
            if (
                (url := store_url(config, name))
                and (store / "manifest.json").is_file()
                and build
                and limit is None
            ):
                progress(f"copying {name} to {url}")
                publish_stores(store, url)
        if build and part[0] == 0:
            _build_eval_stores(folder, config, renderer, progress)
    built = [Store.open(path) for path in stores.values() if (path / "manifest.json").is_file()]
    lineage = lineage_of(config, _evaluated(config, folder)) if config.model.from_run else None
    for sentence in (*lost_answers(built, config.render), *(lineage.warnings if lineage else ())):
        progress(f"warning: {sentence}")
    return Prepared(
        stores=stores,
        keys={n: keys[n] for n in stores},
        eval_stores={c: path for c in CURVES if (path := folder / EVAL_STORES / c).is_dir()},
        renderer=renderer,
        sources=sources,
        selected=selected,
        lineage=lineage,
    )


def _select_dry(
    config: RunConfig, sources: dict[str, Source], folder: Path, progress: Progress
) -> tuple[dict[str, Source], Selected]:
    """Select from samples of large sources, or from all records where a sample cannot be decided on: it may lack what the config names."""
    samples = {name: sampled(s, SAMPLE_BYTES // len(sources)) for name, s in sources.items()}
    if any(s.share < 1 for s in samples.values()):
        with suppress(UserError):
            return samples, select(
                config.data, samples, folder, progress, seed=config.seed, facts=folder / FOLDER
            )
    facts = facts_folder(config.data)
    facts = facts if facts.is_dir() else folder / FOLDER  # a dry run leaves nothing behind
    return sources, select(config.data, sources, folder, progress, seed=config.seed, facts=facts)


def prepare_until(
    config: RunConfig,
    stage: Literal["facts", "selection"],
    *,
    part: tuple[int, int] = (0, 1),
    progress: Progress = lambda _: None,
) -> dict[str, int]:
    """Make the facts, or the selection too, and no store; return the records of each source.

    Args:
        config: The run's config.
        stage: `facts`: of the blocks of this part; `selection`: all facts, then what becomes of each record.
        part: (i, n): of an array that makes facts.
        progress: Told what is being done.

    Raises:
        UserError: For anything wrong with sources or filters.
    """
    folder, facts = Path(config.data.dir), facts_folder(config.data)
    sources = {name: open_source(name, c) for name, c in config.data.sources.items()}
    with _turn(folder, slices=part[1] > 1, progress=progress):
        if stage == "selection":
            selected = select(config.data, sources, folder, progress, seed=config.seed)
            return {name: s.read for name, s in selected.sources.items()}
        with Workers(config.data, sources) as workers:
            found = make_facts(
                config.data, sources, facts, workers, progress, seed=config.seed, part=part, others=False
            )
    return {name: sum(b.rows for b in blocks) for name, blocks in found.items()}


def _evaluated(config: RunConfig, folder: Path) -> dict[str, list[Example]]:
    """Return all examples of each evaluation set."""
    if not has_sets(folder, SETS):
        return {}
    return {str(n): e for n, e in load_eval_sets(folder, SETS, max_per_task=None, seed=config.seed).items()}


@contextmanager
def _turn(folder: Path, *, slices: bool, progress: Progress) -> Iterator[None]:
    """Wait for other launches that prepare this folder; the slices of an array work in it together."""
    make_folder(folder)
    how = fcntl.LOCK_SH if slices else fcntl.LOCK_EX
    with (folder / "lock").open("a") as held:
        try:
            take_lock(held, how | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another launch that prepares {folder}")
            take_lock(held, how)
        if not slices:  # of a launch that was killed
            remove_leftovers(folder, folder / "eval", folder / "eval" / "rejects", folder / "rejects")
            for left in folder.glob(".tokenizer.*"):
                shutil.rmtree(left, ignore_errors=True)
        yield


def _refuse_empty(name: str, store: Path, rejects: Path) -> None:
    """Refuse a source of which nothing can be rendered, with the reasons and a record of each."""
    if not (store / "manifest.json").is_file() or read_json(store / "manifest.json")["examples"]:
        return
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for file in sorted(rejects.glob(f"{name}-render-*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            reject = json.loads(line)
            counts[reject["reason"]] += 1
            first.setdefault(reject["reason"], f"{reject['detail']}; first: example {reject['record']['id']}")
    reasons = "; ".join(f"{n:,} {reason} ({first[reason]})" for reason, n in counts.most_common(3))
    raise UserError(
        f"data.sources.{name}: none of its {counts.total():,} examples can be rendered, so there is nothing to train on: {reasons}. "
        "Mend the records, or use another render.template"
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


def _texts(sources: dict[str, Source], selected: Selected) -> Iterator[str]:
    for name, source in sources.items():
        for example in training_examples(source, selected.sources[name]):
            yield from (m.content for m in example.messages)


def _key(config: RunConfig, source: Source, selection: Selection, renderer: Renderer) -> dict[str, str]:
    """Everything that the content of a store depends on, part by part, so that an error can name what changed."""
    return {
        "input": source.fingerprint(),
        "filters": filters_fingerprint(config.data.filters_of(source.name)),
        "selection": selection.fingerprint,
        "render": renderer.fingerprint,
        **({"clock": renderer.clock.isoformat()} if renderer.clock else {}),
        "shard_examples": str(config.data.shard_examples),
    }


def _is_current(store: Path, key: dict[str, str], *, rebuild: bool, verify: bool, command: str) -> bool:
    """Return whether a store is whole and of this key; one that is to be rebuilt is none any more."""
    if not (store / "manifest.json").is_file():
        return False
    try:
        found = Store.open(store, key, rebuild=f"{command} --rebuild")
    except UserError:
        if not rebuild:
            raise
        remove_manifest(store)  # the rest goes when it is closed: other slices may be at work on it already
        return False
    if verify and found.verify():
        shutil.rmtree(store)
        return False
    return True


def _build_eval_stores(folder: Path, config: RunConfig, renderer: Renderer, progress: Progress) -> None:
    """Tokenise the evaluation sets, for the losses during training. Small: rebuilt whenever their key moved."""
    examples: dict[CurveName, list[Example]] = {curve: [] for curve in CURVES}
    near = near_tasks(folder)
    for name in (n for n in SETS if has_sets(folder, [n])):
        (members,) = load_eval_sets(
            folder, [name], max_per_task=config.eval.max_examples_per_task, seed=config.seed
        ).values()
        for example in members:
            examples[curve_of(name, example.task, near)].append(example)
    for curve, kept in examples.items():
        store = folder / EVAL_STORES / curve
        if not kept:
            shutil.rmtree(store, ignore_errors=True)
            continue
        key = {"examples": fingerprint([e.id for e in kept]), "render": renderer.fingerprint}
        if not _is_current(store, key, rebuild=True, verify=True, command=""):
            job = StoreBuild(
                name=curve,
                examples=ExampleList(kept),
                tasks=tuple(sorted({e.task for e in kept})),
                renderer=renderer,
                rejects=folder / "eval" / "rejects",  # a source may have the name of a curve
                store=store,
                key=key,
                processes=1,
                progress=progress,
            )
            job.run((0, 1))
