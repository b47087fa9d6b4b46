"""What one node finds out about itself, before any rank starts: packages, devices, disks, limits, network. No torch here.

Packages are imported in processes of their own: a wrong ABI can end the process that imports.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sft_dist.core.process import resource as shipped

Level = Literal["pass", "warn", "fail"]
IMPORT_S = 300  # a cold file system under many nodes
PROBE_BYTES = 32 << 20
SLOW_DISK = 50e6  # bytes a second
SHM_BYTES = 1 << 30
OPEN_FILES = 4096
CLOCK_WARN_S, CLOCK_FAIL_S = 2.0, 60.0  # munge refuses at 300 s; make and file dates suffer before

TORCH = """
import json, torch
cuda = torch.cuda.is_available()
out = {"torch": torch.__version__, "cuda": torch.version.cuda, "available": cuda, "devices": torch.cuda.device_count()}
if cuda:
    out["device"] = torch.cuda.get_device_name()
    out["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    x = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)
    out["product"] = float((x @ x).sum())
print(json.dumps(out))
"""
LIBRARIES = """
import json, os
os.environ.setdefault("DS_ACCELERATOR", os.environ.get("SFT_DOCTOR_ACCELERATOR", "cpu"))
import transformers, deepspeed
print(json.dumps({"transformers": transformers.__version__, "deepspeed": deepspeed.__version__}))
"""
FLASH = """
import json, torch, flash_attn
from flash_attn import flash_attn_varlen_func
q = torch.randn(64, 2, 64, device="cuda", dtype=torch.bfloat16)
cu = torch.tensor([0, 24, 64], device="cuda", dtype=torch.int32)
out = flash_attn_varlen_func(q, q, q, cu, cu, 40, 40, causal=True)
torch.cuda.synchronize()
print(json.dumps({"flash-attn": flash_attn.__version__, "finite": bool(out.isfinite().all())}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the table."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def packages() -> tuple[list[Check], dict[str, str]]:
    """Import what training imports; return the checks, and the versions that all nodes must share."""
    out: list[Check] = []
    torch, why = _python(TORCH)
    versions = {"python": sys.version.split()[0]}
    if torch is None:
        remedy = "reinstall torch for the driver of this node, or load the module that it was built with"
        return [Check(name="torch", level="fail", found=why, remedy=remedy)], versions
    versions["torch"] = torch["torch"]
    shown = f"{torch['torch']}, " + (
        f"{torch['devices']} x {torch['device']}" if torch["available"] else "no CUDA device"
    )
    if _driver() and not torch["available"] and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        out.append(
            Check(
                name="torch",
                level="fail",
                found=f"{shown}, though the driver {_driver()} is there (torch is built for CUDA {torch['cuda']})",
                remedy="install a torch for this driver's CUDA version",
            )
        )
    else:
        out.append(Check(name="torch", level="pass", found=shown))
    if torch["available"]:
        versions |= {"cuda": str(torch["cuda"]), "nccl": torch["nccl"], "driver": _driver()}
    libraries, why = _python(LIBRARIES, SFT_DOCTOR_ACCELERATOR="cuda" if torch["available"] else "cpu")
    if libraries is None:
        remedy = "reinstall the package that the message names, in the environment of this node"
        out.append(Check(name="deepspeed, transformers", level="fail", found=why, remedy=remedy))
    else:
        versions |= libraries
        found = f"{libraries['deepspeed']}, {libraries['transformers']}"
        out.append(Check(name="deepspeed, transformers", level="pass", found=found))
    if torch["available"]:
        out.append(_flash())
    return out, versions


def devices(expected: int) -> list[Check]:
    """Look at the GPUs: their number, memory in use, uncorrected memory errors."""
    if not expected:
        return []
    query = [
        "nvidia-smi",
        "--query-gpu=index,memory.used,ecc.errors.uncorrected.volatile.total",
        "--format=csv,noheader,nounits",
    ]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout
    except (FileNotFoundError, subprocess.TimeoutExpired):
        listed = ""
    rows = [[w.strip() for w in line.split(",")] for line in listed.splitlines() if line.count(",") == 2]
    if len(rows) < expected:
        remedy = "drain the node; until then exclude it: submit.sbatch=['--exclude=NODE']"
        return [Check(name="GPUs", level="fail", found=f"{len(rows)} of {expected}", remedy=remedy)]
    broken = [row[0] for row in rows if row[2].isdigit() and int(row[2])]
    if broken:
        remedy = "reset the GPU or drain the node"
        return [
            Check(
                name="GPUs",
                level="fail",
                found=f"uncorrected memory errors on GPU {', '.join(broken)}",
                remedy=remedy,
            )
        ]
    used = [f"GPU {row[0]}: {row[1]} MiB" for row in rows if row[1].isdigit() and int(row[1]) > 1024]
    if used:
        remedy = "another process holds this memory; end it, or ask for whole nodes (exclusive: true)"
        return [Check(name="GPUs", level="warn", found=f"memory in use: {', '.join(used)}", remedy=remedy)]
    return [Check(name="GPUs", level="pass", found=f"{len(rows)}, free, no memory errors")]


def disk(name: str, folder: Path, need_bytes: int = 0) -> Check:
    """Write and read back in a folder, and compare its free space with what a run needs."""
    probe = folder / f".sft-doctor-{socket.gethostname()}-{os.getpid()}"
    remedy = f"set {name} to a disk that this node can write"
    block = os.urandom(1 << 20)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        began = time.monotonic()
        with probe.open("wb") as file:
            for _ in range(PROBE_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        wrote = PROBE_BYTES / (time.monotonic() - began)
        began = time.monotonic()
        probe.read_bytes()
        read = PROBE_BYTES / (time.monotonic() - began)
    except OSError as error:
        return Check(name=name, level="fail", found=f"{folder}: {error.strerror or error}", remedy=remedy)
    finally:
        probe.unlink(missing_ok=True) if probe.parent.is_dir() else None
    found = f"{folder}: {free / 1e9:.1f} GB free, writes {wrote / 1e6:.0f} MB/s, reads {read / 1e6:.0f} MB/s"
    if free < need_bytes:
        more = f"the run keeps {need_bytes / 1e9:.1f} GB; lower checkpoint.keep_last, or {remedy}"
        return Check(name=name, level="fail", found=found, remedy=more)
    if wrote < SLOW_DISK:
        return Check(
            name=name, level="warn", found=found, remedy="checkpoints will take long; ask for a faster disk"
        )
    return Check(name=name, level="pass", found=found)


def limits(gpus: int) -> list[Check]:
    """Look at the limits that this process inherited, and at shared memory."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    ample = files == resource.RLIM_INFINITY or files >= OPEN_FILES
    out = [
        Check(
            name="open files",
            level="pass" if ample else "warn",
            found="unlimited" if files == resource.RLIM_INFINITY else str(files),
            remedy=""
            if ample
            else f"ulimit -n {OPEN_FILES} in the profile's setup, or PropagateResourceLimits in slurm.conf",
        )
    ]
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if gpus and locked != resource.RLIM_INFINITY:
        remedy = "InfiniBand needs locked memory: ulimit -l unlimited, or LimitMEMLOCK=infinity for slurmd"
        out.append(Check(name="locked memory", level="warn", found=f"{locked >> 10} KiB", remedy=remedy))
    try:
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108  the mount itself is what is looked at
    except OSError:
        free = 0
    out.append(
        Check(
            name="/dev/shm",  # noqa: S108  the mount itself is what is looked at
            level="pass" if free >= SHM_BYTES else "warn",
            found=f"{free / 1e9:.1f} GB free",
            remedy=""
            if free >= SHM_BYTES
            else "NCCL uses it between the GPUs of a node; start the container with a larger one",
        )
    )
    return out


def network(address: str, *, several: bool) -> Check:
    """Say which interface leads to node 0, as launch/node.sh will choose it."""
    script = shipped("launch") / "interface.py"
    asked = subprocess.run(
        [sys.executable, str(script), address], capture_output=True, text=True, check=False, timeout=30
    )
    name = os.environ.get("GLOO_SOCKET_IFNAME") or asked.stdout.strip()
    if several and name in ("", "lo"):
        remedy = (
            "set MASTER_ADDR_SUFFIX or GLOO_SOCKET_IFNAME in the profile's env to what the site documents"
        )
        return Check(
            name="interface", level="fail", found=f"{name or 'none'} towards {address}", remedy=remedy
        )
    present = [n for _, n in socket.if_nameindex()]
    if absent := [n for n in name.split(",") if n and n not in present]:  # Gloo takes a list
        return Check(
            name="interface",
            level="fail",
            found=f"GLOO_SOCKET_IFNAME={name}, but {absent[0]} is not on this node ({', '.join(present)})",
            remedy="set GLOO_SOCKET_IFNAME to one of these, or leave it out: it is found by the route to node 0",
        )
    speed = Path(f"/sys/class/net/{name}/speed")
    try:
        rate = f", {mbit} Mbit/s" if (mbit := int(speed.read_text())) > 0 else ""  # a virtual one says -1
    except (OSError, ValueError):
        rate = ""
    return Check(name="interface", level="pass", found=f"{name or 'lo'} towards {address}{rate}")


def clock(offset_s: float) -> Check:
    """Judge how far a clock is from node 0's."""
    level: Level = (
        "fail" if abs(offset_s) > CLOCK_FAIL_S else "warn" if abs(offset_s) > CLOCK_WARN_S else "pass"
    )
    remedy = "" if level == "pass" else "start chrony or ntpd on this node"
    return Check(name="clock", level=level, found=f"{offset_s:+.3f} s from node 0", remedy=remedy)


def _flash() -> Check:
    if importlib.util.find_spec("flash_attn") is None:
        remedy = "model.attention=auto takes torch's own kernel (varlen); pip install 'sft-dist[gpu]' for flash-attn"
        return Check(name="flash-attn", level="warn", found="not installed", remedy=remedy)
    flash, why = _python(FLASH)
    if flash is None or not flash["finite"]:
        remedy = "install the wheel for this torch, CUDA and C++ ABI, or set model.attention=varlen"
        return Check(name="flash-attn", level="warn", found=why or "its kernel gives NaN", remedy=remedy)
    return Check(name="flash-attn", level="pass", found=f"{flash['flash-attn']}, its kernel runs")


def _driver() -> str:
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return asked.stdout.split("\n")[0].strip() if asked.returncode == 0 else ""


def _python(program: str, **environment: str) -> tuple[dict[str, Any] | None, str]:
    """Run a program that prints JSON last; return that, or None and why not."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=IMPORT_S,
        )
    except subprocess.TimeoutExpired:
        return None, f"importing took more than {IMPORT_S} s"
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        return json.loads(lines[-1]), ""
    errors = done.stderr.strip().splitlines()
    last = errors[-1] if errors else "nothing was said"
    return None, last if done.returncode > 0 else f"ended by signal {-done.returncode} ({last})"
