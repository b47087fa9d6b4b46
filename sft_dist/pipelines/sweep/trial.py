"""One trial of a sweep, from its settings to its outcome. A process of its own, here or in an element of a Slurm array.

    python -m sft_dist.pipelines.sweep.trial run SWEEP NUMBER       all of it, ranks on this machine (`sft-dist sweep`)
    python -m sft_dist.pipelines.sweep.trial begin NUMBER WORDS...  settings, run folder; prints SWEEP and the run folder
    python -m sft_dist.pipelines.sweep.trial watch SWEEP NUMBER     beside the training: stops a hopeless trial
    python -m sft_dist.pipelines.sweep.trial end SWEEP NUMBER       evaluation where the metric asks for it; the outcome

slurm/sweep.sbatch calls the last three around the training; WORDS are the sweep's folder, or what `sft-dist sweep` takes.
Exit codes: 0; 2 a mistake; of begin NOTHING (no training is due), of end AGAIN (failed, and may be begun again).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

from sft_dist.cluster.local_ranks import ranks_of, run_ranks
from sft_dist.cluster.sweep.folder import Definition, SweepFolder, Trial
from sft_dist.cluster.sweep.run_metric import RUN_METRICS, first_error, metric_of
from sft_dist.cluster.sweep.search import Past, hopeless, suggest
from sft_dist.config import RunConfig
from sft_dist.config.load import load_run_config
from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.heartbeat import begin_beat
from sft_dist.core.process import logger
from sft_dist.core.runfolder import RunFolder
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.evaluate.command import evaluate
from sft_dist.pipelines.sweep.define import define, trial_config
from sft_dist.pipelines.train.command import RANK
from sft_dist.pipelines.train.run_folder import set_up

NOTHING = 3
AGAIN = 75  # EX_TEMPFAIL of sysexits.h
LOOK_S = 2.0  # between looks at the metrics of a live trial

log = logger(__name__)


def open_words(words: list[str]) -> SweepFolder:
    """Return the sweep of a command line: its folder alone, or a config file and overrides, which define it."""
    if len(words) == 1 and "=" not in words[0] and Path(words[0]).is_dir():
        folder = SweepFolder(Path(words[0]).resolve())
        folder.definition()
        return folder
    file = Path(words[0]) if words and "=" not in words[0] and not words[0].startswith("~") else None
    return define(file, words[1:] if file else words)


def due(trial: Trial | None, retries: int) -> bool:
    """Say whether a trial still has something to do: a failed one while it may be begun again."""
    return (
        trial is None
        or trial.state in ("waiting", "running", "interrupted")
        or (trial.state == "failed" and trial.failures <= retries)
    )


def begin(folder: SweepFolder, number: int, *, build: bool) -> RunConfig | None:
    """Give a trial its settings and write its run folder; None when it has nothing to do.

    Args:
        folder: Of the sweep.
        number: Of the trial.
        build: Build token stores that are missing instead of refusing.

    Raises:
        UserError: When this trial cannot be trained; its record says so as well.
        BusyError: When another process trains it.
    """
    definition = folder.definition()
    os.chdir(definition.cwd)
    with folder.lock():
        trial = folder.trial(number)
        if trial is None:
            if number >= definition.trials or definition.method != "optuna":
                raise UserError(
                    f"trial {number} does not exist: {folder.path} has {definition.trials} trials, numbered from 0; "
                    f"submit it as --array=0-{definition.trials - 1}"
                )
            trial = folder.write(
                Trial(number=number, settings=suggest(definition, past(folder, definition), number))
            )
    if not due(trial, definition.retries):
        log.info("%s is %s already", trial.name, trial.state)
        return None
    try:
        config = trial_config(folder, definition, trial.settings, trial.name)
        with folder.lock("prepare"):  # once; the trials after it find the stores
            prepared = prepare(config, build=build)
        set_up(config, prepared, folder.run(number))
    except BusyError:
        raise
    except Exception as error:  # whatever it is, it is this trial's and stands in its record
        _fail(folder, trial.ended(attempts=trial.attempts + 1), error)
        raise
    folder.write(trial.ended(state="running", attempts=trial.attempts + 1, reason="", fatal=False, step=None))
    begin_beat(folder.run(number).path)  # that of an earlier attempt would look dead
    return config


def _fail(folder: SweepFolder, trial: Trial, error: Exception) -> None:
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    fatal = isinstance(error, UserError)
    folder.write(trial.ended(state="failed", failures=trial.failures + 1, fatal=fatal, reason=reason))


def past(folder: SweepFolder, definition: Definition) -> list[Past]:
    """Return every trial with the course of its validation loss, for the search."""
    return [Past(t, folder.curve(t, definition.metric)) for t in folder.trials()]


class Pruner:
    """Looks at a live trial whenever it was evaluated; a hopeless one is asked to stop by its control file."""

    def __init__(self, folder: SweepFolder, number: int) -> None:
        self._folder, self._number = folder, number
        self._definition = folder.definition()
        self._looked, self._seen = 0.0, 0

    def poll(self) -> bool:
        """Look; return True once the trial has been pruned."""
        if self._definition.pruning == "none" or time.monotonic() - self._looked < LOOK_S:
            return False
        self._looked = time.monotonic()
        trial = self._folder.trial(self._number)
        assert trial is not None
        if trial.state == "pruned":
            return True
        curve, run = self._folder.curve(trial, self._definition.metric), self._folder.run(self._number)
        total = run.status().get("steps")
        if len(curve) == self._seen or not total or curve[-1][0] >= total:
            return False
        self._seen = len(curve)
        with self._folder.lock():
            others = [p for p in past(self._folder, self._definition) if p.trial.number != self._number]
            if not hopeless(self._definition, others, Past(trial, curve), int(total)):
                return False
            self._folder.write(trial.ended(state="pruned", step=curve[-1][0]))
        run.event("pruned", step=curve[-1][0], value=curve[-1][1])
        (run.path / "control" / "stop").touch()
        return True


def end(folder: SweepFolder, number: int) -> Trial:
    """Write down how a trial ended, from its run folder; evaluate it first where the metric asks for it."""
    definition, run = folder.definition(), folder.run(number)
    os.chdir(definition.cwd)
    status = run.status()
    facts: dict[str, object]
    if status.get("state") == "finished":
        facts = _outcome(definition, run)
    elif status.get("state") == "stopped":
        facts = {"state": "interrupted"}
    elif status.get("state") == "fatal":
        facts = {
            "state": "failed",
            "fatal": True,
            "reason": str(status.get("reason", "the run ended as fatal")),
        }
    else:
        facts = {
            "state": "failed",
            "reason": first_error(run.path) or "its ranks ended without a word; see its logs",
        }
    with folder.lock():
        trial = folder.trial(number)
        assert trial is not None
        if trial.state == "pruned" and facts["state"] != "finished":
            return trial
        failed = int(facts["state"] == "failed")
        return folder.write(trial.ended(step=status.get("step"), failures=trial.failures + failed, **facts))


def _outcome(definition: Definition, run: RunFolder) -> dict[str, object]:
    figure = RUN_METRICS[definition.metric]
    if figure.evaluated:
        try:
            evaluate(run, Console(stderr=True))
        except Exception as error:  # noqa: BLE001  whatever it is, the other trials go on
            return {"state": "failed", "reason": f"trained, but its evaluation failed: {error}"}
    value = metric_of(run.path, definition.metric)
    if value is None:
        return {
            "state": "failed",
            "fatal": True,
            "reason": f"trained, but it has no {figure.title} to rank it by: was anything held out?",
        }
    return {"state": "finished", "value": value, "reason": ""}


def run_here(folder: SweepFolder, number: int) -> Trial | None:
    """Do all of a trial with ranks on this machine.

    Raises:
        BusyError: When another process does; the ranks' own lock would come too late to keep its status apart.
    """
    with folder.hold(number):
        config = begin(folder, number, build=True)
        if config is None:
            return folder.trial(number)
        run = folder.run(number)
        if not _is_done(run):
            (run.path / "status.json").unlink(
                missing_ok=True
            )  # an earlier attempt's would speak for this one
            pruner = Pruner(folder, number)
            nproc = ranks_of(config.launch.nproc)
            run_ranks(run, RANK, nproc=nproc, port=config.launch.port, watch=pruner.poll)
        return end(folder, number)


def _is_done(run: RunFolder) -> bool:
    exported = (run.export / "config.json").is_file() or not load_run_config(run.path).train.export
    return run.status().get("state") == "finished" and exported


def main() -> int:
    """Run one of the commands above; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "watch", "end"):
        sub = commands.add_parser(name)
        sub.add_argument("sweep", type=Path)
        sub.add_argument("number", type=int)
    sub = commands.add_parser("begin")
    sub.add_argument("number", type=int)
    sub.add_argument("words", nargs="*")
    options = parser.parse_args()
    # a sweep in the background of a shell ignores SIGINT, and this process with it; run_sweep stops trials by it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if options.command == "begin":
            return _begin(options.words, options.number)
        folder = SweepFolder(options.sweep.resolve())
        if options.command == "run":
            run_here(folder, options.number)
            return 0
        if options.command == "end":
            return _end(folder, options.number)
        return _watch(folder, options.number)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _begin(words: list[str], number: int) -> int:
    folder = open_words(words)
    config = begin(folder, number, build=os.environ.get("PREPARE") == "1")
    if config is None:
        return NOTHING
    sys.stdout.write(f"SWEEP={folder.path}\nTRIAL={folder.run(number).path}\n")
    return 0


def _end(folder: SweepFolder, number: int) -> int:
    trial = end(folder, number)
    log.info("%s %s %s", trial.name, trial.state, trial.reason)
    if trial.state != "failed":
        return 0
    return AGAIN if not trial.fatal and due(trial, folder.definition().retries) else 1


def _watch(folder: SweepFolder, number: int) -> int:
    """Until the run has ended, or its batch script has: that one ends this process."""
    pruner, parent = Pruner(folder, number), os.getppid()
    while os.getppid() == parent and not pruner.poll():
        time.sleep(LOOK_S)
    return 0


if __name__ == "__main__":
    sys.exit(main())
