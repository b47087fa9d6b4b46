"""Store -> Tokens: mapped files, no copies, no Arrow on the way. Opening costs one listing, whatever the size."""

from __future__ import annotations

import bisect
import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sft_dist.core import files
from sft_dist.core.errors import UserError
from sft_dist.core.records import Span, Tokens
from sft_dist.shards import format as layout

REBUILD = "sft-dist prepare"


class Store:
    """A whole token store, memory-mapped. n examples, k spans.

    Attributes:
        folder: Where it lies.
        key: The parts that its content depends on.
        task_names: Task names by code.
        source_names: Source names by code.
        info: What its builder noted.
        n_tokens: Tokens in the store.
        n_target_tokens: Tokens that carry loss.
        lengths: int32 [n] tokens of each example.
        tasks: int32 [n] task codes.
        sources: int32 [n] source codes.
        ids: uint8 [n, 16] content addresses.
        span_offsets: int64 [n+1] spans of example i are `span_offsets[i] .. span_offsets[i+1]-1`.
        span_start: int32 [k] first token of each span.
        span_length: int32 [k] tokens of each span.
        span_weight: float32 [k] loss weight of each span.
        fingerprint: 32 hex digits that stand for the content: key and checksums.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], index: Mapping[str, NDArray[Any]]) -> None:
        self.folder = folder
        self.key: dict[str, Any] = manifest["key"]
        self.task_names: list[str] = manifest["tasks"]
        self.source_names: list[str] = manifest["sources"]
        self.info: dict[str, Any] = manifest["info"]
        self.n_tokens: int = manifest["tokens"]
        self.n_target_tokens: int = manifest["target_tokens"]
        self.lengths: NDArray[np.int32] = index["length"]
        self.tasks: NDArray[np.int32] = index["task"]
        self.sources: NDArray[np.int32] = index["source"]
        self.ids: NDArray[np.uint8] = index["id"]
        self.span_offsets: NDArray[np.int64] = index["span_offset"]
        self.span_start: NDArray[np.int32] = index["span_start"]
        self.span_length: NDArray[np.int32] = index["span_length"]
        self.span_weight: NDArray[np.float32] = index["span_weight"]
        self.fingerprint = files.fingerprint([manifest[k] for k in ("key", "tasks", "index", "shards")])
        self._positions: NDArray[np.int64] = index["position"]
        self._dtype = np.dtype(manifest["dtype"])
        self._manifest = manifest
        counts = [s["examples"] for s in manifest["shards"]]
        self._first = np.concatenate(([0], np.cumsum(counts))).tolist()  # first example of each shard, then n
        self._mapped: dict[int, mmap.mmap] = {}

    @classmethod
    def open(
        cls, folder: Path, expected_key: Mapping[str, Any] | None = None, *, rebuild: str = REBUILD
    ) -> Store:
        """Open a whole store.

        Args:
            folder: The store.
            expected_key: The key that the current config asks for; None accepts any.
            rebuild: The command that an error names as its remedy.

        Raises:
            UserError: The store is absent, unfinished, empty, damaged, of another format or of another key.
        """
        manifest = _read_manifest(folder, rebuild)
        if expected_key is not None and (changed := layout.key_changes(manifest["key"], expected_key)):
            raise UserError(
                f"{folder} was prepared with other settings, so it does not hold what this config asks for; changed: "
                f"{', '.join(changed)}. Rebuild it: {rebuild}"
            )
        if not manifest["examples"]:
            raise UserError(
                f"{folder} holds no examples, so there is nothing to train on; look at rejects/ in data.dir "
                f"for the reasons, then: {rebuild}"
            )
        sizes = {entry["file"]: entry["bytes"] for entry in manifest["shards"]}
        index = folder / layout.INDEX
        sizes |= {f"{layout.INDEX}/{name}.npy": entry["bytes"] for name, entry in manifest["index"].items()}
        for name, size in sizes.items():
            if problem := _wrong_size(folder / name, size):
                raise UserError(f"{problem}, so the store is damaged. Rebuild it: {rebuild}")
        try:
            arrays = {
                # A plain array over the mapping: np.memmap's own class costs microseconds an access.
                name: np.load(index / f"{name}.npy", mmap_mode="r").view(np.ndarray)
                for name in layout.INDEX_DTYPES
            }
        except ValueError as error:  # of the right size, but no array
            raise UserError(
                f"{index} is damaged ({error}), so the store cannot be used. Rebuild it: {rebuild}"
            ) from None
        return cls(folder, manifest, arrays)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_bytes(self) -> int:
        """Bytes of its shards on disk."""
        return sum(entry["bytes"] for entry in self._manifest["shards"])

    def __reduce__(self) -> tuple[Any, ...]:
        return (Store.open, (self.folder,))  # another process maps the files itself

    def token_ids(self, i: int, start: int = 0, length: int | None = None) -> NDArray[Any]:
        """Return a read-only view of tokens `start .. start+length-1` of example i, in the stored dtype."""
        stored = int(self.lengths[i])
        length = stored - start if length is None else length
        assert 0 <= start <= start + length <= stored, (
            f"example {i} has {stored} tokens, asked {start}+{length}"
        )
        shard = bisect.bisect_right(self._first, i) - 1
        byte = int(self._positions[i]) + start * self._dtype.itemsize
        return np.frombuffer(self._shard(shard), self._dtype, length, byte)

    def spans(self, i: int) -> tuple[Span, ...]:
        """Return the spans of example i."""
        k = slice(int(self.span_offsets[i]), int(self.span_offsets[i + 1]))
        columns = (self.span_start[k].tolist(), self.span_length[k].tolist(), self.span_weight[k].tolist())
        return tuple(map(Span, *columns))

    def read(self, i: int) -> Tokens:
        """Return example i whole."""
        return Tokens(ids=self.token_ids(i).astype(np.int32, copy=False), spans=self.spans(i))

    def id_hex(self, i: int) -> str:
        """Return the content address of example i: 32 hex digits."""
        return bytes(self.ids[i]).hex()

    def verify(self) -> list[str]:
        """Read every file and compare it with its checksum. Return one sentence for each that is wrong."""
        entries = {entry["file"]: entry for entry in self._manifest["shards"]}
        entries |= {f"{layout.INDEX}/{name}.npy": entry for name, entry in self._manifest["index"].items()}
        problems = []
        for name, entry in entries.items():
            path = self.folder / name
            if problem := _wrong_size(path, entry["bytes"]):
                problems.append(problem)
            elif (found := files.checksum(path)) != entry["xxh3"]:
                problems.append(f"{path} has checksum {found}, its record says {entry['xxh3']}")
        return problems

    def _shard(self, shard: int) -> mmap.mmap:
        if (mapped := self._mapped.get(shard)) is None:
            with (self.folder / self._manifest["shards"][shard]["file"]).open("rb") as f:
                mapped = self._mapped[shard] = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        return mapped


def _read_manifest(folder: Path, rebuild: str) -> dict[str, Any]:
    path = folder / layout.MANIFEST
    if not path.is_file():
        shards = len(list(folder.glob("shard-*.json")))
        state = f"is unfinished ({shards} shards so far)" if shards else "holds no token store"
        raise UserError(f"{folder} {state}, so there is nothing to train on. Prepare it: {rebuild}")
    manifest = files.read_object(path, f"so the store cannot be used. Rebuild it: {rebuild}")
    if manifest.get("format") != layout.FORMAT_VERSION:
        raise UserError(
            f"{folder} has store format {manifest.get('format')}, this version reads {layout.FORMAT_VERSION}. "
            f"Rebuild it: {rebuild}"
        )
    return manifest


def _wrong_size(path: Path, size: int) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if (found := path.stat().st_size) != size:
        return f"{path} has {found} bytes instead of {size}"
    return None
