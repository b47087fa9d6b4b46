"""The sweep folder: what is tried, one record and one run folder a trial. All that local processes and array tasks share.

<sweep>/sweep.json            what is searched, and the config that all trials share
<sweep>/config.yaml           the user's own config file, as it was
<sweep>/trials/trial-000.json its settings, how often it was begun, how it ended
<sweep>/trial-000/            its run folder, as of any run
<sweep>/leaderboard.{html,json}   `sft-dist report --sweep`
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from sft_dist.cluster.sweep.run_metric import RUN_METRICS, Curve, curve_of
from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.files import read_json, write_json
from sft_dist.core.heartbeat import SILENT_S, silent_s
from sft_dist.core.locks import take_lock
from sft_dist.core.runfolder import RunFolder

TrialState = Literal["waiting", "running", "interrupted", "finished", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One point of a sweep.

    Attributes:
        number: From 0, in the order in which they were defined.
        settings: Config key -> value as an override writes it.
        state: How far it came. "running" is what was recorded last; `SweepFolder.trials` looks whether it still is.
        attempts: How often it was begun.
        failures: How many of them failed; an interruption is none.
        fatal: It failed in a way that would repeat itself (config, data, a loss that is not finite).
        reason: Why it failed.
        step: Optimizer step at which it ended.
        value: The sweep's metric, of a trial that finished.
    """

    number: int
    settings: dict[str, str]
    state: TrialState = "waiting"
    attempts: int = 0
    failures: int = 0
    fatal: bool = False
    reason: str = ""
    step: int | None = None
    value: float | None = None

    @property
    def name(self) -> str:
        """Its name, which is that of its run folder."""
        return f"trial-{self.number:03d}"

    @property
    def overrides(self) -> list[str]:
        """Its settings as overrides."""
        return [f"{k}={v}" for k, v in self.settings.items()]

    def ended(self, **facts: Any) -> Trial:
        """Return it with other facts."""
        return replace(self, **facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Definition:
    """What a sweep searches. Written once; a relaunch may only lengthen it.

    Attributes:
        method: "grid" or "optuna".
        metric: A key of core.outcome.FIGURES.
        space: Config key -> Hydra sweep expression, such as `choice(1,2)`.
        overrides: Of all trials, from the command line.
        cwd: Folder that relative paths of the config start from.
        base: The resolved config without any trial's settings.
        trials: How many an optuna search makes; of a grid, how many there are.
        pruning: "none", "median" or "asha".
        prune_after: Share of a trial's steps before which none is pruned.
        retries: How often a failed trial is begun again.
        max_parallel: Trials side by side.
        seed: Root of the search's random streams.
    """

    method: str
    metric: str
    space: dict[str, str]
    overrides: list[str]
    cwd: str
    base: dict[str, Any]
    trials: int
    pruning: str
    prune_after: float
    retries: int
    max_parallel: int
    seed: int


Noun = TypeVar("Noun", Trial, Definition)


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """Paths and small files of a sweep."""

    path: Path

    @property
    def file(self) -> Path:
        """The definition; its presence makes a folder a sweep."""
        return self.path / "sweep.json"

    @property
    def config(self) -> Path:
        """The user's config file as it was when the sweep was defined; absent without one."""
        return self.path / "config.yaml"

    def definition(self) -> Definition:
        """Read sweep.json.

        Raises:
            UserError: When the folder is no sweep, or its file is damaged.
        """
        if not self.file.is_file():
            raise UserError(
                f"{self.path} is not a sweep (it has no sweep.json); name a folder that `sft-dist sweep` made, such as runs/sweep"
            )
        return _read(self.file, Definition)

    def define(self, definition: Definition) -> None:
        """Write sweep.json."""
        write_json(self.file, asdict(definition))

    def run(self, number: int) -> RunFolder:
        """Return the run folder of a trial."""
        return RunFolder(self.path / f"trial-{number:03d}")

    def write(self, trial: Trial) -> Trial:
        """Write the record of a trial; return it."""
        write_json(self._record(trial.number), asdict(trial))
        return trial

    def trial(self, number: int) -> Trial | None:
        """Return the record of a trial, its state as it is now; None where it is not defined yet."""
        file = self._record(number)
        return self._now(_read(file, Trial)) if file.is_file() else None

    def trials(self) -> list[Trial]:
        """Return all records in order, each state as it is now."""
        files = sorted((self.path / "trials").glob("trial-*.json"))
        return sorted((self._now(_read(f, Trial)) for f in files), key=lambda t: t.number)

    def curve(self, trial: Trial, metric: str) -> Curve:
        """Return the course of a metric."""
        return curve_of(self.run(trial.number).path, metric)

    @staticmethod
    def best(trials: Iterable[Trial], metric: str) -> Trial | None:
        """Return the finished trial with the best figure, the first of equal ones; None while there is none."""
        sign = 1.0 if RUN_METRICS[metric].direction == "minimize" else -1.0
        known = [
            (sign * t.value, t.number, t) for t in trials if t.state == "finished" and t.value is not None
        ]
        return min(known)[2] if known else None

    @contextmanager
    def lock(self, name: str = "lock") -> Iterator[None]:
        """Wait for the folder and hold it, against other processes and other nodes."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f".{name}").open("a") as held:
            take_lock(held, fcntl.LOCK_EX)
            yield

    @contextmanager
    def hold(self, number: int) -> Iterator[None]:
        """Hold a trial for this process from its settings to its outcome.

        Raises:
            BusyError: When another process on this machine does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / f".trial-{number:03d}.lock").open("a") as held:
            try:
                take_lock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"trial-{number:03d} of {self.path} is trained by another command on this sweep, so it is left to that one"
                ) from None
            yield

    def _record(self, number: int) -> Path:
        return self.path / "trials" / f"trial-{number:03d}.json"

    def _now(self, trial: Trial) -> Trial:
        """A trial that is recorded as running may have been killed, or be requeued: its run folder tells."""
        if trial.state != "running":
            return trial
        run = self.run(trial.number)
        status = run.status()
        if status.get("state") == "stopped":
            return replace(trial, state="interrupted")
        if (silent_s(run.path) or 0.0) > SILENT_S:
            return replace(trial, state="interrupted", step=status.get("step"))
        return replace(trial, step=status.get("step"))


def _read(file: Path, kind: type[Noun]) -> Noun:
    try:
        return kind(**read_json(file))
    except (ValueError, TypeError):
        raise UserError(
            f"{file} is damaged or of another version, so the sweep cannot be read; remove it and repeat the command that made the "
            "sweep, which writes what is missing"
        ) from None
