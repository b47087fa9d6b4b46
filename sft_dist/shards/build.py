"""Shards -> a whole store: what is finished, what is missing, the index, the manifest.

Every file is written aside, flushed and renamed; a shard counts only with its completion record, a store only
with its manifest. So a killed build opens as nothing, and a relaunch does only the shards that are missing.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sft_dist.core import files
from sft_dist.core.errors import UserError
from sft_dist.core.locks import take_lock
from sft_dist.shards import format as layout
from sft_dist.shards.format import ShardRecord


def finished_shards(folder: Path, key: Mapping[str, Any]) -> dict[int, ShardRecord]:
    """Return the records of the shards that lie whole on disk and were built for `key`, by shard number."""
    fingerprint = files.fingerprint(key)
    out = {}
    for path in sorted(folder.glob("shard-*.json")):
        record = layout.read_record(path)
        if record is None or record.key != fingerprint:
            continue
        file = folder / record.file
        if file.is_file() and file.stat().st_size == record.bytes:
            out[record.shard] = record
    return dict(sorted(out.items()))


def open_build(folder: Path, key: Mapping[str, Any]) -> dict[int, ShardRecord]:
    """Begin or continue a build: a manifest of another key is removed, finished shards of this key are returned.

    Safe to call from every process of a build at the same time: nothing but an outdated manifest is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not is_whole(folder, key):
        layout.remove_manifest(folder)
    return finished_shards(folder, key)


def is_whole(folder: Path, key: Mapping[str, Any]) -> bool:
    """Return whether the folder holds a closed store of this key (its files are checked when it is opened)."""
    manifest = folder / layout.MANIFEST
    if not manifest.is_file():
        return False
    try:
        fields = files.read_object(manifest, "", {"format": int, "key": dict})
    except UserError:
        return False
    return bool(fields["format"] == layout.FORMAT_VERSION and not layout.key_changes(fields["key"], key))


