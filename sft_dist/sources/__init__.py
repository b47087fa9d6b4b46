"""Raw files -> Example | BadRecord, streamed, each bad record with file and line. Next: holdout.

`open_source` is the one place that maps a source's config to its reader.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import PurePath
from typing import Any

from sft_dist.config.sources import SourceBase, SourceConfig
from sft_dist.core.errors import UserError
from sft_dist.core.records import Example
from sft_dist.sources.alpaca import AlpacaReader
from sft_dist.sources.base import FileSource, RecordError, Source
from sft_dist.sources.chat import ChatReader
from sft_dist.sources.examples import ExamplesReader
from sft_dist.sources.flan.reader import FlanReader
from sft_dist.sources.natural_instructions import NaturalInstructionsReader, TaskInfo
from sft_dist.sources.text import TextReader, TokensReader

__all__ = ["SOURCES", "RecordError", "Source", "TaskInfo", "open_source"]

PROBE_RECORDS = 1000  # none of the first ones readable: the config is wrong, not the data


def _demo(name: str, *, task: str | None, dataset: str | None, **options: Any) -> Source:
    from sft_dist.sources.demo import DemoReader

    if task is not None or dataset is not None:
        raise UserError(f"data.sources.{name}: the demo set names its own tasks; leave task and dataset out")
    return DemoReader(name, **options)


def _hub(name: str, **options: Any) -> Source:
    from sft_dist.sources.hub import HubReader  # imports `datasets`, which takes seconds

    return HubReader(name, **options)


def _promptsource(name: str, **options: Any) -> Source:
    from sft_dist.sources.promptsource.reader import PromptsourceReader  # imports jinja2

    return PromptsourceReader(name, **options)


def _patterns(name: str, **options: Any) -> Source:
    from sft_dist.sources.patterns.reader import PatternsReader

    return PatternsReader(name, **options)


SOURCES: dict[str, Callable[..., Source]] = {
    "demo": _demo,
    "natural_instructions": NaturalInstructionsReader,
    "alpaca": AlpacaReader,
    "chat": ChatReader,
    "hub": _hub,
    "examples": ExamplesReader,
    "promptsource": _promptsource,
    "flan": FlanReader,
    "patterns": _patterns,
    "text": TextReader,
    "tokens": TokensReader,
}

# How the mixture draws from a source and what the card says about it; no reader's business.
_NOT_READ = {
    "kind",
    "take_examples",
    "take_share",
    "share",
    "weight",
    "epochs",
    "license",
    "use",
    "filters",
    "metric",
}


def open_source(name: str, config: SourceConfig) -> Source:
    """Return the reader of a source, after a look at its first records.

    Raises:
        UserError: When its files do not exist, or none of the first records can be read.
    """
    values = {f: getattr(config, f) for f in type(config).model_fields if f not in _NOT_READ}
    assert isinstance(config, SourceBase)
    options = {("subset" if f == "name" else f): v for f, v in values.items()}
    source = SOURCES[config.kind](name, **options)
    if config.license is not None and "{" in config.license:
        if not isinstance(source, FileSource):
            raise UserError(
                f"data.sources.{name}.license={config.license!r} names a field of its records, and a source of kind {config.kind} has none; "
                "write the licence itself"
            )
        source.name_licenses(config.license)
    _check_readable(source, may_be_prompts=getattr(config, "prompts", True) is False)
    return source


def _check_readable(source: Source, *, may_be_prompts: bool) -> None:
    """Raise unless one of the first records is an example: a wrong field name would fail on every record."""
    reasons: Counter[str] = Counter()
    first = None
    for record in islice(source, PROBE_RECORDS):
        if isinstance(record, Example):
            return
        first = first or record
        reasons[record.reason] += 1
    if first is None and source.skipped:
        reasons = Counter({reason: sum(tasks.values()) for reason, tasks in source.skipped.items()})
        shown = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
        raise UserError(
            f"data.sources.{source.name} gives no example: all of its records are passed over ({shown}), so there is nothing to "
            "train on; check its templates, variants and field names"
        )
    if first is None:
        raise UserError(
            f"data.sources.{source.name} holds no records, so there is nothing to train on; check its path"
        )
    reason, count = reasons.most_common(1)[0]
    total = sum(reasons.values())
    raise UserError(
        f"data.sources.{source.name}: none of the first {total} records can be read. {count} of them: {reason} "
        f"(first: {first.file}, line {first.line}). Check the source's kind and field names"
        + (", or set prompts=true if its records have no answers" if may_be_prompts else "")
        + (
            ". The file is one object: where its records lie inside of it, write them as a list or one a line, such as `jq -c '.data[]'` does"
            if total == 1 and PurePath(first.file).suffix == ".json"
            else ""
        )
    )
