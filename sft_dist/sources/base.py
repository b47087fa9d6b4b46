"""What every reader shares: files and options -> fingerprint, records -> examples or a reason, names of tasks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from os.path import commonpath
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

from sft_dist.core.errors import UserError, nearest
from sft_dist.core.files import checksum, fingerprint
from sft_dist.core.records import BadRecord, Example, example_id
from sft_dist.core.verbs import verb_and_noun
from sft_dist.sources.files.blocks import LEAST_BYTES, Block, Part, grouped, part_bytes
from sft_dist.sources.files.data_files import BINARY, TEXT_CHARS, RawRecord, cut_file, file_kind, read_wanted

READER_VERSION = 4  # raised when a reader makes other examples of the same records

FILE_FIELD = "__file__"  # in `task` and `dataset`, the name of the record's file without endings
VERB_FIELD = "__verb__"  # in `task`, the root verb of the record's instruction
NO_VERB = "other"
RECORD = "record:"  # an origin: the one annotated record that an example asks about, a hash of its content

_FIELD = re.compile(r"\{([^{}]+)\}")


class Source(Protocol):
    """A named set of examples. Iterating twice gives the same, in the same order.

    Attributes:
        name: Its name in the config.
        share: Of the input that is read; below 1 for a sample (`sources.sampled`).
    """

    name: str
    share: float

    @property
    def skipped(self) -> Mapping[str, Mapping[str, int]]:
        """Reason -> task -> records that the latest whole pass made no example of, by design."""

    def fingerprint(self) -> str:
        """Return 32 hex digits over the content of the input and every option that changes what is read."""

    def files(self) -> list[Path]:
        """Return the input files; empty when there are none."""

    def __iter__(self) -> Iterator[Example | BadRecord]:
        """Yield examples, and a `BadRecord` in place of each record that cannot be read."""


class Read(NamedTuple):
    """What became of one record.

    Attributes:
        number: Of the record in its block, from 0.
        raw: The record; None: not even its fields can be read.
        made: Its examples, or one `BadRecord`.
    """

    number: int
    raw: RawRecord | None
    made: Sequence[Example | BadRecord]


class RecordError(ValueError):
    """Why one record cannot become an example; readers turn it into a `BadRecord`."""


class FileSource(ABC):
    """Base of the readers of files: each record becomes examples through `convert`.

    Attributes:
        name: The source's name in the config.
        skipped: Reason -> task -> records that the latest pass (of the source, or of a block) made no example of, by design.
        share: Of the input that is read.
        divisible: Whether a record is read without the files before it.
        texts: Whether a JSON string is a record too.
    """

    share: float = 1.0
    divisible: ClassVar[bool] = True
    texts: bool = False

    def __init__(
        self, name: str, files: list[Path], *, task: str | None, dataset: str | None, **options: Any
    ) -> None:
        """Keep what identifies the source.

        Args:
            name: The source's name.
            files: Its files, in reading order.
            task: Task name of every record, with fields of the record in braces; None: the name of the source.
            dataset: Underlying dataset of every record, likewise; None: unknown.
            options: Everything else that changes what is read.
        """
        self.name = name
        self.skipped: dict[str, Counter[str]] = {}
        self._files = files
        self._task = task
        self._dataset = dataset
        self._names_verb = task is not None and f"{{{VERB_FIELD}}}" in task
        self._license: str | None = None
        self._names_file = any(f"{{{FILE_FIELD}}}" in (pattern or "") for pattern in (task, dataset))
        self._options = {"reader": type(self).__name__, "task": task, "dataset": dataset, **options}

    def name_licenses(self, pattern: str) -> None:
        """Let every record have a licence: a pattern with fields of the record in braces."""
        self._license = pattern
        self._names_file = self._names_file or f"{{{FILE_FIELD}}}" in pattern
        self._options["license"] = pattern

    def files(self) -> list[Path]:
        """Return the input files, in reading order."""
        return list(self._files)

    def fingerprint(self) -> str:
        """Return 32 hex digits over the options, and the name and content of every file; where they lie is left out."""
        return fingerprint(
            {
                "version": READER_VERSION,
                "name": self.name,
                "options": self._options,
                "files": content_of(self._files),
            }
        )

    def __iter__(self) -> Iterator[Example | BadRecord]:
        """Yield the examples of every record; a record that cannot be read gives one `BadRecord` instead."""
        for read in self.read():
            yield from read.made

    def blocks(self) -> list[Block]:
        """Return the blocks of the source, in reading order; each can be read by itself."""
        if not self.divisible:
            return [()]
        return grouped((part, _bytes_of(part)) for file in self._files for part in self.cut(file))

    def cut(self, file: Path) -> list[Part]:
        """Return the parts of a file that can be read by themselves."""
        return cut_file(file, part_bytes(file.stat().st_size), texts=self.texts)

    def block_fingerprint(self, block: Block) -> str:
        """Return 32 hex digits over the options and the content of a block."""
        if not block:
            return self.fingerprint()
        names = dict(zip(self._files, names_of(self._files), strict=True))
        return fingerprint(
            {
                "version": READER_VERSION,
                "name": self.name,
                "options": self._options,
                "parts": [(names[part.path], _part_checksum(part)) for part in block],
            }
        )

    def read(self, block: Block = (), wanted: Container[int] | None = None) -> Iterator[Read]:
        """Yield what became of each record.

        Args:
            block: One of `blocks`; empty: the whole source. Lines are counted as its parts say.
            wanted: Numbers of the records that are to be read; None: all.
        """
        self.skipped = {}
        for number, raw in enumerate(self.records(block or None, wanted)):
            if raw is None or (wanted is not None and number not in wanted):
                continue
            if isinstance(raw, BadRecord):
                yield Read(number, None, [raw])
                continue
            fields = {**raw.fields, FILE_FIELD: data_name(raw.file)} if self._names_file else raw.fields
            if self._names_verb:
                fields = {**fields, VERB_FIELD: f"{{{VERB_FIELD}}}"}  # named once the instruction is known
            try:
                # as a list: a record is taken whole or not at all
                made = list(self.convert(fields))
                if self._names_verb:
                    made = [_named_by_verb(example) for example in made]
                if self._license is not None:
                    named = fill_in(self._license, fields, "licence")
                    made = [replace(example, license=named) for example in made]
                yield Read(number, raw, made)
            except RecordError as error:
                text = repr(raw.fields)[:TEXT_CHARS]
                bad = BadRecord(file=raw.file, line=self.line_of(raw), reason=str(error), text=text)
                yield Read(number, raw, [bad])

    def records(
        self, parts: Sequence[Part] | None = None, wanted: Container[int] | None = None
    ) -> Iterator[RawRecord | BadRecord | None]:
        """Yield the records of `parts` (None: of all files); of one whose number is not `wanted`, None will do."""
        return read_wanted(self._files if parts is None else parts, wanted, texts=self.texts)

    @abstractmethod
    def convert(self, fields: Mapping[str, Any]) -> Iterable[Example]:
        """Return the examples that one record holds, or raise `RecordError`."""

    def line_of(self, raw: RawRecord) -> int:
        """Return the line on which a record starts, for a report."""
        return raw.line

    def skip(self, reason: str, task: str) -> None:
        """Count a record that a reader makes no example of, by design."""
        self.skipped.setdefault(reason, Counter())[task] += 1

    def task_of(self, fields: Mapping[str, Any]) -> str:
        """Return the task of a record."""
        return self.name if self._task is None else fill_in(self._task, fields, "task")

    def origin_of(self, fields: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of the datasets that a record comes from."""
        return () if self._dataset is None else (f"dataset:{fill_in(self._dataset, fields, 'dataset')}",)


