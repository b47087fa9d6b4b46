"""What do hundreds of ranks cost outside their steps? Planning, dealing and checkpoint metadata, on one core of any machine.

    python bench/many_ranks.py                     # 64 and 512 ranks, a minute
    python bench/many_ranks.py --ranks 4096

The ranks are not processes: what each of them would do is done here once, by the same functions, and timed. Prints one JSON
object for each number of ranks:

- `pack_s`, `deal_ms`, `imbalance_percent`: a million documents packed into rows of 4,096 (each node does so once an epoch), one
  global batch of four rows a rank dealt to all ranks (each rank does so once a step), and by how much the slowest rank is over
  the mean.
- `index_mib`, `index_write_s`, `index_read_s`: the index of a checkpoint of an 8B model (291 parameters, each cut into as many
  slices as there are ranks, weights and optimizer state) written by one rank, and read with all its checks, as every rank does that
  resumes.
- `gather_kib`: what one rank sends to the writer of the index. `slices_ms`: one rank finds the files that hold its own slices.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np

from sft_dist.checkpoint.index import read_index, write_index
from sft_dist.pack import CostModel, assign_rows, deal, imbalance

LAYERS, HIDDEN, INTERMEDIATE, KEYS, VOCABULARY = 32, 4096, 14336, 1024, 128256
ROW, ROWS_A_RANK = 4096, 4


def shapes():
    """Return the parameters of a Llama of 8B."""
    found = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "lm_head.weight": (VOCABULARY, HIDDEN)}
    for i in range(LAYERS):
        for name, shape in {
            "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
        }.items():  # fmt: skip
            found[f"model.layers.{i}.{name}.weight"] = shape
    return {**found, "model.norm.weight": (HIDDEN,)}


def files_of(ranks):
    """Return the entries that all ranks report, each parameter cut into equal slices, as ZeRO-3 does."""
    files = {}
    for rank in range(ranks):
        slices = {}
        for name, shape in shapes().items():
            total = math.prod(shape)
            size = -(-total // ranks)
            start = min(rank * size, total)
            slices[name] = [start, min(size, total - start)]
        for kind in ("weights", "optimizer"):
            files[f"rank-{rank:05d}.{kind}.safetensors"] = {
                "kind": kind,
                "slices": slices,
                "checksum": f"{rank:032x}",
            }
    return files


def timed(work):
    """Return what the work returns, and its CPU seconds."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def checkpoint(ranks):
    """Return the figures of the checkpoint's metadata."""
    files = files_of(ranks)
    body = {
        "format": 3, "position": {"step": 40, "epoch": 0, "epoch_step": 40}, "optimizer_step": 40, "facts": {},
        "parameters": {n: list(s) for n, s in shapes().items()}, "states": {n: ["exp_avg", "exp_avg_sq"] for n in shapes()},
        "optimizer": True, "files": files,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "step-00000040"
        at.mkdir()
        _, write_s = timed(lambda: write_index(at, body))
        index, read_s = timed(lambda: read_index(at))
        size = (at / "index.json").stat().st_size
    _, where_s = timed(lambda: [index.where(kind) for kind in ("weights", "optimizer")])
    own = {n: f for n, f in files.items() if n.startswith("rank-00000.")}
    return {
        "index_mib": round(size / 2**20, 1),
        "index_write_s": round(write_s, 2),
        "index_read_s": round(read_s, 2),
        "gather_kib": round(len(json.dumps(own)) / 2**10, 1),
        "slices_ms": round(1000 * where_s, 1),
    }


def planning(ranks):
    """Return the figures of planning."""
    draws = np.random.default_rng(0).lognormal(4.7, 0.9, 1_000_000)
    lengths = np.clip(draws, 2, ROW).astype(np.int32)
    assign_rows(lengths[:1000], ROW)  # compiled
    rows, pack_s = timed(lambda: assign_rows(lengths, ROW))
    tokens, squares = (np.bincount(rows, lengths.astype(np.float64) ** k) for k in (1, 2))
    model = CostModel.of_shape(
        hidden_size=HIDDEN, layers=LAYERS, attention_size=HIDDEN, kv_size=KEYS, intermediate_size=INTERMEDIATE, vocab_size=VOCABULARY
    )  # fmt: skip
    costs = model.row_cost(tokens, squares, tokens / 2)[: ranks * ROWS_A_RANK]
    dealing, deal_s = timed(lambda: deal(costs, ranks, 1, 0))
    return {
        "pack_s": round(pack_s, 3),
        "deal_ms": round(1000 * deal_s, 1),
        "imbalance_percent": round(100 * (imbalance(costs, dealing) - 1), 2),
    }


def main():
    """Print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 512])
    for ranks in parser.parse_args().ranks:
        print(json.dumps({"ranks": ranks, **planning(ranks), **checkpoint(ranks)}), flush=True)


if __name__ == "__main__":
    main()
