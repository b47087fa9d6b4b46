"""The layout of a token store: names of files, the Arrow schema, the index arrays, the completion record.

n examples in the store, k spans in the store.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sft_dist.core import files
from sft_dist.core.errors import UserError

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
INDEX = "index"
ID_BYTES = 16

# One flat array a file in index/, `<name>.npy`. What an epoch's plan needs, and where each example's tokens lie.
INDEX_DTYPES: dict[str, np.dtype[Any]] = {
    "id": np.dtype(np.uint8),  # [n, 16]
    "task": np.dtype(np.int32),  # [n] code into the manifest's `tasks`
    "source": np.dtype(np.int32),  # [n] code into the manifest's `sources`
    "length": np.dtype(np.int32),  # [n] tokens
    "position": np.dtype(np.int64),  # [n] byte of the first token inside its shard file
    "span_offset": np.dtype(np.int64),  # [n+1] spans of example i are span_offset[i] .. span_offset[i+1]-1
    "span_start": np.dtype(np.int32),  # [k] first token that carries loss, at least 1
    "span_length": np.dtype(np.int32),  # [k] tokens that carry loss
    "span_weight": np.dtype(np.float32),  # [k] loss weight, above 0
}

# Two bytes hold every id of a vocabulary of 65,536; a larger one takes four. Signed, because every framework
# reads int32 and no vocabulary comes near its limit.
TOKEN_DTYPES: dict[str, pa.DataType] = {"uint16": pa.uint16(), "int32": pa.int32()}


def token_dtype(vocab_size: int) -> str:
    """Return the name of the smallest dtype that stores every id of a vocabulary: "uint16" or "int32"."""
    return "uint16" if vocab_size <= 1 << 16 else "int32"


def schema(dtype: str) -> pa.Schema:
    """Return the Arrow schema of a shard whose ids have `dtype`."""
    span = pa.struct(
        [
            pa.field("start", pa.int32(), nullable=False),
            pa.field("length", pa.int32(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
        ]
    )
    return pa.schema(
        [
            pa.field("id", pa.binary(ID_BYTES), nullable=False),
            pa.field("task", pa.int32(), nullable=False),
            pa.field("source", pa.int32(), nullable=False),
            pa.field(
                "input_ids", pa.list_(pa.field("item", TOKEN_DTYPES[dtype], nullable=False)), nullable=False
            ),
            pa.field("spans", pa.list_(pa.field("item", span, nullable=False)), nullable=False),
        ]
    )


def index_shape(name: str, examples: int, spans: int) -> tuple[int, ...]:
    """Return the shape of one index array."""
    if name == "id":
        return (examples, ID_BYTES)
    if name == "span_offset":
        return (examples + 1,)
    return (spans if name.startswith("span_") else examples,)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRecord:
    """What the completion record of one shard says. It is written after the shard lies whole on disk.

    Attributes:
        shard: Number of the shard; a store's examples lie in the order of shard numbers.
        file: Its file name.
        key: Fingerprint of the store's key that it was built for.
        dtype: Name of the dtype of its token ids.
        examples: Examples in it.
        tokens: Tokens in it.
        spans: Spans in it.
        target_tokens: Tokens that carry loss.
        target_weight: Sum of their loss weights.
        bytes: Size of the file.
        xxh3: xxh3-128 of the file, taken from what was written, in hex.
        note: What the builder wants to keep with the shard: its range of the input, counts by drop reason.
    """

    shard: int
    file: str
    key: str
    dtype: str
    examples: int
    tokens: int
    spans: int
    target_tokens: int
    target_weight: float
    bytes: int
    xxh3: str
    note: Mapping[str, Any] = field(default_factory=dict)


def shard_path(folder: Path, shard: int) -> Path:
    """Return where shard number `shard` lies."""
    return folder / f"shard-{shard:05d}.arrow"


def record_path(folder: Path, shard: int) -> Path:
    """Return where the completion record of shard number `shard` lies."""
    return folder / f"shard-{shard:05d}.json"


def write_record(folder: Path, record: ShardRecord) -> None:
    """Write a completion record atomically."""
    files.write_json(
        record_path(folder, record.shard), {"format": FORMAT_VERSION, **dataclasses.asdict(record)}
    )


def read_record(path: Path) -> ShardRecord | None:
    """Read a completion record; None when it is of another format version, or damaged."""
    try:
        fields = files.read_object(path, "")
        return ShardRecord(**fields) if fields.pop("format", None) == FORMAT_VERSION else None
    except (UserError, TypeError):
        return None


def remove_manifest(folder: Path) -> None:
    """Take the manifest away, durably: from here on the folder is not a whole store."""
    path = folder / MANIFEST
    if path.is_file():
        path.unlink(missing_ok=True)
        files.fsync_path(folder)


def key_changes(stored: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Return one phrase for each part of a store's key that differs, in the order of `expected`."""
    out = []
    for part in [*expected, *(p for p in stored if p not in expected)]:
        if part not in stored:
            out.append(f"{part} (new: {_short(expected[part])})")
        elif part not in expected:
            out.append(f"{part} (was {_short(stored[part])}, now absent)")
        elif files.fingerprint(stored[part]) != files.fingerprint(
            expected[part]
        ):  # as JSON: a tuple is a list
            out.append(f"{part} ({_short(stored[part])} -> {_short(expected[part])})")
    return out


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…{text[-6:]}"
