"""Where it runs: processes, nodes, rendezvous; what is submitted; a cluster as its users ask for it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from sft_dist.config.base import Section

SLURM_TIME = r"(\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d+(:\d\d){0,2}|UNLIMITED|INFINITE)"  # man sbatch, --time


def _check_time(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(SLURM_TIME, value):
        raise ValueError(
            f"{value!r} is no time limit of Slurm; write minutes, or 'hours:minutes:seconds', or 'days-hours' (quoted in YAML)"
        )
    return value


def _check_word(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"\S+", value):
        raise ValueError(f"{value!r} is empty or has white space; write one word as sbatch takes it")
    return value


def _check_options(value: tuple[str, ...]) -> tuple[str, ...]:
    for option in value:
        if not re.fullmatch(r"-\S.*", option):
            raise ValueError(f"{option!r} is no option; write it as on the command line, such as --nice=100")
    return value


class LaunchConfig(Section):
    """Processes of one run. On Slurm the batch script sets nodes and addresses from the allocation."""

    nproc: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        default="auto", description="Ranks a node; auto: one a GPU, one on a machine without."
    )
    nodes: int = Field(
        default=1,
        ge=1,
        le=100_000,
        description="Nodes; more than one is started by slurm/train.sbatch or launch/multi_node.sh.",
    )
    port: int | None = Field(
        default=None,
        ge=1024,
        le=65535,
        description="Rendezvous port; null: a free one (one node) or from the job id.",
    )
    stage_dir: str | None = Field(
        default=None,
        description="Folder on a node's own disk ($VARIABLES are expanded) that token stores are copied to, once a node; null: read where they lie.",
    )


class SubmitConfig(Section):
    """What `sft-dist submit` asks of Slurm for this run; the site's own settings stand in the profile that `cluster` names."""

    prepare_tasks: NonNegativeInt = Field(
        default=0,
        description="Elements of a CPU array job that builds the token stores before training; 0: they exist already.",
    )
    evaluate: bool = Field(default=False, description="Chain an evaluation job after training.")
    doctor: bool = Field(
        default=False, description="Examine the nodes before training; a bad one ends the job and is named."
    )
    time: str | None = Field(
        default=None, description="Time limit of the training job, as Slurm writes it; null: the profile's."
    )
    sbatch: tuple[str, ...] = Field(
        default=(), description="Further sbatch options of the training job, such as --nice=100."
    )

    _time = field_validator("time")(_check_time)
    _options = field_validator("sbatch")(_check_options)


class QueueProfile(Section):
    """Where a CPU or evaluation job of the chain runs; what is null is as for training."""

    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    time: str = Field(default="04:00:00", description="Time limit, as Slurm writes it.")
    cpus_per_task: PositiveInt | None = Field(default=None, description="Cores of the job.")
    mem: str | None = Field(default=None, description="Memory of the node, such as 64G.")
    gpus: NonNegativeInt | None = Field(
        default=None, description="GPUs; null: none to prepare, gpus_per_node to evaluate."
    )
    sbatch: tuple[str, ...] = Field(default=(), description="Further sbatch options.")

    _values = field_validator("account", "partition", "qos", "mem")(_check_word)
    _time = field_validator("time")(_check_time)
    _options = field_validator("sbatch")(_check_options)


class ContainerProfile(Section):
    """An image that every command of a job runs in."""

    runtime: Literal["apptainer", "pyxis"] = Field(description="pyxis: srun starts the container (enroot).")
    image: str = Field(description="Image file, or what the runtime takes instead.")
    mounts: tuple[str, ...] = Field(
        default=(),
        description="Folders seen inside, FOLDER or FOLDER:INSIDE; the run folder and this package always are.",
    )
    options: tuple[str, ...] = Field(
        default=(), description="Further options of `apptainer exec`, or of srun under pyxis."
    )

    @field_validator("image", "mounts", "options")
    @classmethod
    def _words(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        # job.sh takes these options as a list of words
        for text in (value,) if isinstance(value, str) else value:
            if not text or re.search(r"\s", text):
                raise ValueError(f"{text!r} is empty or has white space, which these options cannot carry")
        return value


class SiteProfile(Section):
    """A cluster, as its users are told to ask for it: one YAML file a cluster, in the user's own settings."""

    account: str | None = Field(default=None, description="Project that is billed.")
    partition: str | None = Field(default=None, description="Queue of training jobs.")
    qos: str | None = Field(default=None, description="Quality of service.")
    constraint: str | None = Field(default=None, description="Features that nodes must have, such as a100.")
    reservation: str | None = None
    gpus_per_node: NonNegativeInt = Field(default=0, description="GPUs of a node; 0: none are asked for.")
    gpu_type: str | None = Field(default=None, description="Type in the request, such as a100.")
    gpu_request: Literal["gpus-per-node", "gres", "none"] = Field(
        default="gpus-per-node", description="How the site wants GPUs to be asked for; none: with the node."
    )
    cpus_per_task: PositiveInt | None = Field(default=None, description="Cores of a node, for all its ranks.")
    mem: str | None = Field(default=None, description="Memory of a node, such as 480G; '0' is all of it.")
    exclusive: bool = Field(default=False, description="Ask for whole nodes.")
    time: str = Field(default="24:00:00", description="Time limit of training, as Slurm writes it.")
    signal_s: PositiveInt = Field(
        default=300, description="Seconds before the limit at which a run saves and is requeued."
    )
    sbatch: tuple[str, ...] = Field(default=(), description="Further sbatch options of every job.")
    modules: tuple[str, ...] = Field(default=(), description="Environment modules to load.")
    setup: tuple[str, ...] = Field(
        default=(), description="Shell lines before every job, such as `. /shared/env/bin/activate`."
    )
    python: str | None = Field(
        default=None,
        description="Interpreter on the nodes; null: the one that submits (in a container: python3).",
    )
    stage_env: str | None = Field(
        default=None,
        description="Archive of the environment, unpacked once a node on its own disk; null: it is used where it lies.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables of every job.")
    container: ContainerProfile | None = None
    srun: tuple[str, ...] = Field(default=(), description="Further srun options.")
    run_root: str | None = Field(
        default=None, description="Folder of run folders, seen by all nodes, where the config names none."
    )
    scratch: str | None = Field(
        default=None, description="Disk of each node, for compiled kernels; may hold $USER and $SLURM_JOB_ID."
    )
    wandb_offline: bool = Field(
        default=False,
        description="Nodes have no internet: wandb.mode=auto means offline (slurm/wandb-sync.sh).",
    )
    device: str | None = Field(
        default=None,
        description="GPU of the nodes as the estimate knows it, such as H100; null: from gpu_type.",
    )
    prepare: QueueProfile = QueueProfile()
    evaluate: QueueProfile = QueueProfile()

    _values = field_validator("account", "partition", "qos", "constraint", "reservation", "gpu_type", "mem")(
        _check_word
    )
    _time = field_validator("time")(_check_time)
    _options = field_validator("sbatch", "srun")(_check_options)

    @model_validator(mode="after")
    def _one_environment(self) -> SiteProfile:
        if self.stage_env and self.container:
            raise ValueError("stage_env and container are two environments; set one of them")
        return self

    @field_validator("env")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} cannot be an environment variable; use letters, digits and '_'")
        return value
