"""What a Python program uses: load and check a config, prepare, read stores as data sets and back, report.

    from sft_dist import api
    config = api.load("my.yaml", ["train.epochs=2"])
    print(api.check(config).line())
    stores = api.prepare(config)
    print(api.to_dataset(stores["mine"])[0])

Training runs in processes of its own (`api.train` starts them as `sft-dist train` does), so nothing that a caller holds
reaches the ranks but the config and its plugins; with `in_group=True` the caller's own processes are the ranks. Every mistake of
a caller is a `UserError` with cause, consequence and remedy.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_dist.config import RunConfig, plugins
from sft_dist.config.load import load_config, validate
from sft_dist.core.errors import UserError
from sft_dist.core.records import Drop, Example, StepMetrics
from sft_dist.shards import Store

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_dist.pipelines.train.planning import Summary

__all__ = [
    "Drop",
    "Example",
    "RunConfig",
    "StepMetrics",
    "Store",
    "UserError",
    "add_callback",
    "add_filter",
    "add_metric",
    "check",
    "evaluate",
    "examples",
    "load",
    "prepare",
    "save_records",
    "to_dataset",
    "train",
]

CHECK_EXAMPLES = 500  # of each source, where the stores are not built


def load(source: str | Path | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load and validate a config.

    Args:
        source: A YAML file, or plain values; None: the embedded demo, or the experiment that an override names.
        overrides: As on the command line, such as `train.epochs=2`; only with a file or None.

    Raises:
        UserError: With every mistake, its path in the config and a remedy.
    """
    if isinstance(source, Mapping):
        if overrides:
            raise UserError("overrides are for files; change the mapping itself")
        return validate(dict(source))
    return load_config(overrides, Path(source) if source is not None else None)


def check(config: RunConfig, *, examples: int = CHECK_EXAMPLES) -> Summary:
    """Return what training would consist of; `line()` says it, `warnings` are what a person should look at.

    Args:
        config: The run's config.
        examples: Of each source, rendered where its store is not built.

    Raises:
        UserError: For anything that preparation or planning would refuse.
    """
    from sft_dist.pipelines.data.check import check as run

    return run(config, limit=examples)


def prepare(config: RunConfig, *, rebuild: bool = False) -> dict[str, Store]:
    """Build the token stores that are missing; return them by the names of their sources.

    Args:
        config: The run's config.
        rebuild: Replace stores that other settings built.

    Raises:
        UserError: For what cannot be read, or a store of other settings without `rebuild`.
    """
    from sft_dist.pipelines.data.prepare import prepare as run

    done = run(config, rebuild=rebuild, command="api.prepare(config)")
    return {name: Store.open(path) for name, path in done.stores.items()}


def examples(config: RunConfig) -> Iterable[Example]:
    """Yield the training examples of prepared data, with their texts and ids, source by source in reading order.

    Args:
        config: The run's config; its stores must be there.

    Raises:
        UserError: A store is missing or of other settings.
    """
    from sft_dist.pipelines.data.prepare import prepare as run
    from sft_dist.selection.files import training_examples
    from sft_dist.sources import open_source

    selected = run(config, build=False, command="api.prepare(config)").selected
    for name, source in config.data.sources.items():
        yield from training_examples(open_source(name, source), selected.sources[name])


def to_dataset(store: Store) -> Dataset:
    """Return a store as a `datasets.Dataset` with `input_ids` and `labels` (-100 where no loss is), untruncated."""
    from datasets import Dataset

    def rows() -> Iterable[dict[str, list[int]]]:
        for i in range(len(store)):
            ids = store.token_ids(i).tolist()
            labels = [-100] * len(ids)
            for span in store.spans(i):
                if span.weight:
                    labels[span.start : span.start + span.length] = ids[span.start : span.start + span.length]
            yield {"input_ids": ids, "labels": labels}

    found: Dataset = Dataset.from_list(list(rows()))
    return found


def save_records(records: Iterable[Mapping[str, Any]], file: Path) -> dict[str, Any]:
    """Write records (dictionaries, or the rows of a `datasets.Dataset`) as JSON lines; return a source that reads them.

    Args:
        records: With `messages` or `conversations`, or with `instruction` and `output`.
        file: Where they are written, whole or not at all.

    Raises:
        UserError: When there are none, or one is no JSON.
    """
    from sft_dist.core.files import atomic_path

    count, kind = 0, "alpaca"
    try:
        with atomic_path(file) as aside, aside.open("w", encoding="utf-8") as f:
            for record in records:
                kind = "chat" if "messages" in record or "conversations" in record else kind
                f.write(json.dumps(dict(record), ensure_ascii=False) + "\n")
                count += 1
            if not count:
                raise UserError(
                    f"there are no records to write into {file}, so nothing could be trained on; check the data set"
                )
    except TypeError as error:
        raise UserError(
            f"record {count} cannot be written as JSON ({error}); give texts, numbers and lists"
        ) from None
    return {"kind": kind, "path": str(file)}


