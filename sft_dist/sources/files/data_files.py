"""Data files -> records: JSON in any layout, Parquet, Arrow, CSV and TSV, lines of text, plain or compressed, streamed.

A record that cannot be read becomes a `BadRecord` with file and line; reading goes on after it. A file that cannot
be read at all (missing, unknown kind, broken compression, not Parquet) is a `UserError`.
"""

from __future__ import annotations

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import math
import zlib
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded
from sft_dist.core.records import BadRecord
from sft_dist.sources.files.blocks import Part
from sft_dist.sources.files.json_array import Damaged, read_array, read_values
from sft_dist.sources.files.json_record import (
    MAX_RECORD_BYTES,
    TOO_LONG,
    NotTextError,
    as_object,
    decoded,
    has_lone_surrogate,
    parse_object,
)

TEXT_CHARS = 200  # of a bad record that quarantine keeps
BATCH_ROWS = 1024  # Parquet rows that are Python objects at a time

LINES = (".jsonl", ".ndjson")
TABLES = {".csv": ",", ".tsv": "\t"}
BINARY = (".parquet", ".arrow")  # tables that compress themselves
TEXT = ".txt"  # a record a line; only where it is named, for folders hold licences and notes too
KINDS = (".json", *LINES, *TABLES, *BINARY, TEXT)
SAVED = ("state.json", "dataset_info.json")  # what `datasets` writes beside its tables
SPLITS = "dataset_dict.json"  # in a folder of several splits
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class _Csv(csv.excel):
    """Quotes as in RFC 4180; a wrong quote is an error."""

    strict = True


class _Tsv(csv.excel_tab):
    """No quoting: a quotation mark is text."""

    quoting = csv.QUOTE_NONE


class RawRecord(NamedTuple):
    """One record as it lies in its file. `line` counts from 1; in Parquet it is the number of the row."""

    file: str
    line: int
    fields: dict[str, Any]


