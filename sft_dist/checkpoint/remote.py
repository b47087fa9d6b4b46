"""Checkpoints on object storage, through fsspec: uploaded behind the local ones, fetched where the local folder lacks them.

An object store has no rename, so a checkpoint there is whole when its index.json is there, which is uploaded after all
other files; LATEST comes last. config.json of the run lies beside them: it says whose they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from sft_dist.checkpoint import io
from sft_dist.checkpoint.index import read_index
from sft_dist.core.errors import UserError
from sft_dist.core.files import replace_folder, write_text

CONFIG = "config.json"  # of the run folder


class Remote:
    """The folder of one run's checkpoints at a URL (s3://bucket/run, gs://..., file:///...).

    Drivers raise what they like (botocore's errors are no OSError), so every exception of theirs is taken.

    Raises:
        UserError: When the protocol is unknown here.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self._files, self._root = fsspec.core.url_to_fs(url)
        except Exception as error:
            raise UserError(
                f"checkpoint.remote={url} cannot be opened ({error}), so checkpoints would not be copied; "
                "install the fsspec driver of this protocol, or set checkpoint.remote=null"
            ) from error

    def probe(self, name: str) -> None:
        """Write a small object and remove it again.

        Raises:
            UserError: When that fails: training would go on for days without the copies that were asked for.
        """
        path = self._path(f".probe-{name}")
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(path, b"sft_dist\n")
            self._files.rm_file(path)
        except Exception as error:
            raise UserError(
                f"checkpoint.remote={self.url} cannot be written ({error or type(error).__name__}), so no checkpoint would be "
                "copied there; check the URL and its credentials (writing and deleting), or set checkpoint.remote=null"
            ) from error

    def upload(self, folder: Path, prefix: str) -> None:
        """Upload the files of a checkpoint whose names begin with `prefix`."""
        for file in sorted(folder.glob(f"{prefix}*")):
            self._put(file, f"{folder.name}/{file.name}")

    def publish(self, folder: Path) -> None:
        """Upload the index of a checkpoint whose files are there, move LATEST, remove what is not kept locally."""
        self._put(folder / "index.json", f"{folder.name}/index.json")
        if (config := folder.parent.parent / CONFIG).is_file():
            self._put(config, CONFIG)
        for name in ("BEST", "LATEST"):
            if (folder.parent / name).is_file():
                self._put(folder.parent / name, name)
        for name in self.names():
            local = folder.parent / name
            if not (local / "index.json").is_file():
                self._files.rm(self._path(f"{name}/index.json"))  # first: what remains is not whole
                self._files.rm(self._path(name), recursive=True)
            elif not read_index(local).optimizer:
                self._put(local / "index.json", f"{name}/index.json")
                if state := self._files.glob(self._path(f"{name}/*.optimizer.safetensors")):
                    self._files.rm(state)

    def names(self) -> list[str]:
        """Return the names of the whole checkpoints there, oldest first.

        Raises:
            UserError: When the place cannot be read.
        """
        with self._reading():
            self._files.invalidate_cache()
            found = (p.rsplit("/", 2)[-2] for p in self._files.glob(self._path("step-*/index.json")))
            return sorted(n for n in found if io.NAME.fullmatch(n))

    def run_config(self) -> str | None:
        """Return config.json of the run whose checkpoints lie there; None where there is none.

        Raises:
            UserError: When the place cannot be read.
        """
        with self._reading():
            path = self._path(CONFIG)
            return self._files.cat_file(path).decode("utf-8") if self._files.exists(path) else None

    def fetch(
        self,
        root: Path,
        *,
        part: tuple[int, int],
        barrier: Callable[[], Any],
        agree: Callable[[str | None], str | None],
    ) -> Path | None:
        """Download the newest checkpoint when it is newer than every one in `root`. Called by all ranks together.

        Args:
            root: The local folder of checkpoints, shared by all ranks.
            part: (i, n): this process downloads every n-th file from the i-th.
            barrier: Waits for the other processes.
            agree: Returns what process 0 gave: caches of a network disk may tell the others of other checkpoints.

        Returns:
            The local folder; None where there is nothing newer. Its checksums are verified by whoever opens it.

        Raises:
            UserError: When the place cannot be read: starting anew without looking there could repeat days of work.
        """
        name = agree(self._newer(root) if part[0] == 0 else None)
        if name is None:
            return None
        aside, final = root / f".fetching-{name}", root / name
        if part[0] == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        barrier()
        with self._reading():
            files = sorted(p.rsplit("/", 1)[-1] for p in self._files.ls(self._path(name), detail=False))
            for file in files[part[0] :: part[1]]:
                self._files.get_file(self._path(f"{name}/{file}"), str(aside / file))
        barrier()
        if part[0] == 0:
            replace_folder(aside, final)
            write_text(root / "LATEST", f"{name}\n")
        barrier()
        return final

    def _newer(self, root: Path) -> str | None:
        there = self.names()
        local = sorted(p.name for p in root.glob("step-*") if io.NAME.fullmatch(p.name))
        return there[-1] if there and (not local or local[-1] < there[-1]) else None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise UserError(
                f"checkpoint.remote={self.url} cannot be read ({error or type(error).__name__}), so it is unknown whether a newer "
                "checkpoint lies there; check the URL and its credentials, or set checkpoint.remote=null"
            ) from error

    def _put(self, file: Path, name: str) -> None:
        path = self._path(name)
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self._files.put_file(str(file), path)

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
