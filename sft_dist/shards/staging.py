"""Token stores elsewhere: copied to a node's own disk before training, and to and from object storage (fsspec URLs).

A store is whole where its manifest lies, so the manifest is always the last file that arrives.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec

from sft_dist.core import files
from sft_dist.core.errors import UserError
from sft_dist.shards import format as layout


def stage(source: str, folder: Path) -> Path:
    """Return a verified copy of a store below `folder`, made once, by whichever process comes first.

    The processes of a node call this together: one copies, the others wait for its lock. A copy that was cut short is
    continued, file by file.

    Args:
        source: Folder or URL of a whole store.
        folder: A folder on this node's own disk.

    Raises:
        UserError: The source cannot be read, does not fit or does not match its checksums.
    """
    try:
        remote, root = fsspec.core.url_to_fs(source)
        text = remote.cat_file(f"{root}/{layout.MANIFEST}")
        manifest: dict[str, Any] = json.loads(text)
        name = f"{root.rstrip('/').rsplit('/', 1)[-1]}-{files.fingerprint(manifest)[:16]}"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / name
        with (folder / f".{name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (target / layout.MANIFEST).is_file():
                for file, checksum in contents(manifest).items():
                    _fetch(remote, f"{root}/{file}", target / file, checksum)
                files.write_text(target / layout.MANIFEST, text.decode("utf-8"))
    except Exception as error:  # drivers raise what they like: botocore's missing credentials are no OSError
        raise UserError(
            f"the token store {source} could not be copied to {folder} ({error}), so training cannot start; check both "
            "places and the room there, or set launch.stage_dir=null to read the store where it lies"
        ) from error
    return target


def publish_stores(store: Path, url: str) -> bool:
    """Copy a whole store to a URL, manifest last; return False when it was there already.

    Raises:
        UserError: When the URL cannot be written.
    """
    try:
        remote, root = fsspec.core.url_to_fs(url)
        text = (store / layout.MANIFEST).read_bytes()
        there = f"{root}/{layout.MANIFEST}"
        if remote.exists(there):
            if remote.cat_file(there) == text:
                return False
            remote.rm(root, recursive=True)
        for file in (*contents(json.loads(text)), layout.MANIFEST):
            remote.makedirs(f"{root}/{file}".rsplit("/", 1)[0], exist_ok=True)
            remote.put_file(str(store / file), f"{root}/{file}")
    except Exception as error:  # drivers raise what they like: botocore's missing credentials are no OSError
        raise UserError(
            f"the token store {store} could not be copied to {url} ({error}), so other machines would not find it; "
            "check the URL and its credentials, or set data.remote=null"
        ) from error
    return True


def contents(manifest: dict[str, Any]) -> dict[str, str]:
    """Return the checksum of each file that a manifest vouches for, by path inside the store."""
    index = {f"{layout.INDEX}/{name}.npy": entry["xxh3"] for name, entry in manifest["index"].items()}
    return {entry["file"]: entry["xxh3"] for entry in manifest["shards"]} | index


def _fetch(remote: Any, path: str, target: Path, checksum: str) -> None:
    if target.is_file() and files.checksum(target) == checksum:
        return
    with files.atomic_path(target) as aside:
        with remote.open(path, "rb") as source, aside.open("wb") as out:
            shutil.copyfileobj(source, out, files.CHUNK_BYTES)
        if (found := files.checksum(aside)) != checksum:
            raise ValueError(f"{path} has checksum {found}, its manifest says {checksum}")