def file_kind(path: Path) -> tuple[str, str]:
    """Return (kind, compression) by the file's name, such as (".jsonl", ".gz"); ("", "") when it is not a data file."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    kind = suffixes[-1] if suffixes else ""
    if kind not in KINDS or (kind in BINARY and compression):
        return "", ""
    return kind, compression


def data_files(path: str) -> list[Path]:
    """Return the data files that `path` names (one file, a folder at any depth, or a glob), in a stable order.

    Raises:
        UserError: When nothing is there, or nothing of a kind that we read.
    """
    if not path.strip():
        raise UserError("the path is empty, so there is nothing to read; name a file, a folder or a glob")
    place = expanded(path)
    known = ", ".join(KINDS)
    if place.is_file():
        if not file_kind(place)[0]:
            raise UserError(
                f"{path} is not a kind of file that we read, so it gives no records; "
                f"use {known} (all but Parquet and Arrow also with {', '.join(COMPRESSIONS)})"
            )
        return [place]
    if place.is_dir():
        found = [
            p
            for p in place.rglob("*")
            if not any(q.startswith(".") for q in p.relative_to(place).parts) and p.name not in SAVED
        ]
        if (place / SPLITS).is_file():
            raise UserError(
                f"{path} holds the splits of a saved dataset, which must not be read as one; name the folder of a split, or use "
                "kind=hub with split"
            )
    elif glob.has_magic(str(place)):
        found = [Path(p) for p in glob.glob(str(place), recursive=True)]  # noqa: PTH207  Path.glob takes no absolute pattern
    else:
        raise UserError(f"{path} does not exist, so there is nothing to read; check the path{_beside(place)}")
    wanted = KINDS if file_kind(place)[0] == TEXT else KINDS[:-1]
    files = sorted((p for p in found if p.is_file() and file_kind(p)[0] in wanted), key=Path.as_posix)
    if not files:
        others = sorted({p.suffix or p.name for p in found if p.is_file()})
        nothing = "it is empty" if place.is_dir() else "nothing matches it"
        seen = f" (it holds {', '.join(others[:8])})" if others else f" ({nothing})"
        raise UserError(f"{path} holds no data file{seen}, so there is nothing to read; we read {known}")
    return files


def read_records(
    files: Sequence[Path | Part],
    *,
    columns: Sequence[str] | None = None,
    unescape: bool = False,
    texts: bool = False,
) -> Iterator[RawRecord | BadRecord]:
    """Yield the records of `files`, in order.

    Args:
        files: Data files, as `data_files` returns them, or parts of them.
        columns: Column names of CSV and TSV files that have no header line.
        unescape: In CSV and TSV fields, a backslash with n or t stands for a line end or a tab.
        texts: A JSON string is a record too: its field `text`, as a line of a text file is.

    Raises:
        UserError: When a file cannot be opened or its compression is broken.
    """
    yield from (r for r in read_wanted(files, None, columns=columns, unescape=unescape, texts=texts) if r)


def read_wanted(
    files: Sequence[Path | Part],
    wanted: Container[int] | None,
    *,
    columns: Sequence[str] | None = None,
    unescape: bool = False,
    texts: bool = False,
) -> Iterator[RawRecord | BadRecord | None]:
    """Yield the records of `files`, in order, and None for one whose number, from 0, is not in `wanted` and that was not parsed.

    Lines that are not wanted are passed over; elements of other layouts are read all the same, and may come unasked.
    """
    first = 0
    for file in files:
        part = file if isinstance(file, Part) else Part(file)
        kind, _ = file_kind(part.path)
        found: Iterator[RawRecord | BadRecord | None]
        if kind in BINARY:
            found = _read_columns(part, kind)
        elif kind in TABLES:
            found = _read_table(part.path, TABLES[kind], columns, unescape=unescape)
        elif kind == TEXT:
            found = _read_text(part, wanted, first)
        elif (layout := _layout(part.path, texts=texts)) == "lines":
            found = _read_lines(part, wanted, first, texts=texts)
        else:
            found = _VALUES[layout](part.path, texts=texts)
        for record in found:
            yield record
            first += 1


def cut_file(path: Path, step: int, *, texts: bool = False) -> list[Part]:
    """Cut a file into parts of about `step` bytes that can be read by themselves: plain lines, and Parquet between row groups.

    Args:
        path: The file. One of another layout, or compressed, is one part.
        step: Bytes.
        texts: As in `read_records`.
    """
    kind, compression = file_kind(path)
    size = path.stat().st_size
    if size <= step or compression:
        return [Part(path)]
    if kind == ".parquet":
        return _cut_groups(path, step)
    lines = kind == TEXT or (kind not in (*TABLES, *BINARY) and _layout(path, texts=texts) == "lines")
    if not lines:
        return [Part(path)]
    cuts = [0]
    with path.open("rb") as stream:
        for near in range(step, size, step):
            stream.seek(near - 1)
            while (read := stream.readline(MAX_RECORD_BYTES)) and not read.endswith(b"\n"):
                pass
            if cuts[-1] < stream.tell() < size:
                cuts.append(stream.tell())
    return [Part(path, start, end) for start, end in zip(cuts, [*cuts[1:], size], strict=True)]


def _cut_groups(path: Path, step: int) -> list[Part]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        about = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return [Part(path)]  # reading it says what is wrong
    out, row, start, size = [], 0, 0, 0
    for group in range(about.num_row_groups):
        size += about.row_group(group).total_byte_size
        row += about.row_group(group).num_rows
        if size >= step or group + 1 == about.num_row_groups:
            out.append(Part(path, start, row))
            start, size = row, 0
    return out or [Part(path)]


@contextmanager
def open_data(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or compressed file for reading bytes; what the decompressor refuses is a `UserError`."""
    _refuse_stand_in(path)
    try:
        with _open(path) as stream:
            if file_kind(path)[0] not in BINARY and stream.peek(2)[:2] in _UTF16:
                raise UserError(
                    f"{path} is UTF-16, and we read UTF-8, so none of it could be read; convert it: iconv -f UTF-16 -t UTF-8"
                )
            yield stream
    except UserError:
        raise
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read to its end ({error}), so its records would be incomplete; fetch or write the file again"
        ) from error


