"""The run folder: what a run writes and what a launcher, a person and the report read. The contract is docs/map.md's table."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.files import append_jsonl, read_object, remove_leftovers, write_json
from sft_dist.core.locks import take_lock

# Of stores.json, and their types.
STORES_FIELDS: dict[str, type] = {
    "sources": dict, "eval_stores": dict, "tokenizer": str, "template_text": str, "stop_ids": list, "read": dict,
}  # fmt: skip

# Of plan.json.
PLAN_FIELDS: dict[str, type] = {
    "steps": int, "world_size": int, "examples": int, "tokens": int, "target_tokens": int, "tasks": dict, "sources": dict,
}  # fmt: skip
PLAN_REMEDY = (
    "it says what the run trains on; the command that started the run writes it anew while it trains"
)

State = Literal["running", "stopped", "finished", "fatal"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths and small files of one run. Exit codes lie under torchrun and srun; status.json does not."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, frozen: what every rank loads."""
        return self.path / "config.json"

    @property
    def stores(self) -> Path:
        """Which token stores this run trains on, by source, with their keys."""
        return self.path / "stores.json"

    @property
    def metrics(self) -> Path:
        """One line a step (core.records.StepMetrics) or evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def events(self) -> Path:
        """One line an event: resume, checkpoint, skipped step, stop."""
        return self.path / "events.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints, by step."""
        return self.path / "checkpoints"

    @property
    def export(self) -> Path:
        """The fine-tuned model as a Hugging Face folder."""
        return self.path / "export"

    def status(self) -> dict[str, Any]:
        """Return status.json; empty before the first write, and where it is damaged: the next write makes it anew."""
        with suppress(UserError):
            found = read_object(self.path / "status.json", "", {"state": str})
            counts = [found.get(key, 0) for key in ("step", "steps")]
            if found["state"] in get_args(State) and all(type(n) is int for n in counts):
                return found
        return {}

    def plan(self, *keys: str) -> dict[str, Any]:
        """Return plan.json, in which these keys (PLAN_FIELDS) must stand.

        Raises:
            UserError: When it is missing or damaged.
        """
        return read_object(self.path / "plan.json", PLAN_REMEDY, {k: PLAN_FIELDS[k] for k in keys})

    def read_stores(self) -> dict[str, Any]:
        """Return stores.json.

        Raises:
            UserError: When it is missing, damaged or of another version.
        """
        remedy = "the command that started the run writes it anew"
        stores = read_object(self.stores, remedy, STORES_FIELDS)
        entries = stores["sources"].values()
        if not all(isinstance(e, dict) and isinstance(e.get("path"), str) and "key" in e for e in entries):
            raise UserError(f"{self.stores} is damaged or of another version (sources); {remedy}")
        return stores

    def set_status(self, state: State, **facts: Any) -> None:
        """Write status.json atomically.

        Raises:
            FileNotFoundError: When the run folder is gone; it is not made again.
        """
        self.path.stat()
        write_json(self.path / "status.json", {"state": state, "time": time.time(), **facts})

    def event(self, kind: str, **facts: Any) -> None:
        """Append one line to events.jsonl."""
        append_jsonl(self.events, {"time": time.time(), "kind": kind, **facts})

    def asked(self, control: Literal["stop", "save"]) -> bool:
        """True when a person or a launcher put a control file there."""
        return (self.path / "control" / control).exists()

    def clear(self, control: Literal["stop", "save"]) -> None:
        """Remove a control file."""
        (self.path / "control" / control).unlink(missing_ok=True)

    def lock(self) -> IO[str]:
        """Hold the run folder for this process; the lock ends with the returned file or the process.

        Raises:
            BusyError: When another live run holds it.
        """
        return self._hold(self.path / "lock")

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Hold the run for the whole of a command that starts it: from before the folder is touched until its ranks have ended.

        The file lies beside the folder, which such a command may make or put aside, and goes with the command. `lock` is held by
        the ranks, which come later.

        Raises:
            BusyError: When another command is starting this run, or following it.
            UserError: When run_root is a file.
        """
        root = self.path.parent
        if root.exists() and not root.is_dir():
            raise UserError(f"run_root={root} is a file, so no run folder can be made in it; name a folder")
        made = not root.exists()
        root.mkdir(parents=True, exist_ok=True)
        file = self.path.with_name(f".{self.path.name}.launch")
        held = self._hold(file)
        while not (file.exists() and file.stat().st_ino == os.fstat(held.fileno()).st_ino):
            held.close()  # the command that held it ended between the opening and the lock, and took the file along
            held = self._hold(file)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            held.close()
            if made:
                with suppress(OSError):  # a run lies there now
                    root.rmdir()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold the evaluation of this run, and remove what one that was killed left half-written.

        Raises:
            BusyError: When another command evaluates this run.
        """
        folder = self.path / "eval"
        folder.mkdir(parents=True, exist_ok=True)
        with self._hold(folder / "lock", "is being evaluated by another command", "mix their answers"):
            remove_leftovers(folder, *(p for p in folder.rglob("*") if p.is_dir()))
            yield

    def _hold(
        self,
        file: Path,
        state: str = "is in use by another run",
        harm: str = "overwrite one another's checkpoints",
    ) -> IO[str]:
        held = file.open("a+")
        try:
            take_lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.seek(0)
            who = held.read().strip() or "unknown process"
            held.close()
            raise BusyError(
                f"{self.path} {state} ({who}), and two would {harm}; wait for it, stop it, or use another name"
            ) from None
        held.truncate(0)
        held.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        held.flush()
        return held
