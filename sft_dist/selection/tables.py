"""Tables on disk, made once: rows -> <name>.parquet, then <name>.json, which says that it is whole and what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from sft_dist.core.errors import UserError
from sft_dist.core.files import atomic_path, checksum, read_object, write_checked

GROUP_ROWS = 1 << 14  # rows that are in memory at a time, written or read


class TableWriter:
    """Writes a table row by row; it counts from `close` on, and is removed with a `with` that ends before."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        self._columns: list[list[Any]] = [[] for _ in schema]
        self._stack = ExitStack()
        self.rows = 0

    def __enter__(self) -> Self:
        """Open the file, aside."""
        with ExitStack() as stack:
            path_of(self._path, ".json").unlink(missing_ok=True)  # it speaks of the table that is replaced
            aside = stack.enter_context(atomic_path(path_of(self._path, ".parquet")))
            self._file = stack.enter_context(pq.ParquetWriter(aside, self._schema, compression="zstd"))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove a table that was not closed."""
        self._stack.__exit__(kind, value, trace)

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Add rows: a value for each column."""
        for column, values in zip(self._columns, zip(*rows, strict=True), strict=bool(rows)):
            column.extend(values)
        self.rows += len(rows)
        if len(self._columns[0]) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        arrays = [
            pa.array(values, field.type) for values, field in zip(self._columns, self._schema, strict=True)
        ]
        self._file.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._columns = [[] for _ in self._schema]

    def close(self, about: Mapping[str, Any]) -> None:
        """Finish the table; `about` (JSON-ready) comes back from `read_about`."""
        if self._columns[0]:
            self._flush()
        self._stack.close()
        digest = checksum(path_of(self._path, ".parquet"))
        write_checked(path_of(self._path, ".json"), {**about, "rows": self.rows, "content": digest})


def path_of(path: Path, ending: str) -> Path:
    """Return one of the two files of a table."""
    return path.with_name(path.name + ending)


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what was said of a table when it was closed; None where it is absent, torn or altered."""
    try:
        about = read_object(path_of(path, ".json"), "", {"rows": int, "content": str})
        whole = checksum(path_of(path, ".parquet")) == about["content"]
    except (UserError, OSError):
        return None
    return about if whole else None


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a table, at most `GROUP_ROWS` at a time."""
    with pq.ParquetFile(path_of(path, ".parquet")) as file:
        yield from file.iter_batches(
            batch_size=GROUP_ROWS, columns=None if columns is None else list(columns)
        )


def lists_of(column: pa.Array) -> list[Any]:
    """Return the lists of a column, None where there is none; most columns of lists are empty, which is told at once."""
    if column.null_count == len(column) or (column.null_count == 0 and not len(column.flatten())):
        return [None if column.null_count else []] * len(column)
    found: list[Any] = column.to_pylist()
    return found
