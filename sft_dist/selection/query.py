"""A question in SQL about what became of every record -> its answer, by DuckDB over the facts of a prepared data folder.

The view `records` has a row a record: source, number in it, `outcome` (trained, evaluated, dropped, unreadable, prompt) and
what is known of it (`facts.COLUMNS`). It holds no text: ids lead to `eval/` and `rejects/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sft_dist.core.errors import UserError
from sft_dist.core.files import read_object
from sft_dist.selection.facts import COLUMNS, FOLDER
from sft_dist.selection.files import STATE
from sft_dist.selection.joins import quoted
from sft_dist.selection.tables import path_of

OUTCOMES = ("trained", "evaluated", "dropped", "unreadable", "prompt")  # by code (files.TRAIN, ...)
FETCHED_ROWS = 1000


def query(folder: Path, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """Answer a question about the records of a prepared data folder.

    Args:
        folder: A data folder, or the folder of a run, whose data is meant.
        sql: One statement.

    Returns:
        The names of the columns, and the rows.

    Raises:
        UserError: The folder was not prepared, or the statement cannot be answered.
    """
    import duckdb

    data = _data_folder(folder)
    engine = duckdb.connect(":memory:")
    try:
        _make_views(engine, data)
        if (found := engine.execute(sql)) is None:
            raise UserError("there is no statement, so there is nothing to answer; see docs/data.md")
        names = [column[0] for column in found.description or ()]
    except duckdb.Error as error:
        engine.close()
        reason = " ".join(str(error).split("\n\n")[0].split())
        raise UserError(
            f"the question cannot be answered ({reason}); mend the SQL, see docs/data.md"
        ) from None
    except UserError:
        engine.close()
        raise

    def rows() -> Iterator[tuple[Any, ...]]:
        with closing(engine):
            while some := found.fetchmany(FETCHED_ROWS):
                yield from some

    return names, rows()


def _data_folder(folder: Path) -> Path:
    """Return the data folder that is meant."""
    if (folder / STATE).is_file():
        return folder
    config = folder / "config.json"
    if config.is_file():
        try:
            data = Path(json.loads(config.read_bytes())["data"]["dir"])
        except (ValueError, KeyError, TypeError, RecursionError):
            raise UserError(
                f"{config} is no config of a run, so its data is unknown; name the data folder"
            ) from None
        if (data / STATE).is_file():
            return data
        folder = data
    raise UserError(f"{folder} holds no {STATE}, so there is nothing to ask about; run: sft-dist prepare")


def _make_views(engine: Any, data: Path) -> None:
    import duckdb

    remedy = f"remove {data / STATE} and run sft-dist prepare, which makes anew what is not whole"
    state = read_object(data / STATE, remedy, {"sources": dict})
    try:
        _fill_views(engine, data, state, remedy)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, EOFError, OSError, duckdb.Error) as error:
        reason = str(error).split("\n", 1)[0] or type(error).__name__
        raise UserError(f"{data} is damaged ({reason}), so its records are unknown; {remedy}") from None


def _fill_views(engine: Any, data: Path, state: dict[str, Any], remedy: str) -> None:
    files: list[str] = []
    blocks: dict[str, list[Any]] = {"filename": [], "source": [], "first": []}
    outcomes: list[pa.Table] = []
    for name, selection in state["sources"].items():
        first = 0
        for key, rows in selection["blocks"]:
            path = path_of(data / FOLDER / name / key, ".parquet")
            if not path.is_file():
                raise UserError(f"{path} is missing, so the records of {name} are unknown; {remedy}")
            files.append(str(path))
            for column, value in (("filename", str(path)), ("source", name), ("first", first)):
                blocks[column].append(value)
            first += rows
        codes = np.load(data / f"selection-{name}.npy", allow_pickle=False)
        words = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int8()), pa.array(OUTCOMES))
        names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(codes), np.int8)), pa.array([name]))
        outcomes.append(
            pa.table({"source": names.cast(pa.string()), "record": np.arange(len(codes)), "outcome": words})
        )
    engine.register("blocks", pa.table(blocks))
    engine.register("outcomes", pa.concat_tables(outcomes, promote_options="default"))
    columns = ", ".join(f"f.{name}" for name in COLUMNS if name not in ("id_high", "id_low", "kind"))
    listed = ", ".join(map(quoted, files))
    engine.execute(
        "CREATE VIEW records AS SELECT b.source, b.first + f.file_row_number AS record, o.outcome, "
        f"format('{{:016x}}{{:016x}}', f.id_high, f.id_low) AS id, {columns} "
        f"FROM read_parquet([{listed}], filename=true, file_row_number=true) f JOIN blocks b USING (filename) "
        "JOIN outcomes o ON o.source = b.source AND o.record = b.first + f.file_row_number"
    )
