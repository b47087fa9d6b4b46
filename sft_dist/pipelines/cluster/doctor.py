"""Examine the nodes of a run before it starts: every node looks at itself, then all run one real step together.

Alone it examines this machine. Started once a node (`srun --ntasks-per-node=1 sft-dist doctor`, or as the prologue of
slurm/train.sbatch) or as the ranks of torchrun, node 0 gathers what the others find, names those that say nothing, and
all end with the same exit code.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from rich.console import Console
from rich.table import Table

from sft_dist.cluster.doctor import checks
from sft_dist.cluster.doctor.checks import Check
from sft_dist.cluster.doctor.diagnose import checks_of, compare_versions, diagnose_steps
from sft_dist.cluster.doctor.rendezvous import RendezvousClient, RendezvousServer, make_secret
from sft_dist.cluster.local_ranks import free_port, gpus, ranks_of
from sft_dist.config import RunConfig
from sft_dist.config.load import config_to_json
from sft_dist.core.errors import UserError
from sft_dist.core.files import expanded, write_text
from sft_dist.core.process import resource
from sft_dist.pipelines.cluster.estimate_inputs import kept_bytes, model_config, shape_of
from sft_dist.pipelines.train.run_folder import absolute

STEP = "sft_dist.pipelines.cluster.doctor_step"
WAIT_S = 180.0  # for nodes to examine themselves: importing from a cold, shared disk is slow
STEP_S = 600.0  # for the common step


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """This process among those that examine: its index, and their names."""

    index: int
    names: tuple[str, ...]
    token: str
    address: str
    port: int
    several: bool  # more than one machine

    @classmethod
    def find(cls) -> Place:
        """Read it from torchrun's environment, else from Slurm's, else: one machine."""
        env = os.environ
        if "SLURM_STEP_NUM_TASKS" in env and "RANK" not in env and int(env["SLURM_STEP_NUM_TASKS"]) > 1:
            count, index = int(env["SLURM_STEP_NUM_TASKS"]), int(env["SLURM_PROCID"])
            hosts = _slurm_hosts()
            job, step = int(env["SLURM_JOB_ID"]), int(env.get("SLURM_STEP_ID", "0"))
            return cls(
                index=index,
                names=tuple(hosts) if len(hosts) == count else tuple(f"task {i}" for i in range(count)),
                token=f"{job}.{step}",
                address=env.get("MASTER_ADDR") or hosts[0],
                # as in train.sbatch: below the ephemeral ports
                port=20000 + (job * 7 + step * 13 + 6007) % 12000,
                several=True,
            )
        count, index = int(env.get("WORLD_SIZE", "1")), int(env.get("RANK", "0"))
        port = int(env["MASTER_PORT"]) + 1 if count > 1 else free_port()
        names = tuple(f"rank {i}" for i in range(count)) if count > 1 else (socket.gethostname(),)
        address = env.get("MASTER_ADDR", "127.0.0.1")
        several = count > int(env.get("LOCAL_WORLD_SIZE", "1"))
        return cls(index=index, names=names, token=f"{port}", address=address, port=port, several=several)


def doctor(config: RunConfig, console: Console, *, as_json: bool) -> int:
    """Examine; print the table (node 0); return 0 when every node may train, else 1.

    Args:
        config: Of the run that is to come: its model, row length, folders and ranks.
        console: Where the table goes.
        as_json: Print JSON instead.
    """
    place = Place.find()
    if place.index:
        return _visit(config, place)
    secret = _secret_file(config, place)
    try:
        shared = make_secret(secret) if len(place.names) > 1 else token_hex()  # nobody else takes part
        desk = RendezvousServer(place.port, shared, alone=not place.several)
    except OSError as error:
        raise RuntimeError(
            f"{error.filename or f'port {place.port}'} cannot be opened here ({error.strerror}), so no node could report; "
            "run it again in a moment"
        ) from None
    try:
        return _preside(config, console, place, desk, as_json=as_json)
    finally:
        secret.unlink(missing_ok=True)


def _secret_file(config: RunConfig, place: Place) -> Path:
    """Return where node 0 leaves the secret of this examination: on the disk that all nodes share."""
    return expanded(config.run_root).absolute() / f".doctor-{place.token}.secret"


def _preside(
    config: RunConfig, console: Console, place: Place, desk: RendezvousServer, *, as_json: bool
) -> int:
    """Be the first node: collect what all found, run the common step, print the table."""
    others = set(range(1, len(place.names)))
    own = _examine(config, place, 0.0)
    parts = {0: own} | desk.collect(1, others, WAIT_S)
    compare_versions(parts)
    table = {place.names[i]: checks_of(parts.get(i), WAIT_S) for i in range(len(place.names))}
    healthy = not any(c.level == "fail" for found in table.values() for c in found)
    if healthy:
        order = {"step": _order(config, place, parts, desk.address)}
        desk.broadcast(order)
        steps = {0: _step(place.index, order["step"])} | desk.collect(2, others, STEP_S)
        leaders, folder = order["step"]["leaders"], Path(order["step"]["folder"])
        judged = diagnose_steps(steps, leaders, place.names, f"{folder}/logs")
        for i, found in judged.items():
            table[place.names[i]] += found
        if not any(c.level == "fail" for found in judged.values() for c in found):
            shutil.rmtree(folder, ignore_errors=True)
    code = 1 if any(c.level == "fail" for found in table.values() for c in found) else 0
    _print(table, console, as_json=as_json, stepped=healthy)
    if not as_json and (hint := _unseen(place)):
        console.print(hint, soft_wrap=True)
    desk.broadcast({"verdict": code})
    return code


def _visit(config: RunConfig, place: Place) -> int:
    """Be any node but the first."""
    try:
        visitor = RendezvousClient(
            place.address if place.several else "127.0.0.1",
            place.port,
            index=place.index,
            secret_file=_secret_file(config, place),
            wait_s=WAIT_S,
        )
        visitor.send(1, _examine(config, place, visitor.clock_offset_s()))
        answer = visitor.receive(WAIT_S + STEP_S)
        if "step" in answer:
            visitor.send(2, _step(place.index, answer["step"]))
            answer = visitor.receive(2 * STEP_S)
        return int(answer["verdict"])
    except OSError as error:
        sys.stderr.write(
            f"{socket.gethostname()}: {place.names[0]} ({place.address}:{place.port}) does not answer ({error})\n"
        )
        return 1


def _examine(config: RunConfig, place: Place, offset_s: float) -> dict[str, Any]:
    expected = gpus() if config.launch.nproc == "auto" else (int(config.launch.nproc) if gpus() else 0)
    found, versions = checks.packages()
    found += checks.devices(expected)
    need = 0
    with suppress(UserError):  # a model that is not on this node: the step will say so
        need = kept_bytes(config, shape_of(config, model_config(config)))
    found.append(checks.disk("run_root", Path(config.run_root), need))
    found.append(checks.disk("data.dir", Path(config.data.dir)))
    found.append(checks.disk("LOCAL_SCRATCH", Path(os.environ.get("LOCAL_SCRATCH", tempfile.gettempdir()))))
    found += checks.limits(expected)
    found.append(checks.network(place.address, several=place.several))
    if place.index:
        found.append(checks.clock(offset_s))
    return {"host": socket.gethostname(), "versions": versions, "checks": [asdict(c) for c in found]}


def _order(config: RunConfig, place: Place, parts: dict[int, Any], address: str | None) -> dict[str, Any]:
    """Return what all need to start the ranks of the common step."""
    hosts = list(dict.fromkeys(part["host"] for part in parts.values()))
    alone = len(hosts) == 1
    folder = Path(config.run_root) / f".doctor-{place.token}-{int(time.time())}"
    folder.mkdir(parents=True)
    write_text(folder / "config.json", config_to_json(absolute(config)))
    first = {part["host"]: i for i, part in sorted(parts.items(), reverse=True)}
    return {
        "folder": str(folder),
        "leaders": [first[host] for host in hosts],  # one process a host starts its ranks
        "address": "127.0.0.1" if alone else address or place.address,
        "port": free_port() if alone else place.port + 1,
        "nproc": max(ranks_of(config.launch.nproc), len(parts) if alone else 1),
    }


def _step(index: int, order: dict[str, Any]) -> dict[str, Any]:
    """Run this host's ranks of the common step; return how that ended."""
    if index not in order["leaders"]:
        return {"code": 0}
    node, folder = order["leaders"].index(index), Path(order["folder"])
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")
    }
    environment = {
        **{k: v for k, v in kept.items() if not k.startswith(("TORCHELASTIC_", "GROUP_", "ROLE_"))},
        "RUN_DIR": str(folder),
        "MASTER_ADDR": order["address"],
        "MASTER_PORT": str(order["port"]),
        "NODE_RANK": str(node),
        "NNODES": str(len(order["leaders"])),
        "NPROC": str(order["nproc"]),
        "ATTEMPT": "0.1",
        "JOIN_TIMEOUT_S": "120",
        "PYTHON": sys.executable,
    }
    command = ["bash", str(resource("launch") / "node.sh"), "-m", STEP, "--run-dir", str(folder)]
    # its own session: ending it ends torchrun and the ranks with it
    ranks = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = ranks.communicate(timeout=STEP_S)
        code = ranks.returncode
    except subprocess.TimeoutExpired:
        os.killpg(ranks.pid, signal.SIGKILL)
        code, said = 124, f"the step did not end within {STEP_S:.0f} s"
    part: dict[str, Any] = {"code": code, "time": time.time(), "error": ""}
    if code:
        part |= _first_error(folder / "logs" / "attempt-0.1" / f"node-{node}", said)
    result = folder / f"node-{node}.json"
    if result.is_file():
        part["result"] = json.loads(result.read_text())
    return part


