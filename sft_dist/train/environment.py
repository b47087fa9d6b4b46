"""What a run ran on: versions, device, host. For env.json and the report."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sft_dist.core.process import PACKAGE

PACKAGES = (
    "torch",
    "deepspeed",
    "transformers",
    "tokenizers",
    "datasets",
    "numpy",
    "flash-attn",
    "sft-dist",
)


def environment(hosts: Sequence[str]) -> dict[str, Any]:
    """Return what a reader needs to reproduce or to doubt a run, on which `hosts` gives the host of each rank."""
    cpu = f"{platform.machine()} CPU, {os.cpu_count()} cores"
    return {
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "python": platform.python_version(),
        "hosts": list(dict.fromkeys(hosts)),  # all have equally many ranks, in this order
        "world_size": len(hosts),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu,
        "git": _git(),
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "started": time.time(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git() -> str | None:
    """Return the commit of a checkout, with + when it was changed; None outside one."""
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
