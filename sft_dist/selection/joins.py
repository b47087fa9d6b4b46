"""Facts of all blocks -> which rows have something in common with another one; by DuckDB, in bounded memory.

These are the rows that duplicates can be among. Which of them is kept is decided by one pass in order (across_records);
nothing here depends on the order of rows, on an engine's hash or on the number of its threads.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_dist.core.errors import UserError
from sft_dist.selection.facts import BAD, BlockFacts, facts_file

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

GIB = 1 << 30
FEW_ROWS = 1 << 18  # up to which all bands are looked at together
FETCHED_ROWS = 1 << 17  # that are taken from the engine at a time


class Common(NamedTuple):
    """Rows of all blocks, laid end to end.

    Attributes:
        equal: [rows] Whether another record of the source says the same; None: not asked.
        banded: [rows] Whether it shares a band of near duplicates with another one; None: not asked.
    """

    equal: NDArray[np.bool_] | None
    banded: NDArray[np.bool_] | None


def common_rows(
    blocks: Sequence[BlockFacts],
    *,
    equal: bool,
    bands: int,
    across_sources: bool,
    memory_gb: float,
    threads: int,
    folder: Path,
) -> Common:
    """Find the rows that share a key with another row.

    Args:
        blocks: The facts, in order; those of a source follow one another.
        equal: Whether to look for equal content.
        bands: Bands of a sketch; 0: near duplicates are not looked for.
        across_sources: Whether near duplicates may lie in two sources.
        memory_gb: Memory of the engine, in GiB; what needs more goes to disk.
        threads: Of the engine.
        folder: Where it puts that.

    Raises:
        UserError: The memory or the disk is too small for it.
    """
    if not equal and not bands:
        return Common(None, None)
    rows = sum(b.rows for b in blocks)
    with open_facts(blocks, memory_gb=memory_gb, threads=threads, folder=folder) as engine:

        def repeated(keys: str, query: str) -> NDArray[np.bool_]:
            """Return which rows share their keys with another one; the query gives the keys and `place`."""
            out = np.zeros(rows, np.bool_)
            found = engine.sql(
                f"WITH keyed AS ({query}), several AS (SELECT {keys} FROM keyed GROUP BY ALL HAVING count(*) > 1) "
                f"SELECT place FROM keyed SEMI JOIN several USING ({keys})"
            )
            reader: Any = found.to_arrow_reader(FETCHED_ROWS)
            for batch in reader:
                out[batch.column(0).to_numpy()] = True
            return out

        same = None
        if equal:
            query = f"SELECT place, source, equal_high, equal_low FROM facts WHERE kind <> {BAD}"
            same = repeated("source, equal_high, equal_low", query)
        banded = np.zeros(rows, np.bool_)
        within = "0" if across_sources else "source"
        together = bands if rows < FEW_ROWS else 1
        for first in range(0, bands, together or 1):
            banded |= repeated(
                "within, has_input, code",
                " UNION ALL ".join(
                    f"SELECT place, {within} AS within, has_input AND {own} AS has_input, {name}_{i} AS code FROM facts "
                    f"WHERE {name}_{i} IS NOT NULL"
                    for i in range(first, first + together)
                    for name, own in (("own", "true"), ("whole", "false"))
                ),
            )
        return Common(same, banded if bands else None)


@contextmanager
def _named(rows: int, memory_gb: float, folder: Path) -> Iterator[None]:
    """Say what of the engine's errors a user can mend."""
    import duckdb

    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(
            f"{rows:,} records cannot be joined (duplicates, scores by id) with data.memory_gb={memory_gb:g} and the disk of {folder} ({reason}), so "
            "nothing was selected; raise data.memory_gb, or make room on that disk, and run the same command again"
        ) from None


@contextmanager
def open_facts(
    blocks: Sequence[BlockFacts], *, memory_gb: float, threads: int, folder: Path
) -> Iterator[DuckDBPyConnection]:
    """Open an engine with the view `facts`: every row of every block, its `place` counted over all of them.

    Args:
        blocks: The facts, in order; those of a source follow one another.
        memory_gb: Memory of the engine, in GiB; what needs more goes to disk.
        threads: Of the engine.
        folder: Where it puts that.

    Raises:
        UserError: The memory or the disk is too small for what is asked.
    """
    import duckdb

    names = list(dict.fromkeys(b.source for b in blocks))
    starts = np.cumsum([0, *(b.rows for b in blocks)])[:-1]
    places = pa.table(
        {
            "filename": [facts_file(b) for b in blocks],
            "start": pa.array(starts, pa.int64()),
            "source": pa.array([names.index(b.source) for b in blocks], pa.int32()),
        }
    )
    with ExitStack() as stack:
        stack.enter_context(_named(sum(b.rows for b in blocks), memory_gb, folder))
        folder.mkdir(parents=True, exist_ok=True)
        spill = stack.enter_context(tempfile.TemporaryDirectory(prefix=".spill-", suffix=".tmp", dir=folder))
        settings: dict[str, str | int | float | list[str]] = {
            "memory_limit": f"{int(memory_gb * GIB)}B",
            "threads": threads,
            "temp_directory": spill,
        }
        engine = stack.enter_context(
            duckdb.connect(":memory:", config={**settings, "preserve_insertion_order": False})
        )
        engine.register("places", places)
        files = ", ".join(quoted(facts_file(b)) for b in blocks)
        engine.execute(
            f"CREATE VIEW facts AS SELECT start + file_row_number AS place, source, f.* FROM "
            f"read_parquet([{files}], filename=true, file_row_number=true) f JOIN places USING (filename)"
        )
        yield engine


def quoted(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"
