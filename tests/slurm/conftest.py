"""A real Slurm on this machine (machine/start-cluster.sh), started once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_machine import MACHINE, REPOSITORY, Cluster

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Start Slurm as real clusters run it (cgroup process tracking), or without where cgroups are missing."""
    if os.geteuid() != 0:
        pytest.skip("starting a Slurm cluster with nodes of its own needs root")
    missing = [
        p
        for p in ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare")
        if not shutil.which(p, path=SYSTEM_PATH)
    ]
    if missing:
        pytest.skip(
            f"no {', '.join(missing)} here (apt-get install slurmctld slurmd slurm-client munge iproute2)"
        )
    root = Path(f"/tmp/sft-slurm-{os.getpid()}")  # short: a Unix socket's path has at most 107 characters
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "OMP_"))}
    environment = {
        **kept,
        "PATH": SYSTEM_PATH,
        "ROOT": str(root),
        "PFX": f"sft{os.getpid()}",
        "PYTHON": sys.executable,
    }
    failures = []
    for proctrack in ("cgroup", "linuxproc"):
        start = subprocess.run(
            ["bash", str(MACHINE / "start-cluster.sh")],
            env={**environment, "PROCTRACK": proctrack},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        if start.returncode == 0:
            break
        failures.append(f"{proctrack}: {(start.stdout + start.stderr).strip()[-300:]}")
    try:
        if len(failures) == 2:
            pytest.skip(f"Slurm did not start: {failures}")
        settings = {"SFT_ROOT": str(REPOSITORY), "LOCAL_SCRATCH": str(root / "local"), "POLL_S": "0.5"}
        yield Cluster(root=root, environment=environment | settings, proctrack=proctrack)
    finally:
        subprocess.run(
            ["bash", str(MACHINE / "stop-cluster.sh")],
            env=environment,
            check=False,
            capture_output=True,
            timeout=60,
        )
        shutil.rmtree(root, ignore_errors=True)
