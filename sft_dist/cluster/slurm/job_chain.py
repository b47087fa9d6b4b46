"""A checked config and a site profile -> the chain of jobs that runs it: facts and selection of the data, slices of the store, the store, training, evaluation.

In the run folder: slurm/config.yaml (what was submitted, resolved), one .sbatch file a job, its output, jobs.json.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sft_dist.cluster.slurm.sbatch import SECRETS_FILE, Job, cancel, render, sbatch, secrets
from sft_dist.config.cluster import SiteProfile
from sft_dist.core.errors import BusyError, UserError
from sft_dist.core.files import read_object, write_json, write_text

FOLDER = "slurm"  # inside the run folder
CONFIG = "config.yaml"


def chain(
    run_dir: Path,
    *,
    nodes: int,
    prepare_tasks: int,
    evaluate: bool,
    doctor: bool,
    time: str | None,
    sbatch: tuple[str, ...],
) -> dict[str, Job]:
    """Return the jobs of a run, each of which waits for the one before it.

    Args:
        run_dir: The run folder, absolute.
        nodes: Nodes of training.
        prepare_tasks: Elements of the array that builds the token stores; 0: they exist.
        evaluate: Whether an evaluation follows.
        doctor: Whether training begins with an examination of its nodes.
        time: Time limit of training; None is the profile's.
        sbatch: Further sbatch options of training.
    """
    folder, name = run_dir / FOLDER, run_dir.name
    config = (str(folder / CONFIG),)
    run = {"RUN_DIR": str(run_dir)}
    jobs = {}
    if prepare_tasks:
        array = f"0-{prepare_tasks - 1}"
        for stage, elements in (("facts", array), ("selection", None)):
            jobs[stage] = Job(
                kind="prepare",
                name=f"{name}-{stage}",
                folder=folder,
                arguments=(*config, "--until", stage),
                array=elements,
            )
        jobs["slices"] = Job(
            kind="prepare", name=f"{name}-slices", folder=folder, arguments=config, array=array
        )
        jobs["stores"] = Job(kind="prepare", name=f"{name}-stores", folder=folder, arguments=config)
    jobs["train"] = Job(
        kind="train",
        name=name,
        folder=folder,
        arguments=config,
        exports=run | ({"DOCTOR": "1"} if doctor else {}),
        nodes=nodes,
        time=time,
        options=sbatch,
    )
    if evaluate:
        jobs["evaluate"] = Job(kind="evaluate", name=f"{name}-evaluate", folder=folder, exports=run)
    return jobs


def files(site: SiteProfile, jobs: Mapping[str, Job], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what is written beside the run: the resolved config and an sbatch file a job, by name."""
    text = yaml.safe_dump(_escaped(dict(config)), sort_keys=False, allow_unicode=True)
    hidden = {SECRETS_FILE: secret} if (secret := secrets(site)) else {}
    return {CONFIG: text} | hidden | {f"{name}.sbatch": render(site, job) for name, job in jobs.items()}


def send(run_dir: Path, texts: Mapping[str, str], jobs: Mapping[str, Job]) -> dict[str, str]:
    """Write the files and submit the jobs, each after the one before it; return their numbers.

    Raises:
        UserError: When Slurm refuses one; those before it are cancelled then.
    """
    folder = run_dir / FOLDER
    for name, text in texts.items():
        write_text(folder / name, text, private=name == SECRETS_FILE)
    numbers: dict[str, str] = {}
    for name in jobs:
        after = [f"--dependency=afterok:{list(numbers.values())[-1]}"] if numbers else []
        try:
            numbers[name] = sbatch(folder / f"{name}.sbatch", *after)
        except (UserError, RuntimeError):
            cancel(list(numbers.values()))
            raise
    write_json(folder / "jobs.json", numbers)
    return numbers


def follow(numbers: Mapping[str, str], **lines: str) -> str:
    """Return what is told after a submission: the jobs, how to see them in the queue, and `lines` by title."""
    told = {name: f"job {number}" for name, number in numbers.items()}
    told |= {"queue": f"squeue -j {','.join(numbers.values())}", **lines}
    width = max(map(len, told))
    return "\n".join(f"{title:{width}}  {text}" for title, text in told.items())


def shown(run_dir: Path, texts: Mapping[str, str]) -> str:
    """Return what a dry run shows: every file that would be written."""
    hidden = re.sub(r"=.*", "=(hidden)", texts.get(SECRETS_FILE, ""))
    masked = {name: hidden if name == SECRETS_FILE else text for name, text in texts.items()}
    files = [f"---- {run_dir / FOLDER / name}\n{text.rstrip()}" for name, text in masked.items()]
    return "\n".join([*files, "---- dry run: none of these was written, nothing was submitted"])


def refuse_if_queued(run_dir: Path) -> None:
    """Refuse a run whose earlier jobs have not ended.

    Raises:
        BusyError: When Slurm still has one of them.
    """
    earlier = run_dir / FOLDER / "jobs.json"
    if not earlier.is_file():
        return
    numbers = ",".join(map(str, read_object(earlier, "remove it when no job of the run is queued").values()))
    try:
        # an unknown number (Slurm forgets) is an error for one job and ignored among several
        asked = subprocess.run(
            ["squeue", "-h", "-j", numbers, "-o", "%F"],  # of an array its own number
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return
    if waiting := list(dict.fromkeys(asked.stdout.split())):
        raise BusyError(
            f"{run_dir} was submitted before and its job {waiting[0]} has not ended, so two jobs would share one run folder; "
            f"wait, cancel it with: scancel {' '.join(waiting)}, or use another name"
        )


def _escaped(value: Any) -> Any:
    """Escape what Hydra would take for an interpolation when the file is read again."""
    if isinstance(value, dict):
        return {k: _escaped(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_escaped(v) for v in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
