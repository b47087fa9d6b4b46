"""Tokens -> one shard. Any number of processes write shards of one store, each its own numbers. Next: build."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from sft_dist.core import files
from sft_dist.core.records import Tokens
from sft_dist.shards import format as layout
from sft_dist.shards.format import ShardRecord

# A record batch is closed at whichever comes first: small enough to buffer, large enough that Arrow's own
# header (about 700 bytes) vanishes.
BATCH_EXAMPLES = 4096
BATCH_TOKENS = 1 << 20


class ShardWriter:
    """Writes one shard. Use as a context manager, or call `close`; an exception inside leaves nothing behind.

    Args:
        folder: The store.
        shard_index: Number of the shard. No two writers of one store share a number.
        dtype: Name of the dtype of token ids, from `token_dtype(vocab_size)`.
        key: The store's key; the completion record carries its fingerprint.

    Attributes:
        examples: Examples added so far.
        tokens: Tokens added so far.
    """

    def __init__(self, folder: Path, shard_index: int, dtype: str, *, key: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._shard = shard_index
        self._dtype = np.dtype(dtype)
        self._key = files.fingerprint(key)
        # Neither a manifest nor a stale record may vouch for a file that is about to change.
        layout.remove_manifest(folder)
        layout.record_path(folder, shard_index).unlink(missing_ok=True)
        self._open = ExitStack()
        aside = self._open.enter_context(files.atomic_path(layout.shard_path(folder, shard_index)))
        self._sink = _HashingFile(self._open.enter_context(aside.open("wb")))
        self._schema = layout.schema(dtype)
        self._arrow = self._open.enter_context(
            pa.ipc.new_stream(
                self._open.enter_context(pa.PythonFile(self._sink, mode="w")),
                self._schema,
                options=pa.ipc.IpcWriteOptions(compression=None),
            )
        )
        self.examples = self.tokens = self._spans = self._target_tokens = 0
        self._target_weight = 0.0
        self._clear()

    def add(self, id_hex: str, task_code: int, source_code: int, tokens: Tokens) -> None:
        """Append one example. `id_hex` is its content address: 32 hex digits."""
        self._id_hex.append(id_hex)
        self._task.append(task_code)
        self._source.append(source_code)
        self._ids.append(tokens.ids)
        kept = [
            s for s in tokens.spans if s.weight != 0.0
        ]  # weight 0 is how "carries no loss" may be written
        self._span_rows.extend(kept)
        self._span_counts.append(len(kept))
        self.examples += 1
        self.tokens += len(tokens.ids)
        self._buffered += len(tokens.ids)
        if len(self._task) >= BATCH_EXAMPLES or self._buffered >= BATCH_TOKENS:
            self._flush()

    def close(self, note: Mapping[str, Any] | None = None) -> ShardRecord:
        """Finish the shard, then write its completion record with `note`, and return the record."""
        self._flush()
        self._open.close()
        record = ShardRecord(
            shard=self._shard,
            file=layout.shard_path(self._folder, self._shard).name,
            key=self._key,
            dtype=self._dtype.name,
            examples=self.examples,
            tokens=self.tokens,
            spans=self._spans,
            target_tokens=self._target_tokens,
            target_weight=self._target_weight,
            bytes=self._sink.bytes,
            xxh3=self._sink.digest.hexdigest(),
            note=dict(note or {}),
        )
        layout.write_record(self._folder, record)
        self._closed = True
        return record

    _closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._open.__exit__(kind, error, trace)
        elif not self._closed:
            self.close()

    def _clear(self) -> None:
        self._id_hex: list[str] = []
        self._task: list[int] = []
        self._source: list[int] = []
        self._ids: list[NDArray[np.int32]] = []
        self._span_rows: list[tuple[int, int, float]] = []
        self._span_counts: list[int] = []
        self._buffered = 0

    def _flush(self) -> None:
        if not self._task:
            return
        lengths = np.fromiter(map(len, self._ids), np.int64, len(self._ids))
        ids = np.concatenate(self._ids)
        counts = np.asarray(self._span_counts, np.int64)
        spans = np.array(self._span_rows, np.float64).reshape(-1, 3)
        start, length, weight = spans[:, 0].astype(np.int32), spans[:, 1].astype(np.int32), spans[:, 2]
        self._check(ids, lengths, counts, start, length, weight)
        structs = pa.StructArray.from_arrays(
            [pa.array(start), pa.array(length), pa.array(weight.astype(np.float32))],
            fields=list(self._schema.field("spans").type.value_type),
        )
        raw = bytes.fromhex("".join(self._id_hex))
        id_buffers = [None, pa.py_buffer(raw)]
        columns = [
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(layout.ID_BYTES), len(self._task), id_buffers),
            pa.array(self._task, pa.int32()),
            pa.array(self._source, pa.int32()),
            _list_array(lengths, pa.array(ids.astype(self._dtype)), self._schema.field("input_ids").type),
            _list_array(counts, structs, self._schema.field("spans").type),
        ]
        self._arrow.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
        self._spans += len(start)
        self._target_tokens += int(length.sum())
        self._target_weight += float((length * weight).sum())
        self._clear()

    def _check(
        self,
        ids: NDArray[np.int32],
        lengths: NDArray[np.int64],
        counts: NDArray[np.int64],
        start: NDArray[np.int32],
        length: NDArray[np.int32],
        weight: NDArray[np.float64],
    ) -> None:
        """Refuse ids that the dtype cannot hold and spans that are not ordered slices of their example."""
        limits = np.iinfo(self._dtype)
        if len(ids) and (ids.min() < 0 or ids.max() > limits.max):
            raise ValueError(f"token ids {ids.min()}..{ids.max()} do not fit {self._dtype.name}")
        wrong_id = next((i for i in self._id_hex if len(i) != 2 * layout.ID_BYTES), None)
        if wrong_id is not None:
            raise ValueError(f"example id {wrong_id!r} is not {2 * layout.ID_BYTES} hex digits")
        owner = np.repeat(np.arange(len(counts)), counts)
        end = start.astype(np.int64) + length
        bad = (start < 1) | (length < 1) | (end > lengths[owner]) | ~(weight > 0) | ~np.isfinite(weight)
        bad[1:] |= (owner[1:] == owner[:-1]) & (start[1:] < end[:-1])
        if bad.any():
            k = int(bad.argmax())
            raise ValueError(
                f"example {self._id_hex[owner[k]]} of {lengths[owner[k]]} tokens has the span start={start[k]} "
                f"length={length[k]} weight={weight[k]}: spans start at 1 or later, end inside, do not overlap"
            )


class _HashingFile:
    """A binary file that hashes what passes through, so that the checksum is of what was meant to be written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.bytes = 0
        self.closed = False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.bytes += view.nbytes
        return self._file.write(view)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _list_array(lengths: NDArray[np.int64], values: pa.Array, kind: pa.DataType) -> pa.ListArray:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=kind)
