"""A sweep, here or on Slurm: which trials are due, each in a process or an array element of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import chdir, suppress
from dataclasses import replace

from rich.console import Console

from sft_dist.cluster.local_ranks import gpus, ranks_of
from sft_dist.cluster.slurm.job_chain import FOLDER, chain, files, follow, refuse_if_queued, send, shown
from sft_dist.cluster.slurm.sbatch import Job
from sft_dist.cluster.slurm.site import load_site
from sft_dist.cluster.sweep.folder import Definition, SweepFolder, Trial
from sft_dist.cluster.sweep.run_metric import RUN_METRICS
from sft_dist.config import RunConfig
from sft_dist.config.load import validate
from sft_dist.core.errors import UserError
from sft_dist.pipelines.cluster.submit import at_site
from sft_dist.pipelines.data.prepare import prepare
from sft_dist.pipelines.sweep.define import data_key, trial_config
from sft_dist.pipelines.sweep.trial import due

POLL_S = 0.5
TASK = "sft_dist.pipelines.sweep.trial"


def run_sweep(folder: SweepFolder, console: Console) -> int:
    """Run the trials that are due on this machine; return how many of the sweep have failed.

    Raises:
        UserError: When the machine is too small for what is asked.
        KeyboardInterrupt: After Ctrl-C, when the live trials have stopped with a checkpoint.
    """
    definition = folder.definition()
    numbers = due_numbers(folder, definition)
    places = _places(definition)
    with chdir(definition.cwd), console.status("preparing") as status:
        for config in _data_configs(folder, definition, numbers):
            with suppress(UserError):  # the trials that need these data say so, each in its record
                prepare(config, progress=status.update)
    console.print(f"{len(numbers)} of {definition.trials} trials to do in {folder.path}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's polite end
    try:
        with console.status("") as status:
            _Runner(folder, definition, console, places).run(numbers, status.update)
    finally:
        signal.signal(signal.SIGTERM, before)
    return sum(t.state == "failed" for t in folder.trials())


def submit_sweep(folder: SweepFolder, console: Console, *, dry_run: bool) -> None:
    """Submit the trials that are due as one array job, after the jobs that build the token stores where they are asked for.

    Raises:
        UserError: When no cluster is named, its profile is wrong, or Slurm refuses.
    """
    definition = folder.definition()
    config = validate(definition.base)
    if config.cluster is None:
        raise UserError(
            "no cluster is named, so it is unknown what to ask Slurm for; add cluster=NAME of a site profile (docs/cluster.md)"
        )
    site = load_site(config.cluster)
    there = at_site(config, site)
    numbers = due_numbers(folder, definition)
    if not numbers:
        console.print(f"every trial of {folder.path} has ended; sft-dist report --sweep {folder.path}")
        return
    own = {f"wandb.mode={there.wandb.mode}", f"launch.nproc={there.launch.nproc}"}
    own -= {f"wandb.mode={config.wandb.mode}", f"launch.nproc={config.launch.nproc}", *definition.overrides}
    with chdir(definition.cwd):
        several = len(_data_configs(folder, definition, numbers)) > 1
        jobs = chain(
            folder.path,
            nodes=config.launch.nodes,
            prepare_tasks=config.submit.prepare_tasks,
            evaluate=False,
            doctor=False,
            time=config.submit.time,
            sbatch=config.submit.sbatch,
        )
        jobs["sweep"] = Job(
            kind="sweep",
            name=folder.path.name,
            folder=folder.path / FOLDER,
            arguments=(str(folder.path),),
            # stores that only some trials use are built by the first that needs them
            exports=({"PREPARE": "1"} if several else {}) | ({"DOCTOR": "1"} if config.submit.doctor else {}),
            nodes=config.launch.nodes,
            array=f"{_ranges(numbers)}%{definition.max_parallel}",
            time=config.submit.time,
            options=config.submit.sbatch,
        )
        del jobs["train"]
        texts = files(site, jobs, there.model_dump(mode="json"))
        if dry_run:
            console.print(shown(folder.path, texts), soft_wrap=True, markup=False)
            return
        refuse_if_queued(folder.path)
        if own:
            folder.define(replace(definition, overrides=[*definition.overrides, *sorted(own)]))
        submitted = send(folder.path, texts, jobs)
    quoted = shlex.quote(str(folder.path))
    lines = {
        "sweep folder": f"{folder.path}: {len(numbers)} trial{'s' * (len(numbers) > 1)}, {definition.max_parallel} at a time",
        "output": f"{folder.path / FOLDER}/*.out",
        "so far": f"sft-dist report --sweep {quoted}",
        "go on": f"sft-dist sweep --submit {quoted}",
        "end at once": f"scancel {' '.join(submitted.values())}",
    }
    console.print(follow(submitted, **lines), soft_wrap=True, markup=False)


def due_numbers(folder: SweepFolder, definition: Definition) -> list[int]:
    """Return the numbers of the trials that have something to do.

    Raises:
        UserError: When the record of a grid's trial is gone, and with it what it was to try.
    """
    known = {t.number: t for t in folder.trials()}
    if gone := [n for n in range(definition.trials) if definition.method == "grid" and n not in known]:
        raise UserError(
            f"{folder.path} has no record of trial-{gone[0]:03d}, so it is unknown what it was to try; "
            "repeat the command that made the sweep, which adds what is missing"
        )
    return [n for n in range(definition.trials) if due(known.get(n), definition.retries)]


def _data_configs(folder: SweepFolder, definition: Definition, numbers: Iterable[int]) -> list[RunConfig]:
    """Return one config for each data folder that the trials train on, as far as their settings are known."""
    found: dict[str, RunConfig] = {}
    for number in numbers:
        if trial := folder.trial(number):
            config = trial_config(folder, definition, trial.settings, trial.name)
            found.setdefault(config.data.dir + data_key(config.model_dump(mode="json")), config)
    return list(found.values())


def _places(definition: Definition) -> list[dict[str, str]]:
    """Return the environment of each place for a trial: its own GPUs, its share of the cores.

    Raises:
        UserError: When there are fewer GPUs than the trials would use together.
    """
    count, nproc = definition.max_parallel, definition.base["launch"]["nproc"]
    visible = gpus()
    each = max(1, visible // count) if nproc == "auto" else ranks_of(nproc)
    cores = len(os.sched_getaffinity(0))
    # node.sh divides the cores of the machine by the ranks of one trial
    common = {} if count == 1 else {"OMP_NUM_THREADS": str(max(1, cores // (count * each)))}
    if count == 1 or not visible:
        return [common for _ in range(count)]
    if count * each > visible:
        raise UserError(
            f"sweep.max_parallel={count} trials of {each} ranks need {count * each} GPUs, and this machine has {visible}, so trials "
            f"would share devices; use sweep.max_parallel={max(1, visible // each)}, or a smaller launch.nproc"
        )
    names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    devices = [d for d in names if d.strip()] or [str(i) for i in range(visible)]
    return [
        common | {"CUDA_VISIBLE_DEVICES": ",".join(devices[i * each : (i + 1) * each])} for i in range(count)
    ]


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2,5"."""
    out: list[list[int]] = []
    for n in numbers:
        if out and n == out[-1][1] + 1:
            out[-1][1] = n
        else:
            out.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in out)