def blocks_of(source: Source) -> list[Block]:
    """Return the blocks of any source; one that is not made of files is one block."""
    return source.blocks() if isinstance(source, FileSource) else [()]


def block_fingerprint(source: Source, block: Block) -> str:
    """Return 32 hex digits over what the records of a block depend on."""
    return source.block_fingerprint(block) if isinstance(source, FileSource) else source.fingerprint()


def read_block(source: Source, block: Block, wanted: Container[int] | None = None) -> Iterator[Read]:
    """Yield what became of the records of a block, of those in `wanted` only; None: of all."""
    if isinstance(source, FileSource):
        yield from source.read(block, wanted)
        return
    for number, record in enumerate(source):
        if wanted is None or number in wanted:
            yield Read(number, None, [record])


def _named_by_verb(example: Example) -> Example:
    """Return the example with the root verb of its instruction in the name of its task."""
    found = verb_and_noun(example.instruction)
    task = example.task.replace(f"{{{VERB_FIELD}}}", found[0] if found else NO_VERB)
    return replace(
        example, task=task, id=example_id(task, example.messages, example.tools, example.weight, example.form)
    )


def record_origin(fields: Any) -> str:
    """Return the origin that all examples made from one annotated record share, whatever asks for it."""
    return RECORD + fingerprint(fields)