def _first_error(logs: Path, said: str) -> dict[str, Any]:
    """Return when and of what the ranks of this node died, from torchrun's error file, else the end of its output."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        error = json.loads((logs / "error.json").read_text())["message"]
        return {"time": float(error["extraInfo"]["timestamp"]), "error": str(error["message"])}
    lines = [line for line in said.strip().splitlines() if "rror" in line] or said.strip().splitlines()
    return {"error": lines[0][-300:] if lines else "no output"}


def _print(table: dict[str, list[Check]], console: Console, *, as_json: bool, stepped: bool) -> None:
    bad = [name for name, found in table.items() if any(c.level == "fail" for c in found)]
    if as_json:
        nodes = {name: [asdict(c) for c in found] for name, found in table.items()}
        sys.stdout.write(json.dumps({"fit": not bad, "bad_nodes": bad, "nodes": nodes}, indent=1) + "\n")
        return
    shown = Table("node", "check", "", "found", "remedy")
    colours = {"pass": "green", "warn": "yellow", "fail": "red"}
    for name, found in table.items():
        for c in found:
            shown.add_row(name, c.name, f"[{colours[c.level]}]{c.level}[/]", c.found, c.remedy)
    console.print(shown)
    if not stepped:
        console.print("the common step and the network were not tried: mend the above first")
    verdict = f"NOT FIT: {', '.join(bad)}" if bad else "fit for training"
    console.print(f"doctor: {verdict}", soft_wrap=True)


def _unseen(place: Place) -> str:
    """Return what is said inside an allocation of several nodes where this process was started alone; else nothing."""
    nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes == 1 or len(place.names) > 1:
        return ""
    return f"this machine alone was examined; all {nodes} nodes of the allocation: srun --ntasks-per-node=1 sft-dist doctor"


def _slurm_hosts() -> list[str]:
    """Return the names of the allocation's nodes; slurm/job.sh hands them on, for containers lack scontrol."""
    if names := os.environ.get("SFT_NODES"):
        return names.split()
    try:
        asked = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ.get("SLURM_STEP_NODELIST", "")],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return [os.environ.get("SLURMD_NODENAME", socket.gethostname())]
    return asked.stdout.split()