def add_metric(
    name: str,
    function: Callable[[str, Sequence[str]], float],
    *,
    title: str,
    note: str,
    higher_is_better: bool = True,
    binary: bool = False,
) -> None:
    """Add what judges an answer, for `eval.metric`; called by a plugin.

    Args:
        name: In the config.
        function: (answer, all acceptable ones) -> a number from 0 to 1.
        title: In tables and sentences.
        note: One sentence for the page.
        higher_is_better: Direction.
        binary: Whether scores are 0 or 1.

    Raises:
        UserError: When the name is taken.
    """
    from sft_dist.evals import metrics

    made = metrics.Metric(title, function, note, higher_is_better, binary)
    _add(plugins.METRICS, metrics.METRICS, name, made, function)
    metrics.METRICS[name] = made


def add_filter(rule: type[Any]) -> None:
    """Add a rule (`name`, `reasons`, `__call__(example) -> Drop or None`), for `data.filters.own`; called by a plugin.

    Raises:
        UserError: When the name is taken, or something is missing.
    """
    from sft_dist import filters

    if lacking := [a for a in ("name", "reasons") if not hasattr(rule, a)]:
        raise UserError(
            f"the rule {rule.__name__} has no {lacking[0]}, which the config and the card need; add it"
        )
    _add(plugins.FILTERS, filters.FILTERS, rule.name, rule, rule)


def add_callback(name: str, make: Callable[[Path], Any]) -> None:
    """Add what is told of steps, evaluations, checkpoints and the end (docs/plugins.md); called by a plugin.

    Args:
        name: In the log.
        make: The run folder -> the callback.

    Raises:
        UserError: When the name is taken.
    """
    _add(plugins.CALLBACKS, {}, name, make, make)


def _add(own: dict[str, Any], built_in: Mapping[str, Any], name: str, thing: Any, origin: Any) -> None:
    """Enter what a plugin adds; the same module may be imported again, another may not take its name."""
    before = own.get(name)
    if before is None and name in built_in:
        raise UserError(f"{name!r} is built in, so a plugin cannot add it; choose another name")
    if before is not None and plugins.source_of(getattr(before, "function", before)) != plugins.source_of(
        origin
    ):
        raise UserError(f"{name!r} is added by two plugins, so it is unclear which is meant; rename one")
    own[name] = thing


def train(config: RunConfig, *, in_group: bool = False) -> Path:
    """Train; continue what was interrupted. Return the run folder.

    Args:
        config: The run's config.
        in_group: Train in this process, as one rank of a group that the caller started (torchrun, srun): every rank calls this
            alike. Signals TERM, USR1 and USR2 are taken over meanwhile. Else ranks start in processes of their own.

    Raises:
        UserError: For a mistake in config or data.
        RuntimeError: When the ranks fail.
    """
    if in_group:
        from sft_dist.pipelines.train.in_group import train_in_group

        return train_in_group(config).path
    from rich.console import Console

    from sft_dist.pipelines.train.command import train as run

    return run(config, Console(stderr=True), command="api.prepare(config)").path


def evaluate(run_dir: str | Path, *, in_group: bool = False) -> dict[str, Any]:
    """Generate on held-out examples and score; return eval/scores.json.

    Args:
        run_dir: A run folder.
        in_group: Generate in this process, as one rank of a group that the caller started: every rank calls this alike.

    Raises:
        UserError: When the folder is no run that has a checkpoint.
    """
    from rich.console import Console

    from sft_dist.core.files import read_object
    from sft_dist.core.runfolder import RunFolder
    from sft_dist.pipelines.evaluate.command import evaluate as run

    folder = RunFolder(Path(run_dir))
    if in_group:
        from sft_dist.pipelines.train.in_group import evaluate_in_group

        evaluate_in_group(folder)
    else:
        run(folder, Console(stderr=True))
    return read_object(folder.path / "eval" / "scores.json", "evaluate the run again")
