"""Run a script on several ranks: what every test that launches its own cases calls.

Ranks are forked from one process a test session that has imported torch, DeepSpeed and transformers, because that takes each of
them ten CPU seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext
from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ENVIRONMENT = {
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "MKL_CBWR": "COMPATIBLE",  # sums in one order, wherever an array lies in memory
    "GLOO_SOCKET_IFNAME": "lo",
    "PYTHONWARNINGS": "ignore",
}
PRELOADED = ["deepspeed", "transformers.models.llama.modeling_llama", "sft_dist.pipelines.train.worker"]


def on_ranks(world: int, script: Path, *arguments: str, timeout_s: float = 900) -> None:
    """Run a script on `world` gloo ranks with one thread each; fail with the end of what a rank says."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context, limit = _server(), time.monotonic() + timeout_s
    with tempfile.TemporaryDirectory() as logs:
        said = [Path(logs) / str(rank) for rank in range(world)]
        ranks = [
            context.Process(
                target=_rank,
                args=(script, arguments, {**os.environ, **ENVIRONMENT, **_of(rank, world, port)}, said[rank]),
            )
            for rank in range(world)
        ]
        for rank in ranks:
            rank.start()
        while (alive := [r.sentinel for r in ranks if r.is_alive()]) and not any(r.exitcode for r in ranks):
            if not wait(alive, limit - time.monotonic()):
                break
        late = bool(alive) and time.monotonic() >= limit
        for rank in ranks:
            if late or any(r.exitcode for r in ranks):
                rank.join(5)  # the others may say more of the same fault
                rank.kill()
            rank.join()
        failed = [i for i, rank in enumerate(ranks) if rank.exitcode]
        if failed:
            text = "".join(
                f"\nrank {i} ({ranks[i].exitcode}):\n{said[i].read_text()[-6000:]}" for i in failed
            )
            raise AssertionError(f"{world} ranks {'took too long' if late else 'failed'}:{text}")


def _of(rank: int, world: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def _server() -> ForkServerContext:
    """Return the context whose server has the environment of ranks; it starts with the first of them."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    kept = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        context.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(kept)
    return context


def _rank(script: Path, arguments: tuple[str, ...], environment: Mapping[str, str], said: Path) -> None:
    """Be a rank: the script as it would run by `python SCRIPT ARGUMENTS`."""
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [str(script), *arguments]
    sys.path[:0] = [str(script.parent), str(HELPERS)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:  # noqa: BLE001  whatever it is, the test shows it
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