class _Runner:
    """Keeps as many trials going as there are places, one process each."""

    def __init__(
        self, folder: SweepFolder, definition: Definition, console: Console, places: list[dict[str, str]]
    ) -> None:
        self._folder, self._definition, self._console = folder, definition, console
        self._free = list(places)
        self._live: dict[int, tuple[subprocess.Popen[bytes], dict[str, str]]] = {}
        self._logs = folder.path / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)

    def run(self, numbers: list[int], progress: Callable[[str], None]) -> None:
        """Run them all; a failed one goes to the end of the queue while it may be begun again."""
        queue, interrupts = list(numbers), 0
        try:
            while self._live or (queue and not interrupts):
                try:
                    while queue and self._free and not interrupts:
                        self._start(queue.pop(0))
                    ended = [n for n, (p, _) in self._live.items() if p.poll() is not None]
                    queue.extend([n for n in ended if self._collect(n)])
                    progress(self._line(queue))
                    time.sleep(POLL_S)
                except KeyboardInterrupt:
                    interrupts += 1
                    for process, _ in self._live.values():
                        os.kill(process.pid, signal.SIGINT)
                    if interrupts == 1:
                        self._console.print(
                            "stopping the live trials at their next step, with a checkpoint; press Ctrl-C again to end at once"
                        )
        finally:
            for process, _ in self._live.values():  # something of ours failed, or the folder was removed
                process.send_signal(signal.SIGINT)
        if interrupts:
            self._console.print("interrupted; the same command continues")
            raise KeyboardInterrupt

    def _start(self, number: int) -> None:
        place = self._free.pop(0)
        with (self._logs / f"trial-{number:03d}.log").open("a") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", TASK, "run", str(self._folder.path), str(number)],
                env={**os.environ, **place},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then asks politely
            )
        self._live[number] = process, place

    def _collect(self, number: int) -> bool:
        """Say how a trial ended; return whether it is to be begun again now."""
        process, place = self._live.pop(number)
        self._free.append(place)
        trial = self._folder.trial(number)
        again = trial is not None and trial.state == "failed" and not trial.fatal
        again = again and due(trial, self._definition.retries)
        self._console.print(self._said(number, trial, process.returncode, again=again), soft_wrap=True)
        return again

    def _said(self, number: int, trial: Trial | None, code: int, *, again: bool) -> str:
        log = self._logs / f"trial-{number:03d}.log"
        if trial is None or trial.state in ("waiting", "running"):
            return f"trial-{number:03d}  left as it is: its process ended with code {code}; see {log}"
        head = f"{trial.name}  {' '.join(trial.overrides)}  {trial.state}"
        if trial.state == "finished" and trial.value is not None:
            return f"{head}: {RUN_METRICS[self._definition.metric].title} {trial.value:.5g}"
        if trial.state == "failed":
            return f"{head}: {trial.reason} ({log}){'; it will be begun again' * again}"
        return f"{head} at step {trial.step}"

    def _line(self, queue: list[int]) -> str:
        ended = [t for t in self._folder.trials() if t.state == "finished" and t.value is not None]
        text = f"{len(self._live)} running, {len(queue)} waiting, {len(ended)} finished"
        if best := self._folder.best(ended, self._definition.metric):
            text += f"; best {best.name} {best.value:.5g}"
        return text
