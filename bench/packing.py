"""Packing and balance, measured: seconds, rows over the lower bound, imbalance between ranks; TRL beside it.

    python bench/packing.py                                   # synthetic lengths; about 1 minute on one core
    python bench/packing.py --lengths data/mysource --trl     # also a store's real lengths (or an .npy file), and TRL
    python bench/packing.py --plan 10000000 100000000         # instead: a whole epoch's plan, its seconds and its memory

Prints one JSON object. Expect at 1M documents and 4,096 tokens: 0.05 s and at most 0.02 % over ceil(sum / seq_len);
imbalance with a window of 16 batches at most 1.5 % with 4 micro-steps a batch and 3 % with one.
Seconds are CPU seconds of one core, the best of three. Of a plan they are those of the only run, its memory is the rank's own
at most (the store's index is mapped, and shared by the ranks of a node); 56 bytes of disk a document are needed meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from sft_dist.batch import Planner
from sft_dist.mix import Corpus
from sft_dist.pack import CostModel, assign_rows, deal, imbalance, order_rows
from sft_dist.shards import Store
from sft_dist.shards.format import INDEX_DTYPES, index_shape

WINDOW = 16
COSTS = {
    "0.6B": CostModel.of_shape(
        hidden_size=1024,
        layers=28,
        attention_size=2048,
        kv_size=1024,
        intermediate_size=3072,
        vocab_size=151_936,
    ),
    "8B": CostModel.of_shape(
        hidden_size=4096,
        layers=32,
        attention_size=4096,
        kv_size=1024,
        intermediate_size=14336,
        vocab_size=128_256,
    ),
}


def log_normal(n, mean, sigma, seed):
    """Lengths of the given mean whose logarithms have the given standard deviation."""
    draws = np.random.default_rng(seed).lognormal(np.log(mean) - sigma**2 / 2, sigma, n)
    return np.maximum(draws, 2).astype(np.int32)


def read_lengths(path):
    """Lengths from an .npy file or a token store."""
    return np.load(path).astype(np.int32) if path.suffix == ".npy" else np.asarray(Store.open(path).lengths)


def resampled(lengths, n, seed):
    """`n` lengths drawn from `lengths`: all of them in random order, over and over."""
    rng = np.random.default_rng(seed)
    passes = -(-n // len(lengths))
    return np.concatenate([rng.permutation(lengths) for _ in range(passes)])[:n]


def cpu_seconds(call, times=3):
    """Return the least CPU seconds of several calls, and what the last returned."""
    best, value = float("inf"), None
    for _ in range(times):
        start = time.process_time()
        value = call()
        best = min(best, time.process_time() - start)
    return best, value


def packed(name, lengths, seq_len, *, with_trl):
    """Pack once by each method and return one line a method."""
    lengths = np.minimum(lengths, seq_len)
    bound = -(-int(lengths.sum()) // seq_len)
    line = {"lengths": name, "documents": len(lengths), "seq_len": seq_len, "lower_bound": bound}
    seconds, rows = cpu_seconds(lambda: int(assign_rows(lengths, seq_len).max()) + 1)
    out = [{**line, "method": "ours", **result(seconds, rows, bound)}]
    if with_trl:
        seconds, rows = cpu_seconds(lambda: trl_rows(lengths, seq_len), times=1)
        out.append({**line, "method": "trl", **result(seconds, rows, bound)})
    return out


def result(seconds, rows, bound):
    return {
        "cpu_s": round(seconds, 4),
        "rows": rows,
        "over_bound_percent": round(100 * (rows / bound - 1), 4),
    }


def trl_rows(lengths, seq_len):
    """Rows that TRL makes of documents of these lengths, as shipped: best-fit decreasing a batch of 1,000."""
    import datasets
    import pyarrow as pa
    from trl import pack_dataset

    datasets.disable_progress_bars()
    datasets.disable_caching()
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    ids = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.zeros(offsets[-1], np.int32)))
    table = datasets.Dataset(pa.table({"input_ids": ids}))
    return len(pack_dataset(table, seq_length=seq_len, strategy="bfd"))


def balance(name, lengths, seq_len, ranks, micro_steps, *, most_steps=400):
    """Imbalance of default, window and random dealing, for each cost model; None where an epoch has no window."""
    lengths = np.minimum(lengths, seq_len)
    rows = assign_rows(lengths, seq_len)
    n_rows = int(rows.max()) + 1
    tokens = np.bincount(rows, lengths, n_rows)
    squares = np.bincount(rows, lengths.astype(np.float64) ** 2, n_rows)
    batch = ranks * micro_steps
    line = {
        "lengths": name,
        "documents": len(lengths),
        "seq_len": seq_len,
        "ranks": ranks,
        "micro_steps": micro_steps,
    }
    out = []
    for model, cost in COSTS.items():
        # Half of the tokens carry loss.
        costs = cost.row_cost(tokens, squares, tokens / 2)
        percent = {}
        for method, window in (("default", 1), ("window", WINDOW), ("random", 1)):
            if n_rows < batch * window:
                percent[method] = None
                continue
            order = order_rows(costs, batch, window, seed=0)
            whole = min(n_rows // (batch * window), max(most_steps // window, 1)) * window
            slowest = mean = 0.0
            for step in range(whole):
                part = costs[order[step * batch : (step + 1) * batch]]
                dealt = dealing(part, ranks, method, step)
                total = part.sum() / ranks
                mean += total
                slowest += imbalance(part.tolist(), dealt) * total
            percent[method] = round(100 * (slowest / mean - 1), 3)
        out.append({**line, "model": model, "rows": n_rows, "over_mean_percent": percent})
    return out


class Index:
    """What a plan reads of a store of n documents: the arrays of its index, mapped. It holds no tokens."""

    def __init__(self, folder, n):
        self.n = n
        self.key, self.fingerprint = {"tokenizer": "none"}, "synthetic"
        self.task_names = [f"task{i}" for i in range(1000)]
        self.arrays = {}
        rng = np.random.default_rng(0)
        for name, dtype in INDEX_DTYPES.items():
            shape = index_shape(name, n, n)
            self.arrays[name] = np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+", dtype=dtype, shape=shape
            )
        for a in range(0, n, 1_000_000):
            part = slice(a, min(a + 1_000_000, n))
            size = part.stop - a
            lengths = np.clip(rng.lognormal(5.0, 0.73, size), 8, None).astype(np.int32)
            self.arrays["length"][part] = lengths
            self.arrays["task"][part] = rng.integers(0, len(self.task_names), size)
            self.arrays["span_offset"][a : part.stop + 1] = np.arange(a, part.stop + 1)
            self.arrays["span_start"][part] = lengths // 2
            self.arrays["span_length"][part] = lengths - lengths // 2
            self.arrays["span_weight"][part] = 1.0
        a = {name: array.view(np.ndarray) for name, array in self.arrays.items()}
        self.lengths, self.tasks, self.ids = a["length"], a["task"], a["id"]
        self.span_offsets, self.span_start = a["span_offset"], a["span_start"]
        self.span_length, self.span_weight = a["span_length"], a["span_weight"]

    def __len__(self):
        return self.n


def private_bytes():
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def planned(n, seq_len=4096, rows_per_step=64):
    """CPU seconds of planning one epoch of n documents, and GiB of private memory: at most, and while training."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Corpus({"a": Index(Path(folder), n)})
        before, peak, done = private_bytes(), 0, threading.Event()

        def watch():
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, private_bytes())

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        start = time.process_time()
        planner = Planner(
            corpus, seq_len=seq_len, rows_per_step=rows_per_step, world_size=64, cost=COSTS["8B"], seed=0
        )
        plan = planner.epoch(0)
        seconds = time.process_time() - start
        done.set()
        watcher.join()
        kept = private_bytes() - before
        start = time.process_time()
        plan.step(plan.n_steps // 2)
        return {
            "documents": n,
            "seq_len": seq_len,
            "rows": plan.counts.rows,
            "fill": round(plan.counts.fill, 5),
            "cpu_s": round(seconds, 2),
            "peak_gib": round((peak - before) / 2**30, 2),
            "kept_gib": round(kept / 2**30, 2),
            "step_ms": round(1000 * (time.process_time() - start), 2),
        }


def dealing(costs, ranks, method, seed):
    """The rows of one batch by micro-step and rank."""
    if method == "random":
        return [[[row] for row in range(i, i + ranks)] for i in range(0, len(costs), ranks)]
    return deal(costs.tolist(), ranks, 1, seed)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--lengths", type=Path, action="append", default=[], help="an .npy file of lengths, or a store"
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--balance-documents", type=int, default=4_000_000)
    parser.add_argument(
        "--trl", action="store_true", help="run TRL's packing too, where it is installed (slow)"
    )
    parser.add_argument("--plan", type=int, nargs="+", default=[], help="documents of an epoch to plan")
    args = parser.parse_args()
    if args.plan:
        planned(1000)  # compiles
        print(json.dumps({"planning": [planned(n) for n in args.plan]}, indent=1))
        return
    with_trl = args.trl and importlib.util.find_spec("trl") is not None

    if with_trl:
        trl_rows(np.array([1, 2], np.int32), 8)  # imports
    start = time.perf_counter()
    assign_rows([1], 8)
    compile_s = time.perf_counter() - start
    most = max(args.documents)
    short, long = (f"log-normal, mean {mean}" for mean in (150, 600))
    lengths = {short: log_normal(most, 150, 1.0, 0), long: log_normal(most, 600, 1.3, 1)}
    lengths |= {path.name: resampled(read_lengths(path), most, 2) for path in args.lengths}
    packing = [
        line
        for name, values in lengths.items()
        for n in args.documents
        for seq_len in (2048, 4096, 8192, 32768)
        for line in packed(name, values[:n], seq_len, with_trl=with_trl)
    ]
    balanced = []
    sets = {long: log_normal(args.balance_documents, 600, 1.3, 3)}
    sets |= {path.name: resampled(read_lengths(path), args.balance_documents, 4) for path in args.lengths}
    for name, values in sets.items():
        for seq_len in (8192, 32768):
            for ranks in (8, 64, 512):
                for micro_steps in (1, 4):
                    balanced += balance(name, values, seq_len, ranks, micro_steps)
    print(json.dumps({"compile_s": round(compile_s, 2), "packing": packing, "balance": balanced}, indent=1))


if __name__ == "__main__":
    main()
