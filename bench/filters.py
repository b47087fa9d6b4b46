"""Selection and filters, measured: examples a second on one core, peak memory at 1x and 10x the input.

    python bench/filters.py                            # 10,000 and 100,000 records; about 2 minutes on one core
    python bench/filters.py --records 100000           # 100,000 and 1,000,000

Prints one JSON object. Records are synthetic: 100 words of a Zipf-like vocabulary, one in ten a near duplicate of the
one before, one in a hundred equal to it. Measured with --records 10000, one core of a busy 2-core machine: reading twice,
holding out, rules, exact duplicates, rejects 8,100 examples/s; with near duplicates 3,300; with leakage 3,300. Peak memory
at 10,000 and 100,000 records: 171 and 178 MiB, with near duplicates 187 and 229, with leakage 185 and 192. `datasets`
(load, map, filter; the rules alone, read once) 12,500 examples/s, 254 and 370 MiB. Each figure is from a process of its own;
seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RULES = {"refusal": True, "repetition": {}, "truncated_answer": {}, "placeholder": True}
VARIANTS = {
    "rules": RULES,
    "near_duplicates": RULES | {"near_duplicates": {}},
    "leakage": RULES | {"leakage": {}},
}


def write_records(path, n):
    """n records of 80 + 20 words, as JSON lines."""
    import numpy as np

    draw = np.random.default_rng(0)
    vocabulary = np.array([f"w{i:x}" for i in range(30_000)])
    words = None
    with path.open("w") as f:
        for i in range(n):
            if i % 100 == 99:
                pass  # the record before, again
            elif i % 10 == 9:
                words = words.copy()
                words[draw.integers(80)] = "changed"
            else:
                words = vocabulary[(30_000 * draw.random(100) ** 3).astype(int)]
            record = {"instruction": " ".join(words[:80]), "output": " ".join(words[80:])}
            f.write(json.dumps(record) + "\n")


def measured(work):
    """What `work` returns, and the CPU seconds and peak memory of this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.process_time()
    facts = work()
    return {
        **facts,
        "cpu_s": round(time.process_time() - start, 2),
        "start_mib": round(before),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def ours(path, filters):
    from sft_dist.config.load import validate
    from sft_dist.pipelines.select import select
    from sft_dist.sources import open_source

    with tempfile.TemporaryDirectory() as out:
        config = validate({
            "data": {
                "dir": out, "processes": 1, "filters": filters, "holdout": {"examples_per_task": 1000},
                "sources": {"bench": {"kind": "alpaca", "path": str(path)}},
            },
            "render": {"train_vocab_size": 300},
            "model": {"shape": {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1, "max_position_embeddings": 4096}},
        })  # fmt: skip
        sources = {n: open_source(n, c) for n, c in config.data.sources.items()}

        def work():
            found = select(config, sources, Path(out), lambda _: None).sources["bench"]
            return {"kept": found.kept, "dropped": found.dropped}

        return measured(work)


def with_datasets(path):
    """The same rules through `datasets`: load, map, filter; no hold-out, no duplicates."""
    import datasets

    from sft_dist.config.filters import FiltersConfig
    from sft_dist.core.records import single_turn
    from sft_dist.filters import build_filters

    datasets.disable_progress_bars()
    rules = build_filters(FiltersConfig(**RULES))

    def judge(row):
        example = single_turn(task="t", source="s", instruction=row["instruction"], output=row["output"])
        return {"reason": next((d.reason for rule in rules if (d := rule(example))), "")}

    def work():
        with tempfile.TemporaryDirectory() as cache:
            rows = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
            return {"kept": len(rows.map(judge).filter(lambda row: not row["reason"]))}

    return measured(work)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--records", type=int, default=10_000)
    arguments.add_argument("--one", nargs=2, metavar=("VARIANT", "FILE"), help="used by this script itself")
    options = arguments.parse_args()
    if options.one:
        variant, path = options.one[0], Path(options.one[1])
        print(json.dumps(with_datasets(path) if variant == "datasets" else ours(path, VARIANTS[variant])))
        return
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for n in (options.records, 10 * options.records):
            path = Path(folder) / f"{n}.jsonl"
            write_records(path, n)
            for variant in [*VARIANTS, "datasets"]:
                command = [sys.executable, __file__, "--one", variant, str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                facts = json.loads(done.stdout.splitlines()[-1])
                facts["examples_per_s"] = round(n / facts["cpu_s"])
                out[f"{variant}, {n}"] = facts
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