def data_name(file: str) -> str:
    """Return the name of a data file without its endings: "boolq" for "data/boolq.jsonl.gz"."""
    path = Path(file)
    kind, compression = file_kind(path)
    return path.name[: len(path.name) - len(kind) - len(compression)]


def fill_in(pattern: str, fields: Mapping[str, Any], what: str) -> str:
    """Return `pattern` with each `{field}` replaced by the record's value, such as "p3/{template}".

    Raises:
        RecordError: When a field is missing or is no short text.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        found = fields.get(name)
        if isinstance(found, list | tuple) and len(found) == 1:
            found = found[0]
        if isinstance(found, bool) or not isinstance(found, str | int) or not str(found).strip():
            state = "is missing" if name not in fields else f"holds {found!r}, not a name"
            raise RecordError(f"field {name!r}, which names the {what}, {state}")
        return str(found).strip()

    return _FIELD.sub(value, pattern)


def chosen_names(known: Sequence[str], globs: Sequence[str], *, key: str, what: str) -> set[str]:
    """Return the names that globs choose; a glob after "!" takes names away.

    Args:
        known: All names.
        globs: Names or globs; without one that adds, all are chosen.
        key: The config key, for messages.
        what: What is named, in one word.

    Raises:
        UserError: When a glob matches none.
    """
    wanted = [n for n in globs if not n.startswith("!")] or ["*"]
    unwanted = [n[1:] for n in globs if n.startswith("!")]
    for pattern in (*wanted, *unwanted):
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UserError(
                f"{key}: no {what} is called {pattern!r}; there are {', '.join(map(repr, known))}.{nearest(pattern, known)}"
            )
    return {
        name
        for name in known
        if any(fnmatchcase(name, p) for p in wanted) and not any(fnmatchcase(name, p) for p in unwanted)
    }


def text_field(fields: Mapping[str, Any], name: str) -> str:
    """Return a required text field, or raise `RecordError` that says what stands there instead."""
    if name not in fields:
        present = ", ".join(list(map(str, fields))[:8])
        raise RecordError(f"field {name!r} is missing (the record has {present or 'no fields'})")
    value = fields[name]
    if not isinstance(value, str):
        raise RecordError(f"field {name!r} holds {kind_of(value)}, not text")
    return value


def optional_text(fields: Mapping[str, Any], name: str | None) -> str:
    """Return a text field that may be missing, null or unnamed; empty then."""
    return "" if name is None or fields.get(name) is None else text_field(fields, name)


def license_of(fields: Mapping[str, Any]) -> str | None:
    """Return the licence that a record names for itself, if it does."""
    value = fields.get("license")
    return value.strip() or None if isinstance(value, str) else None


def kind_of(value: object) -> str:
    """Name the JSON type of a value, for an error message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


def content_of(files: list[Path]) -> list[tuple[str, str]]:
    """Return (name below the common folder, xxh3) of each file."""
    return [(name, _part_checksum(Part(f))) for name, f in zip(names_of(files), files, strict=True)]


def names_of(files: list[Path]) -> list[str]:
    """Return the name of each file below their common folder."""
    if not files:
        return []
    root = Path(commonpath([f.resolve().parent for f in files]))
    return [f.resolve().relative_to(root).as_posix() for f in files]


def _bytes_of(part: Part) -> int:
    """Return the size of a part; rows of a table are a block of their own."""
    if part.end is None:
        return part.path.stat().st_size
    return LEAST_BYTES if file_kind(part.path)[0] in BINARY else part.end - part.start


def _part_checksum(part: Part) -> str:
    stat = part.path.stat()
    rows = f"{part.start}-{part.end} of " if part.end and file_kind(part.path)[0] in BINARY else ""
    start, end = (0, None) if rows else (part.start, part.end)
    return rows + _checksum(part.path.resolve(), start, end, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)
def _checksum(path: Path, start: int, end: int | None, size: int, mtime_ns: int) -> str:  # noqa: ARG001  size and time are the cache's key
    return checksum(path, start, end)