def _refuse_stand_in(path: Path) -> None:
    """Refuse what a clone or a download left in place of the data.

    Raises:
        UserError: For a pointer of Git LFS or git-annex, or a web page.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(200).lstrip().lower()
    except OSError:
        return  # opening it says what is wrong
    if head.startswith(b"version https://git-lfs") or b"/annex/objects/" in head:
        raise UserError(
            f"{path} is a pointer of Git LFS or git-annex, not the data, so there are no records; fetch them in its clone: git lfs pull, or "
            "git annex get"
        )
    if head.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{path} is a web page, not data (a download that asked for a login, perhaps), so there are no records; fetch the file again"
        )


def _open(path: Path) -> io.BufferedReader:
    compression = file_kind(path)[1]
    if compression == ".gz":
        return cast("io.BufferedReader", gzip.open(path))
    if compression == ".bz2":
        return cast("io.BufferedReader", bz2.open(path))
    if compression == ".xz":
        return cast("io.BufferedReader", lzma.open(path))
    if compression == ".zst":
        import pyarrow as pa

        return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def _bad(path: Path, line: int | None, reason: str, data: bytes | str) -> BadRecord:
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    return BadRecord(file=str(path), line=line, reason=reason, text=text[:TEXT_CHARS])


def _lines(stream: IO[bytes], start: int = 0, end: int | None = None) -> Iterator[bytes | None]:
    """Yield the lines of a stream without their ends, None for one that is longer than a record may be.

    Of a part only those that begin at bytes `start` to `end` - 1; a line begins at `start`.
    """
    place = stream.seek(start) if start else 0
    while (end is None or place < end) and (raw := stream.readline(MAX_RECORD_BYTES + 1)):
        line = raw if place else raw.removeprefix(_BOM)
        place += len(raw)
        rest = raw
        while len(raw) > MAX_RECORD_BYTES and rest and not rest.endswith(b"\n"):
            rest = stream.readline(MAX_RECORD_BYTES)
            place += len(rest)
        yield line.rstrip(b"\r\n") if len(raw) <= MAX_RECORD_BYTES else None


def _read_text(
    part: Part, wanted: Container[int] | None, first: int
) -> Iterator[RawRecord | BadRecord | None]:
    path, record = part.path, first - 1
    with open_data(path) as stream:
        for number, raw in enumerate(_lines(stream, part.start, part.end), part.line):
            try:
                line = None if raw is None else decoded(raw)
            except NotTextError as error:
                record += 1
                yield _bad(path, number, str(error), raw or b"")
                continue
            if line is None:
                record += 1
                yield _bad(path, number, TOO_LONG, "")
            elif line.strip():
                record += 1
                yield (
                    RawRecord(str(path), number, {"text": line})
                    if wanted is None or record in wanted
                    else None
                )


def _layout(path: Path, *, texts: bool) -> str:
    """Return how a JSON file lays out its records, whatever its name says: `lines`, an `array`, or `values` of several lines."""
    with open_data(path) as stream:
        filled = (line for line in _lines(stream) if line is None or line.strip())
        first = next(filled, None)
        if first is None:
            return "lines"
        head = first.lstrip()
        whole = parse_object(first, texts=texts)
        if isinstance(whole, dict):
            return "lines"
        second = next(filled, None)
        if head.startswith(b"["):
            return "lines" if second is not None and _is_json(first) else "array"
        if second is not None and isinstance(parse_object(second, texts=texts), dict):
            return "lines"
    return "values" if head.startswith(b"{") else "lines"


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _read_lines(
    part: Part, wanted: Container[int] | None, first: int, *, texts: bool
) -> Iterator[RawRecord | BadRecord | None]:
    path, record = part.path, first - 1
    with open_data(path) as stream:
        for number, data in enumerate(_lines(stream, part.start, part.end), part.line):
            if data is None:
                record += 1
                yield _bad(path, number, TOO_LONG, "")
            elif data.strip():
                record += 1
                if wanted is not None and record not in wanted:
                    yield None
                    continue
                value = parse_object(data, texts=texts)
                if isinstance(value, str):
                    yield _bad(path, number, value, data)
                else:
                    yield RawRecord(str(path), number, value)


def _read_array(path: Path, *, texts: bool) -> Iterator[RawRecord | BadRecord]:
    with open_data(path) as stream:
        yield from _elements(path, read_array(stream), texts=texts)


def _read_values(path: Path, *, texts: bool) -> Iterator[RawRecord | BadRecord]:
    with open_data(path) as stream:
        yield from _elements(path, read_values(stream), texts=texts)


def _elements(
    path: Path, elements: Iterator[tuple[int, Any | Damaged]], *, texts: bool
) -> Iterator[RawRecord | BadRecord]:
    for line, value in elements:
        found = value.reason if isinstance(value, Damaged) else as_object(value, texts=texts)
        if isinstance(found, str):
            text = value.text if isinstance(value, Damaged) else json.dumps(value)
            yield _bad(path, line, found, text)
        else:
            yield RawRecord(str(path), line, found)


_VALUES = {"array": _read_array, "values": _read_values}


def _read_table(
    path: Path, delimiter: str, columns: Sequence[str] | None, *, unescape: bool
) -> Iterator[RawRecord | BadRecord]:
    """Read CSV or TSV, whose columns the first line names unless `columns` does."""
    csv.field_size_limit(MAX_RECORD_BYTES)  # the default refuses fields over 131,072 characters
    dialect = _Csv if delimiter == "," else _Tsv
    names = _distinct(list(columns), path) if columns else None
    with open_data(path) as stream:
        # surrogateescape keeps a byte that is no UTF-8 recognisable, so that only its record is bad
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        long: list[int] = []  # lines, from 1, that are longer than a record may be
        rows = csv.reader(_short_lines(text, long), dialect)
        while True:
            line = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield _bad(path, line, f"not valid CSV: {error} (lines {line} to {rows.line_num})", "")
                if "end of data" in str(error):  # each of these lines was a record
                    for lost in range(line + 1, rows.line_num + 1):
                        yield _bad(
                            path, lost, f"inside the quote that line {line} opens and nothing closes", ""
                        )
                continue
            if long and long[-1] >= line:
                yield _bad(path, line, TOO_LONG, "")
                continue
            if not row:
                continue
            if names is None:
                names = _distinct(row, path)
                continue
            joined = delimiter.join(row)
            if len(row) != len(names):
                yield _bad(
                    path, line, f"{len(row)} columns instead of {len(names)} ({', '.join(names)})", joined
                )
            elif "\0" in joined:
                yield _bad(
                    path, line, f"NUL byte at character {joined.index(chr(0)) + 1} of the record", joined
                )
            elif has_lone_surrogate(joined):
                yield _bad(path, line, "invalid UTF-8", joined.encode("utf-8", "surrogateescape"))
            else:
                cells = [c.replace("\\n", "\n").replace("\\t", "\t") for c in row] if unescape else row
                yield RawRecord(str(path), line, dict(zip(names, cells, strict=True)))


def _short_lines(text: io.TextIOWrapper, long: list[int]) -> Iterator[str]:
    """Yield the lines of a table; of one that is too long only whether it opens or closes a quote, its number in `long`."""
    number = 0
    while line := text.readline(MAX_RECORD_BYTES):
        number += 1
        if len(line) == MAX_RECORD_BYTES and not line.endswith("\n"):
            long.append(number)
            quotes = line.count('"')
            while not line.endswith("\n") and (line := text.readline(MAX_RECORD_BYTES)):
                quotes += line.count('"')
            line = '"' * (quotes % 2) + "\n"
        yield line


def _distinct(names: list[str], path: Path) -> list[str]:
    """Return column names; those that are empty (Excel's trailing commas) may repeat: nothing reads them."""
    if double := next((n for n in names if n.strip() and names.count(n) > 1), None):
        raise UserError(f"{path} has two columns named {double!r}, so one of them would be lost; rename one")
    return names


def _read_columns(part: Part, kind: str) -> Iterator[RawRecord | BadRecord]:
    """Read a table of columns: Parquet, or Arrow as a file or as the stream that `save_to_disk` writes."""
    import pyarrow as pa

    path, row = part.path, part.start
    _refuse_stand_in(path)
    try:
        for batch in _batches(part, kind):
            for fields in batch.to_pylist():
                row += 1
                found = as_object(fields, table=True)
                if isinstance(found, str):
                    yield _bad(path, row, found, repr(fields))
                else:
                    yield RawRecord(str(path), row, found)
    except (pa.ArrowException, OSError) as error:
        name = "Parquet" if kind == ".parquet" else "Arrow"
        raise UserError(
            f"{path} cannot be read as {name} after row {row} ({error}), so its records would be incomplete; "
            "fetch or write the file again"
        ) from error


def _batches(part: Part, kind: str) -> Iterator[Any]:
    """Yield the rows of a table, a few at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == ".parquet":
        with pq.ParquetFile(part.path) as file:
            ends = list(accumulate(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)))
            last = part.end if part.end is not None else math.inf
            groups = [g for g, end in enumerate(ends) if part.start < end <= last]
            yield from file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups)
        return
    with pa.memory_map(str(part.path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else reader
        for batch in batches:
            yield from (batch.slice(at, BATCH_ROWS) for at in range(0, batch.num_rows, BATCH_ROWS))


def _beside(place: Path) -> str:
    """Name what lies where `place` was looked for."""
    if not place.parent.is_dir():
        return f" ({place.parent} does not exist either)"
    names = sorted(p.name for p in place.parent.iterdir() if not p.name.startswith("."))
    return (
        f" ({place.parent} holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''})" if names else ""
    )
