"""Files of any tool with a row a record, named by its content id -> a value for each row of the facts, joined by DuckDB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sft_dist.config.data import DataConfig
from sft_dist.config.filters import ScoreRule
from sft_dist.core.errors import UserError, nearest
from sft_dist.selection.facts import BAD
from sft_dist.selection.joins import FETCHED_ROWS, quoted
from sft_dist.sources.files.data_files import LINES, TEXT, file_kind
from sft_dist.sources.files.data_files import data_files as found_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

ID = "id"
SCORES = "scores"  # folder in data.dir that `sft-dist score` writes to
LIST_IDS = 'list the ids of records with sft-dist query FOLDER "FROM records"'
_READERS = {
    ".parquet": "read_parquet({path})",
    ".csv": "read_csv({path}, header = true, delim = ',', quote = '\"', escape = '\"', all_varchar = true)",
    ".tsv": "read_csv({path}, header = true, delim = '\\t', quote = '', escape = '', all_varchar = true)",
    TEXT: "read_csv({path}, header = false, delim = '\\t', columns = {{'id': 'VARCHAR'}})",
    **dict.fromkeys((".json", *LINES), "read_json({path}{columns})"),
}
_COMPRESSIONS = ("", ".gz", ".zst")


@dataclass(frozen=True, kw_only=True, slots=True)
class IdFile:
    """What was found in a file of ids.

    Attributes:
        file: The path as the config has it.
        ids: Distinct ids in it.
        unknown: Of them, those that no record of the sources has.
        examples: Training examples that were looked up: those that the rules before keep.
        missing: Of them, those that have no value there.
    """

    file: str
    ids: int
    unknown: int
    examples: int
    missing: int


def scores_path(data: DataConfig, source: str) -> Path:
    """Return where `sft-dist score` puts the scores of a source."""
    return Path(data.dir) / SCORES / f"{source}.jsonl"


def files_by_id(data: DataConfig) -> dict[str, list[Path]]:
    """Return the files of each key that names some. Raises UserError where there are none."""
    filters = data.filters
    found = {"drop_ids": _files("drop_ids", filters.drop_ids)} if filters.drop_ids else {}
    return found | {f"scores.{n}": score_files(data, n, rule) for n, rule in filters.scores.items()}


def score_files(data: DataConfig, name: str, rule: ScoreRule) -> list[Path]:
    """Return the files of a score."""
    if rule.file is not None:
        return _files(f"scores.{name}", rule.file)
    found = sorted((Path(data.dir) / SCORES).glob("*.jsonl"))
    if not found:
        raise UserError(
            f"data.filters.scores.{name} needs {Path(data.dir) / SCORES}, which holds no scores, so no example can be judged; score the "
            f"examples first (sft-dist score CONFIG), or name the file of another tool (data.filters.scores.{name}.file)"
        )
    return found


def _files(key: str, path: str) -> list[Path]:
    try:
        files = found_files(path)
    except UserError as error:
        raise UserError(f"data.filters.{key}: {error}") from None
    for file in files:
        kind, compression = file_kind(file)
        if kind not in _READERS or compression not in _COMPRESSIONS:
            raise UserError(
                f"data.filters.{key}: {file} is of a kind that cannot be joined by id; use {', '.join(_READERS)} "
                "(all but Parquet also with .gz or .zst)"
            )
    return files


class Values(NamedTuple):
    """What the files of one key hold.

    Attributes:
        of_rows: float64 [rows of the facts], NaN where they have no value.
        ids: Distinct ids.
        unknown: Of them, those that no record has.
    """

    of_rows: NDArray[np.float64]
    ids: int
    unknown: int


def join_ids(
    engine: DuckDBPyConnection, key: str, files: Sequence[Path], column: str | None, rows: int
) -> Values:
    """Return the value of each row of the facts.

    Args:
        engine: Has the view `facts` (`joins.open_facts`).
        key: Of data.filters, for errors.
        files: With a column `id`.
        column: Of numbers; None: the value is 1 for every id that is there.
        rows: Of the facts.

    Raises:
        UserError: A file is damaged, lacks a column, holds what is no id or no number, or two values for one id.
    """
    where = f"data.filters.{key}"
    engine.execute("CREATE OR REPLACE TEMP TABLE given (file VARCHAR, id VARCHAR, value DOUBLE)")
    for file in files:
        if file.stat().st_size:  # `sft-dist score` leaves one of a source without training examples
            _load(engine, where, file, column)
    digits = "'[0-9a-fA-F]{32}'"
    if bad := _first(
        engine, f"file, id FROM given WHERE id IS NULL OR NOT regexp_full_match(id, {digits}) ORDER BY ALL"
    ):
        raise UserError(
            f"{where}: {bad[0]} holds the id {bad[1]!r}, which is no content id (32 hexadecimal digits), so it names no record; {LIST_IDS}"
        )
    engine.execute(
        "CREATE OR REPLACE TEMP TABLE by_id AS SELECT CAST('0x' || substr(id, 1, 16) AS UBIGINT) AS id_high, "
        "CAST('0x' || substr(id, 17) AS UBIGINT) AS id_low, min(id) AS id, min(value) AS value, "
        "count(DISTINCT value) > 1 OR count(value) NOT IN (0, count(*)) AS doubtful FROM given GROUP BY ALL"
    )
    if doubtful := _first(engine, "id FROM by_id WHERE doubtful ORDER BY id"):
        raise UserError(
            f"{where}: the id {doubtful[0]} has several values of {column!r} in {', '.join(map(str, files[:3]))}, so it is unclear which "
            "one counts; keep one row an id"
        )
    known = f"(id_high, id_low) IN (SELECT (id_high, id_low) FROM facts WHERE kind <> {BAD})"
    ids, unknown = _first(engine, f"count(*), count(*) FILTER (NOT {known}) FROM by_id") or (0, 0)
    out = np.full(rows, np.nan)
    found: Any = engine.sql(
        f"SELECT place, value FROM facts JOIN by_id USING (id_high, id_low) WHERE kind <> {BAD} AND value IS NOT NULL"
    ).to_arrow_reader(FETCHED_ROWS)
    for batch in found:
        out[batch.column(0).to_numpy()] = batch.column(1).to_numpy()
    return Values(out, ids, unknown)


def _load(engine: DuckDBPyConnection, where: str, file: Path, column: str | None) -> None:
    """Add the rows of a file to the table `given`."""
    import duckdb

    reader, path = _READERS[file_kind(file)[0]], quoted(str(file))
    wanted = [ID] if column is None else [ID, column]
    text = ", ".join(
        f"{quoted(name)}: 'VARCHAR'" for name in wanted
    )  # whatever a sample of the rows looks like
    value = "1" if column is None else f"nullif(CAST({_name(column)} AS DOUBLE), 'nan')"
    try:
        described = engine.execute(f"DESCRIBE SELECT * FROM {reader.format(path=path, columns='')}")
        names = [str(row[0]) for row in described.fetchall()]
        if absent := next((name for name in wanted if name not in names), None):
            raise UserError(
                f"{where}: {file} has no column {absent!r}, so its rows cannot be joined; it has {', '.join(names[:20])}."
                f"{nearest(absent, names)}"
            )
        table = reader.format(path=path, columns=f", columns = {{{text}}}")
        engine.execute(f"INSERT INTO given SELECT {path}, CAST({_name(ID)} AS VARCHAR), {value} FROM {table}")
    except duckdb.OutOfMemoryException:
        raise
    except duckdb.Error as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(
            f"{where}: {file} cannot be read ({reason}), so what is kept would be wrong; mend the file, or name another column"
        ) from None


def _name(column: str) -> str:
    """Return the name of a column as SQL writes it."""
    return '"' + column.replace('"', '""') + '"'


def _first(engine: DuckDBPyConnection, selected: str) -> tuple[Any, ...] | None:
    return next(iter(engine.execute(f"SELECT {selected} LIMIT 1").fetchall()), None)
