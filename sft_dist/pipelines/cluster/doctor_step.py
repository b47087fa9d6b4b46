"""One rank of the doctor's common step: all-reduce over all ranks and by pairs of nodes, then real training steps.

`torchrun ... -m sft_dist.pipelines.cluster.doctor_step --run-dir DIR`, started by launch/node.sh. The first rank of each node
writes node-N.json into the folder.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from sft_dist.batch import sequence_shard
from sft_dist.config import RunConfig
from sft_dist.config.auto import asked
from sft_dist.config.load import load_run_config
from sft_dist.core.collectives import gather
from sft_dist.core.errors import UserError
from sft_dist.core.files import write_json
from sft_dist.core.records import Batch
from sft_dist.core.runfolder import RunFolder
from sft_dist.model.packed import to_inputs
from sft_dist.pipelines.cluster.estimate_inputs import model_config
from sft_dist.pipelines.train.auto import settle
from sft_dist.pipelines.train.engine import build_engine
from sft_dist.render.tokenizer import TextTokenizer
from sft_dist.train import zero
from sft_dist.train.environment import environment
from sft_dist.train.metrics import memory_bytes

PAYLOAD_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
REPEATS, LATENCY_REPEATS = 5, 20
MAX_ROUNDS = 7  # each node meets so many others; all of them where there are up to eight nodes
STEPS = 2  # the first allocates and compiles, the second is timed


def main() -> int:
    """Run one rank; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True)
    folder = parser.parse_args().run_dir
    config = load_run_config(folder)
    zero.init_distributed(config.deepspeed.timeout_minutes)
    device = torch.device(
        zero.device_type(), int(os.environ["LOCAL_RANK"]) if zero.device_type() == "cuda" else 0
    )
    nodes = int(os.environ["GROUP_WORLD_SIZE"])
    node, per_node = int(os.environ["GROUP_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    whole = _all_reduce(device, None) if dist.get_world_size() > 1 else None
    pairs = list(_pairs(device, node, nodes, per_node))
    hosts = gather(socket.gethostname())
    if dist.get_rank() == 0:
        write_json(folder / "env.json", environment(hosts))
    dist.barrier()
    try:
        step = _train(config, RunFolder(folder), device)
    except UserError as error:
        raise RuntimeError(f"{socket.gethostname()}: {error}") from None
    if int(os.environ["LOCAL_RANK"]) == 0:
        facts = {"backend": dist.get_backend(), "all": whole, "pairs": pairs, **step}
        write_json(folder / f"node-{node}.json", facts)
    dist.barrier()
    dist.destroy_process_group()
    return 0


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Return pairs of nodes that can talk side by side: a round-robin tournament by the circle method."""
    players: list[int | None] = [*range(nodes), *([None] if nodes % 2 else [])]
    out = []
    for _ in range(min(len(players) - 1, MAX_ROUNDS)):
        half = len(players) // 2
        met = zip(players[:half], reversed(players[half:]), strict=True)
        out.append([(min(a, b), max(a, b)) for a, b in met if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return out


def _pairs(device: torch.device, node: int, nodes: int, per_node: int) -> Iterator[dict[str, Any]]:
    """Measure the pairs that this node is the first of; the first rank of a node speaks for it."""
    for meeting in rounds(nodes) if nodes > 1 else []:
        groups = {pair: dist.new_group([n * per_node for n in pair]) for pair in meeting}
        for pair, group in groups.items():
            if node in pair and int(os.environ["LOCAL_RANK"]) == 0:
                found = _all_reduce(device, group)
                if node == pair[0]:
                    yield {"nodes": list(pair), **found}
        dist.barrier()


def _all_reduce(device: torch.device, group: Any) -> dict[str, float]:
    """Return bus bandwidth (2 (n - 1) / n of the payload over the time, as nccl-tests has it) and latency."""
    ranks = dist.get_world_size(group)
    payload = torch.ones(PAYLOAD_BYTES[device.type] // 4, device=device)
    small = torch.ones(2, device=device)
    seconds = _median_s(payload, group, REPEATS)
    return {
        "ranks": ranks,
        "gb_s": 2 * (ranks - 1) / ranks * PAYLOAD_BYTES[device.type] / seconds / 1e9,
        "latency_us": _median_s(small, group, LATENCY_REPEATS) * 1e6,
    }


def _median_s(tensor: torch.Tensor, group: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        tensor.fill_(1.0)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        if tensor.is_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    if float(tensor[0]) != dist.get_world_size(group):
        raise RuntimeError(f"{socket.gethostname()}: an all-reduce of ones gave {float(tensor[0])}")
    return statistics.median(times[1:])


def _train(config: RunConfig, folder: RunFolder, device: torch.device) -> dict[str, Any]:
    """Run training steps on full rows of one document, all of whose tokens are targets: the most that a step can need."""
    vocab = int(model_config(config)["vocab_size"])
    # what assembling asks of a tokenizer; the true one may not be trained yet
    stand_in = SimpleNamespace(vocab_size=vocab, bos_id=None, eos_id=None, pad_id=None)
    config = settle(config, folder)
    parts = build_engine(config, folder, cast("TextTokenizer", stand_in))
    parts.engine.train()
    batch = sequence_shard(_full_rows(config, vocab), parts.sequence.place, parts.sequence.size)
    inputs = to_inputs(batch, device)
    seconds, finite, mean = 0.0, True, 0.0
    for _ in range(STEPS):
        began = time.perf_counter()
        loss, nll_N = parts.engine(*inputs)
        parts.engine.backward(loss / max(1, len(batch.target_ids)), scale_wrt_gas=False)
        applied, _norm = zero.update(parts.engine, config.optim.clip)
        mean = float(nll_N.mean())
        seconds, finite = time.perf_counter() - began, applied and bool(np.isfinite(mean))
    return {
        "step_s": seconds,
        "tokens": len(batch.input_ids),
        "loss": mean if np.isfinite(mean) else 0.0,
        "finite": finite,
        "memory_bytes": memory_bytes(device),
    }


def _full_rows(config: RunConfig, vocab: int) -> Batch:
    T, rows = config.pack.seq_len, asked(config)["micro_rows"]
    ids = np.random.default_rng(0).integers(1, vocab, rows * T)
    targets = np.concatenate([np.arange(r * T + 1, (r + 1) * T) for r in range(rows)])
    return Batch.of_documents(ids, [T] * rows, targets)


if __name__ == "__main__":
    sys.exit(record(main)())
