"""Files that are whole or absent: write aside, fsync, rename. Checksums. JSON lines that survive a crash."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import xxhash

from sft_dist.core.errors import UserError

CHUNK_BYTES = 1 << 22
CHECKSUM = "checksum"  # the key under which an object carries its own


def is_local(path: str) -> bool:
    """Whether a model or tokenizer can only lie on this machine: what is written as a path, or exists; a hub id is `OWNER/NAME`."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 1 or Path(path).exists()


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` written out.

    Raises:
        UserError: When there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"{path} begins with the home folder of a user whom this machine does not know, so it leads nowhere; write the path out"
        ) from None


def fsync_path(path: Path) -> None:
    """Flush a file or a folder entry to disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success fsync it and move it into place, on failure remove it.

    A symbolic link is followed, as writing through it would.

    Raises:
        UserError: When `path` is there and no file: root would otherwise replace a device such as /dev/null.
    """
    path = path.resolve() if path.is_symlink() else path
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path} is a {'folder' if path.is_dir() else 'device or pipe'}, and writing would replace it; name a file"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # containers of other nodes have equal process numbers, and two writers of one file would tear it
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield aside
        fsync_path(aside)
        aside.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk, say, does not tell whose writing failed
        raise
    finally:
        with suppress(FileNotFoundError):
            aside.unlink()


def remove_leftovers(*folders: Path) -> None:
    """Remove what writers that were killed left in these folders. To be called under a lock: nobody else may be writing there."""
    for folder in folders:
        for path in folder.glob(".*.tmp"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write a whole text file atomically; a private one can be read by its owner alone, from its first byte."""
    with atomic_path(path) as aside:
        if private:
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))
            aside.chmod(0o600)
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a whole JSON file atomically, keys in their given order."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_checked(path: Path, value: Mapping[str, Any]) -> None:
    """Write a whole JSON object atomically, with the checksum that `read_object` compares."""
    plain = json.loads(json.dumps(dict(value), allow_nan=False))  # lists for tuples, as they are read
    write_json(path, {**plain, CHECKSUM: fingerprint(plain)})


def read_object(
    path: Path, remedy: str, fields: Mapping[str, type | tuple[type, ...]] = {}
) -> dict[str, Any]:
    """Read a JSON object that we wrote.

    Args:
        path: The file.
        remedy: What mends it, for the error.
        fields: Keys that must be there, with the types of their values.

    Raises:
        UserError: When it is missing, torn, altered (where it carries a checksum) or no such object; the text names the file.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds a {type(value).__name__}, not an object); {remedy}")
    said = value.pop(CHECKSUM, None)
    if said is not None and said != fingerprint(value):
        raise UserError(f"{path} is damaged (it does not match its checksum); {remedy}")
    if odd := [key for key, kind in fields.items() if not _is(value.get(key), kind)]:
        raise UserError(f"{path} is damaged or of another version ({odd[0]}); {remedy}")
    return value


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value of JSON is of a type; true and false are no numbers."""
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record for a line of a file, with the checksum that `unsealed` compares."""
    plain = json.loads(json.dumps(dict(record)))
    return {**plain, CHECKSUM: fingerprint(plain)[:16]}


def unsealed(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record without its checksum; None where it has none, or another."""
    rest = {k: v for k, v in record.items() if k != CHECKSUM}
    return rest if record.get(CHECKSUM) == fingerprint(rest)[:16] else None


def append_jsonl(path: Path, value: Any) -> None:
    """Append one JSON line in a single write. A crash tears at most that line; the next append starts a new one."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"
    with path.open("ab+") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":
                line = b"\n" + line
        f.write(line)


def read_jsonl(path: Path, fields: Mapping[str, type | tuple[type, ...]] = {}) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file that we wrote. A missing file is empty.

    Args:
        path: The file.
        fields: Keys that every line must have, with the types of their values.

    Returns:
        One object a line; lines that a crash tore, and others that are no such object, are left out.
    """
    return list(iterate_jsonl(path, fields)) if path.exists() else []


def iterate_jsonl(path: Path, fields: Mapping[str, type | tuple[type, ...]] = {}) -> Iterator[dict[str, Any]]:
    """Yield the objects of `read_jsonl` one by one: a long run wrote more than is to be in memory."""
    with path.open("rb") as lines:  # bytes: a tear may lie inside a character
        for line in lines:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict) and all(_is(value.get(key), kind) for key, kind in fields.items()):
                    yield value


def checksum(path: Path, start: int = 0, end: int | None = None) -> str:
    """Return the xxh3-128 of a file, or of its bytes `start` to `end` - 1, as hex (about 15 GB/s: disks are the limit)."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as f:
        f.seek(start)
        left = math.inf if end is None else end - start
        while left > 0 and (chunk := f.read(int(min(CHUNK_BYTES, left)))):
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def fingerprint(value: Any) -> str:
    """Return 32 hex digits that stand for a JSON-ready value, whatever the order of its keys."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)
    return xxhash.xxh3_128(text.encode("utf-8", "surrogatepass")).hexdigest()


def replace_folder(aside: Path, path: Path) -> None:
    """Move a finished folder into place; what was there lies beside it until the new one stands.

    Raises:
        UserError: When `path` is there and no folder.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is no folder, and writing would replace it; name a new folder")
    for file in sorted(p for p in aside.rglob("*") if p.is_file()):
        fsync_path(file)
    for folder in (*(p for p in aside.rglob("*") if p.is_dir()), aside):
        fsync_path(folder)
    old = path.with_name(f".{path.name}.replaced")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
    aside.rename(path)
    fsync_path(path.parent)
    shutil.rmtree(old, ignore_errors=True)
