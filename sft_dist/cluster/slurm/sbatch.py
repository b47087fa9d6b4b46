"""Site profile and job -> the text of an sbatch file, and its submission. The jobs themselves are slurm/*.sbatch."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sft_dist.config.base import CONTROL
from sft_dist.config.cluster import ContainerProfile, QueueProfile, SiteProfile
from sft_dist.core.errors import UserError
from sft_dist.core.process import resource

# Names of variables whose values are secrets: they go into a file of mode 0600, never into a job file or on a screen.
SECRET = re.compile(
    r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)(_|$)", re.IGNORECASE
)
SECRETS_FILE = "secrets.env"  # beside the job files
Kind = Literal["train", "prepare", "evaluate", "sweep"]  # slurm/<kind>.sbatch
RANKS: tuple[Kind, ...] = ("train", "sweep")  # jobs that train: on GPUs, signalled before their time limit
SUBMIT_S = 60.0  # a busy controller answers late


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One job, or an array of jobs.

    Attributes:
        kind: Which script of slurm/ it runs.
        name: Its name in the queue.
        folder: Where its output file goes; it must exist, on a disk that all nodes share.
        arguments: Of the script.
        exports: Environment variables of the job, such as RUN_DIR; they win over the profile's.
        nodes: Nodes of each element.
        array: Numbers of the elements as sbatch writes them, such as `0-7%2`; None is a single job.
        time: Time limit; None is the profile's.
        options: Further sbatch options, after those of the profile.
    """

    kind: Kind
    name: str
    folder: Path
    arguments: tuple[str, ...] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    array: str | None = None
    time: str | None = None
    options: tuple[str, ...] = ()


def render(site: SiteProfile, job: Job) -> str:
    """Return the sbatch file of a job: options, the site's environment, and the script of slurm/ that does the work.

    Everything that the job needs stands in the file, of which Slurm keeps a copy: a requeue repeats it as it was.
    """
    slurm = resource("slurm")
    chosen = options(site, job)
    if odd := [option for option in chosen if CONTROL.search(option)]:
        raise UserError(
            f"the sbatch option {odd[0]!r} holds a control character, and what follows a line end would run as shell; "
            "use a folder, name or option without"
        )
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in chosen)]
    lines += ["", *environment(site, job, slurm.parent), ""]
    command = shlex.join([str(slurm / f"{job.kind}.sbatch"), *job.arguments])
    return "\n".join([*lines, f"exec bash {command}", ""])


def options(site: SiteProfile, job: Job) -> list[str]:
    """Return the sbatch options of a job, in the order in which they are written."""
    trains = job.kind in RANKS
    queue: SiteProfile | QueueProfile = site if trains else getattr(site, job.kind)
    out = {
        "job-name": job.name,
        "account": queue.account or site.account,
        "partition": queue.partition or site.partition,
        "qos": queue.qos or site.qos,
        "constraint": site.constraint if job.kind != "prepare" else None,
        "reservation": site.reservation if job.kind != "prepare" else None,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",  # one launch/node.sh a node, which starts the ranks
        "cpus-per-task": str(queue.cpus_per_task) if queue.cpus_per_task else None,
        "mem": queue.mem,
        "time": job.time or queue.time,
        "signal": f"B:USR1@{site.signal_s}" if trains else None,
        "array": job.array,
        "output": _quoted(_percent(f"{job.folder}/%x-") + ("%A_%a.out" if job.array else "%j.out")),
    }
    flags = ["--requeue", "--open-mode=append"]
    if site.exclusive and trains:
        flags.append("--exclusive")
    given = [f"--{name}={value}" for name, value in out.items() if value is not None]
    own = queue.sbatch if isinstance(queue, QueueProfile) else ()
    return [*given, *flags, *_gpus(site, job), *site.sbatch, *own, *job.options]