def finish_store(
    folder: Path,
    *,
    key: Mapping[str, Any],
    tasks: Sequence[str],
    sources: Sequence[str],
    shards: Collection[int] | None = None,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Close a store: merge the index from its finished shards, remove leftovers, write the manifest last.

    Args:
        folder: The store.
        key: Flat, JSON-ready parts that stand for everything the content depends on (input, tokenizer, …).
        tasks: Task names by code.
        sources: Source names by code.
        shards: Numbers of the shards that make the store; None: all that are finished.
        info: Further facts for the manifest, such as the renderer's options.

    Raises:
        UserError: A shard of `shards` is not finished for this key.
    """
    records = finished_shards(folder, key)
    missing = sorted(set(shards if shards is not None else records) - set(records))
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of its shards are not finished (first: {missing[0]}), so the store cannot be "
            "closed; run the same preparation again, it does only what is missing"
        )
    wanted = [records[s] for s in sorted(shards if shards is not None else records)]
    dtypes = {r.dtype for r in wanted}
    assert len(dtypes) <= 1, f"shards of one key have dtypes {dtypes}"
    with _closing(folder, wanted) as first:
        # the slices of an array may all find everything finished, at the same moment
        if not first and is_whole(folder, key):
            return
        layout.remove_manifest(folder)
        _remove_leftovers(folder, keep={r.shard for r in wanted})
        _write_index(folder, wanted, n_tasks=len(tasks), n_sources=len(sources))
        index = folder / layout.INDEX
        manifest = {
            "format": layout.FORMAT_VERSION,
            "key": dict(key),
            "dtype": dtypes.pop() if dtypes else "int32",
            "tasks": list(tasks),
            "sources": list(sources),
            "examples": sum(r.examples for r in wanted),
            "tokens": sum(r.tokens for r in wanted),
            "spans": sum(r.spans for r in wanted),
            "target_tokens": sum(r.target_tokens for r in wanted),
            "target_weight": sum(r.target_weight for r in wanted),
            "info": dict(info or {}),
            "index": {
                name: {
                    "bytes": (index / f"{name}.npy").stat().st_size,
                    "xxh3": files.checksum(index / f"{name}.npy"),
                }
                for name in layout.INDEX_DTYPES
            },
            "shards": [
                {"file": r.file, "examples": r.examples, "tokens": r.tokens, "bytes": r.bytes, "xxh3": r.xxh3}
                for r in wanted
            ],
        }
        files.write_checked(folder / layout.MANIFEST, manifest)


@contextmanager
def _closing(folder: Path, shards: Sequence[ShardRecord]) -> Iterator[bool]:
    """Hold the right to close a store against other processes and nodes; yield False after another one had it.

    The lock lies on the record of the first shard: a file that every closer has and none replaces, so nothing is left.
    """
    if not shards:
        yield True
        return
    with layout.record_path(folder, shards[0].shard).open("r+") as held:
        first = True
        try:
            take_lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            first = False
            take_lock(held, fcntl.LOCK_EX)
        yield first


def _remove_leftovers(folder: Path, keep: set[int]) -> None:
    """Remove temporary files of killed writers and shards of earlier keys."""
    kept = {p.name for s in keep for p in (layout.shard_path(folder, s), layout.record_path(folder, s))}
    for path in folder.glob("shard-*"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
    for path in (*folder.glob(".shard-*.tmp"), *folder.glob(".manifest.json.*.tmp")):
        path.unlink(missing_ok=True)
    for path in folder.glob(".index.*"):
        shutil.rmtree(path, ignore_errors=True)


def _write_index(folder: Path, records: Sequence[ShardRecord], *, n_tasks: int, n_sources: int) -> None:
    """Derive index/*.npy from the shards, through mapped files: memory does not grow with the store."""
    aside = folder / f".{layout.INDEX}.tmp"
    aside.mkdir()
    examples, spans = sum(r.examples for r in records), sum(r.spans for r in records)
    out: dict[str, NDArray[Any]] = {
        name: np.lib.format.open_memmap(
            aside / f"{name}.npy", mode="w+", dtype=dtype, shape=layout.index_shape(name, examples, spans)
        )
        for name, dtype in layout.INDEX_DTYPES.items()
    }
    row = span = 0
    for record in records:
        mapped = np.memmap(folder / record.file, np.uint8, mode="r")
        base = mapped.__array_interface__["data"][0]
        for batch in pa.ipc.open_stream(pa.py_buffer(mapped)):
            row, span = _index_batch(batch, base, out, row, span)
    assert (row, span) == (examples, spans), (
        f"shards hold {row} examples and {span} spans, records {examples}, {spans}"
    )
    for name, limit in (("task", n_tasks), ("source", n_sources)):
        assert not examples or out[name].max() < limit, f"a {name} code is not among the {limit} names"
    del out  # unmaps, which writes the pages out before they are flushed
    files.replace_folder(aside, folder / layout.INDEX)


def _index_batch(
    batch: pa.RecordBatch, base: int, out: Mapping[str, NDArray[Any]], row: int, span: int
) -> tuple[int, int]:
    """Copy one record batch into the index arrays at example `row` and span `span`; return both advanced."""
    n = batch.num_rows
    rows = slice(row, row + n)
    ids, spans = batch.column("input_ids"), batch.column("spans")
    out["id"][rows] = np.frombuffer(batch.column("id").buffers()[1], np.uint8).reshape(-1, layout.ID_BYTES)[
        :n
    ]
    for name in ("task", "source"):
        out[name][rows] = batch.column(name).to_numpy()
    offsets = ids.offsets.to_numpy().astype(np.int64)
    out["length"][rows] = np.diff(offsets)
    first = ids.values.buffers()[1].address - base
    out["position"][rows] = first + offsets[:-1] * (ids.values.type.bit_width // 8)
    span_offsets = spans.offsets.to_numpy().astype(np.int64)
    k = int(span_offsets[-1])
    out["span_offset"][row : row + n + 1] = span + span_offsets
    for name in ("start", "length", "weight"):
        out[f"span_{name}"][span : span + k] = spans.values.field(name).to_numpy()
    return row + n, span + k
