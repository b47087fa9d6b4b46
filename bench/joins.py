"""How selection grows: joins over made-up facts, and the whole data half on records of two lengths.

    python bench/joins.py --rows 2000000 --bands 21      # who shares a key or a band: seconds, peak memory, peak spill
    python bench/joins.py --select 600 --records 20000   # records/s of facts, hold-out, rules, near duplicates, leakage; 1 and 2 processes

Prints one JSON object. The facts hold what the joins read (keys, band codes), one row in twenty like another one, in blocks of
100,000 rows. Records of --select are words of a Zipf-like vocabulary, one in ten a near duplicate; the figures are wall seconds of `select`
into an empty folder, every run a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

BLOCK = 100_000
LIKE = 20  # of how many rows one repeats an earlier one


def made_up_facts(folder, rows, bands):
    """Blocks as `facts.py` writes them, as far as the joins read them."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sft_dist.selection.facts import BlockFacts
    from sft_dist.selection.tables import path_of

    blocks = []
    for first in range(0, rows, BLOCK):
        n = min(BLOCK, rows - first)
        rng = np.random.default_rng(first)
        codes = rng.integers(0, 1 << 63, (n, bands + 2), np.int64).astype(np.uint64)
        like = np.arange(0, n, LIKE)
        codes[like] = np.random.default_rng(0).integers(0, 1 << 63, (BLOCK, bands + 2), np.int64)[like]
        columns = {"kind": np.ones(n, np.uint8), "equal_high": codes[:, 0], "equal_low": codes[:, 1]}
        columns["has_input"] = np.zeros(n, bool)
        columns |= {f"own_{i}": codes[:, 2 + i] for i in range(bands)}
        nothing = pa.nulls(n, pa.uint64())
        table = pa.table(columns | {f"whole_{i}": nothing for i in range(bands)})
        path = folder / f"{first:012d}"
        pq.write_table(table, path_of(path, ".parquet"), compression="zstd", row_group_size=1 << 14)
        blocks.append(BlockFacts("made_up", (), path, n, {}))
    return blocks


class Watched:
    """The most that lies in a folder, looked at twice a second."""

    def __init__(self, folder):
        self.folder, self.most, self.ended = folder, 0, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.ended.wait(0.5):
            try:
                self.most = max(
                    self.most, sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())
                )
            except FileNotFoundError:
                continue

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def joined(rows, bands, memory_gb, threads):
    from sft_dist.selection.joins import common_rows

    with tempfile.TemporaryDirectory() as out:
        facts, spill = Path(out) / "facts", Path(out) / "spill"
        facts.mkdir()
        spill.mkdir()
        blocks = made_up_facts(facts, rows, bands)
        start, cpu = time.monotonic(), time.process_time()
        with Watched(spill) as watched:
            found = common_rows(
                blocks,
                equal=True,
                bands=bands,
                across_sources=False,
                memory_gb=memory_gb,
                threads=threads,
                folder=spill,
            )
        return {
            "rows": rows, "bands": bands, "memory_gb": memory_gb, "threads": threads,
            "wall_s": round(time.monotonic() - start, 1), "cpu_s": round(time.process_time() - cpu, 1),
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, "spill_mib": watched.most >> 20,
            "facts_mib": sum(p.stat().st_size for p in facts.iterdir()) >> 20,
            "equal": int(found.equal.sum()), "banded": None if found.banded is None else int(found.banded.sum()),
        }  # fmt: skip


def write_records(path, records, size):
    chance = random.Random(0)
    vocabulary = [f"w{i:x}" for i in range(50_000)]
    weights = [1 / (i + 10) for i in range(len(vocabulary))]
    earlier = []
    with path.open("w") as out:
        for i in range(records):
            if earlier and i % 10 == 0:
                words = list(chance.choice(earlier))
                words[chance.randrange(len(words))] = "changed"
            else:
                words = chance.choices(vocabulary, weights, k=size // 5)
            earlier = [*earlier[-20:], words]
            cut = len(words) // 4
            row = {"instruction": " ".join(words[:cut]), "output": " ".join(words[cut:])}
            out.write(json.dumps(row) + "\n")


def selected(path, processes):
    from sft_dist.config.load import validate
    from sft_dist.selection.sides import select
    from sft_dist.sources import open_source

    rules = {"refusal": True, "truncated_answer": {}, "repetition": {}, "near_duplicates": {}, "leakage": {}}
    with tempfile.TemporaryDirectory() as out:
        config = validate({
            "data": {
                "dir": out, "processes": processes, "filters": rules, "holdout": {"examples_per_task": 200},
                "sources": {"bench": {"kind": "alpaca", "path": str(path)}},
            },
            "render": {"template": "chatml", "train_vocab_size": 300},
            "model": {"shape": {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1}},
        })  # fmt: skip
        sources = {n: open_source(n, c) for n, c in config.data.sources.items()}
        start, before = time.monotonic(), os.times()
        found = select(config.data, sources, Path(out), lambda _: None, seed=0).sources["bench"]
        wall, after = time.monotonic() - start, os.times()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        cpu = sum(after[:4]) - sum(before[:4])
        return {
            "processes": processes, "read": found.read, "kept": found.kept, "dropped": found.dropped,
            "wall_s": round(wall, 1), "cpu_s": round(cpu, 1), "records_per_s": round(found.read / wall),
            "records_per_cpu_s": round(found.read / cpu), "peak_mib": peak, "fingerprint": found.fingerprint,
        }  # fmt: skip


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int)
    arguments.add_argument("--bands", type=int, default=0)
    arguments.add_argument("--memory-gb", type=float, default=4.0)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--select", type=int, metavar="BYTES", help="of a record")
    arguments.add_argument("--records", type=int, default=20_000)
    arguments.add_argument("--one", nargs=2, help="used by this script itself")
    options = arguments.parse_args()
    if options.one:
        print(json.dumps(selected(Path(options.one[0]), int(options.one[1]))))
        return
    if options.rows:
        print(json.dumps(joined(options.rows, options.bands, options.memory_gb, options.threads), indent=1))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        write_records(path, options.records, options.select)
        found = []
        for processes in (1, 2):
            command = [sys.executable, __file__, "--one", str(path), str(processes)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps({"bytes": path.stat().st_size, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