def environment(site: SiteProfile, job: Job, root: Path) -> list[str]:
    """Return the shell lines that prepare a job: modules, variables, container."""
    lines = [f"module load {shlex.quote(name)}" for name in site.modules]
    lines += site.setup
    # slurm/site.env is for those who call sbatch themselves; here the profile stands in its place
    values: dict[str, str] = {"SFT_ROOT": str(root), "SFT_SITE_ENV": "none"}
    python = site.python or (None if site.container else sys.executable)
    if python:
        values["PYTHON"] = python
    if site.stage_env:
        values["STAGE_ENV"] = site.stage_env
    srun = list(site.srun)
    if site.container:
        values |= _container(site.container, job, root, srun)
    if srun:
        values["SRUN_OPTIONS"] = " ".join(srun)
    values |= {k: v for k, v in site.env.items() if not SECRET.search(k)} | dict(job.exports)
    if site.scratch:
        lines.append(f'export LOCAL_SCRATCH="{site.scratch}"')  # $USER and $SLURM_JOB_ID are the job's
    if secrets(site):
        file = shlex.quote(str(job.folder / SECRETS_FILE))
        lines.append(f"set -a; . {file} || exit 2; set +a  # mode 0600: the values are secrets")
    return [*lines, *(f"export {name}={shlex.quote(value)}" for name, value in values.items())]


def secrets(site: SiteProfile) -> str:
    """Return the shell lines that set the profile's secret variables; empty when it has none."""
    return "".join(f"{k}={shlex.quote(v)}\n" for k, v in site.env.items() if SECRET.search(k))


def sbatch(file: Path, *options: str) -> str:
    """Hand an sbatch file to Slurm; the job starts in the present folder. Return its number.

    Raises:
        UserError: When there is no sbatch here, or it refuses the file.
    """
    command = ["sbatch", "--parsable", "--kill-on-invalid-dep=yes", *options, str(file)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=SUBMIT_S,
        )
    except FileNotFoundError:
        raise UserError(
            f"there is no sbatch on this machine, so {file} was not submitted; run the same command on a login node of the cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"sbatch did not answer within {SUBMIT_S:.0f} s; see with squeue whether {file} was taken before submitting again"
        ) from None
    if done.returncode:
        said = re.sub(r"\s*\n\s*(sbatch: )?", "; ", done.stderr.strip()).removeprefix("sbatch: ")
        raise UserError(f"sbatch refused {file} ({said}); correct the site profile or the submit section")
    return done.stdout.strip().split(";")[0]  # on a federation: job;cluster


def cancel(jobs: Sequence[str]) -> None:
    """Cancel jobs whose successors were refused."""
    if jobs:
        subprocess.run(["scancel", *jobs], check=False, capture_output=True, timeout=SUBMIT_S)


def _gpus(site: SiteProfile, job: Job) -> list[str]:
    count = site.gpus_per_node
    if job.kind == "prepare":
        count = site.prepare.gpus or 0
    elif job.kind == "evaluate" and site.evaluate.gpus is not None:
        count = site.evaluate.gpus
    if not count or site.gpu_request == "none":
        return []
    what = f"{site.gpu_type}:{count}" if site.gpu_type else str(count)
    return [f"--gres=gpu:{what}" if site.gpu_request == "gres" else f"--gpus-per-node={what}"]


def _container(image: ContainerProfile, job: Job, root: Path, srun: list[str]) -> dict[str, str]:
    """Return the variables that slurm/job.sh reads for Apptainer; pyxis takes options of srun, which are added."""
    own = [
        str(root),
        job.exports.get("RUN_DIR", str(job.folder.parent)),
    ]  # without RUN_DIR: of a sweep, the whole of it
    if odd := [m for m in own if re.search(r"[\s,:]", m)]:
        raise UserError(
            f"{odd[0]} would be mounted in the container, and no list of mounts can carry its blanks, commas or colons; "
            "use another folder"
        )
    mounts = [*image.mounts, *own]
    mounts = [m if ":" in m else f"{m}:{m}" for m in dict.fromkeys(mounts)]
    if image.runtime == "pyxis":
        srun += [f"--container-image={image.image}", f"--container-mounts={','.join(mounts)}", *image.options]
        return {}
    gpu = ["--nv"] if job.kind != "prepare" else []
    return {
        "CONTAINER": image.image,
        "CONTAINER_OPTIONS": " ".join([*gpu, "--bind", ",".join(mounts), *image.options]),
    }


def _percent(path: str) -> str:
    """Escape what Slurm would read as a replacement symbol in the folder of an output file."""
    folder, name = path.rsplit("/", 1)
    return folder.replace("%", "%%") + "/" + name


def _quoted(value: str) -> str:
    """Quote a word of a #SBATCH line where it has what sbatch would read otherwise: white space, quotes, a comment."""
    if not re.search(r"[\s\"'#\\]", value):
        return value
    return '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'
