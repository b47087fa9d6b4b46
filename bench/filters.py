"""Selection and filters, measured: examples a second on one core, peak memory at 1x and 10x the input.

    python bench/filters.py                            # 10,000 and 100,000 records; about 2 minutes on one core
    python bench/filters.py --records 100000           # 100,000 and 1,000,000
    python bench/filters.py --near 1000000 --texts FILE...   # near duplicates alone, among real texts with planted copies

Prints one JSON object. Records are synthetic: 100 words of a Zipf-like vocabulary, one in ten a near duplicate of the
one before, one in a hundred equal to it. Measured with --records 10000, one core of a busy 2-core machine: reading twice,
holding out, rules, exact duplicates, rejects 8,100 examples/s; with near duplicates 3,300; with leakage 3,300. Peak memory
at 10,000 and 100,000 records: 171 and 178 MiB, with near duplicates 187 and 229, with leakage 185 and 192. `datasets`
(load, map, filter; the rules alone, read once) 12,500 examples/s, 254 and 370 MiB. Each figure is from a process of its own;
seconds are CPU seconds.

--near: a million records out of 16,732 real ones take 5 minutes and 0.9 GB with --processes 2; recall 1.0 of the planted pairs
whose exact likeness reaches the threshold, precision 0.9999.
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
THRESHOLD, SHINGLE = 0.8, 5
NEAR = {"near_duplicates": {"threshold": THRESHOLD, "shingle_words": SHINGLE}}


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
    """What `work` returns, and the CPU seconds and peak memory of this process and of its largest child."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = cpu_s()
    facts = work()
    return {
        **facts,
        "cpu_s": round(cpu_s() - start, 2),
        "start_mib": round(before),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "largest_child_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }


def cpu_s():
    """CPU seconds of this process and of the children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def selected(path, filters, out, *, processes, evaluated):
    """Run the selection pass over a file of instruction and output."""
    from sft_dist.config.load import validate
    from sft_dist.selection.sides import select
    from sft_dist.sources import open_source

    config = validate({
        "data": {
            "dir": str(out), "processes": processes, "filters": filters, "holdout": {"examples_per_task": evaluated},
            "sources": {"bench": {"kind": "alpaca", "path": str(path)}},
        },
        "render": {"train_vocab_size": 300},
        "model": {"shape": {"hidden_size": 16, "intermediate_size": 16, "layers": 1, "heads": 1, "max_position_embeddings": 4096}},
    })  # fmt: skip
    sources = {n: open_source(n, c) for n, c in config.data.sources.items()}

    def work():
        found = select(config.data, sources, out, lambda _: None, seed=config.seed).sources["bench"]
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


def near_at_scale(n, texts, processes):
    """Near duplicates of known likeness among n records: what is found, what it costs, what of it is right."""
    from planted import Maker

    maker = Maker(texts)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "records.jsonl"
        maker.write(path, n)
        bytes_ = path.stat().st_size
        command = [
            sys.executable,
            __file__,
            "--one",
            "near",
            str(path),
            "--processes",
            str(processes),
            "--out",
            folder,
        ]
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        facts = json.loads(done.stdout.splitlines()[-1])
        facts |= {
            "records": n,
            "bytes": bytes_,
            "processes": processes,
            "wall_s": round(time.perf_counter() - start, 1),
        }
        facts["examples_per_core_s"] = round(n / facts["cpu_s"])
        return facts | judged(maker, n, Path(folder))


def judged(maker, n, folder):
    """Recall by the likeness of the planted pairs, and how many drops name an example that is like them: in plain Python."""
    import numpy as np
    from planted import EVERY, likeness

    codes = np.load(folder / "selection-bench.npy")
    kept = np.flatnonzero(codes == 0)
    wrong = verified = exact = 0
    with (folder / "rejects" / "bench.jsonl").open() as lines:
        for i, line in zip(np.flatnonzero(codes == 2).tolist(), lines, strict=True):
            reject = json.loads(line)
            if reject["reason"] != "near_duplicate":
                exact += 1
                continue
            other = kept[int(reject["detail"].split()[3].rstrip(":")) - 1]
            pairs = zip(maker.record(i), maker.record(int(other)), strict=True)
            right = min(likeness(a, b, SHINGLE) for a, b in pairs) >= THRESHOLD
            verified, wrong = verified + right, wrong + (not right)
    found, planted = {}, {}
    for i in range(EVERY - 1, n, EVERY):
        pairs = zip(maker.record(i), maker.original(maker.source_of(i)), strict=True)
        part = int(min(likeness(a, b, SHINGLE) for a, b in pairs) * 20) / 20
        planted[part] = planted.get(part, 0) + 1
        found[part] = found.get(part, 0) + int(codes[i] == 2)
    over = [p for p in planted if p >= THRESHOLD]
    return {
        "planted": sum(planted.values()),
        "planted_at_threshold_or_more": sum(planted[p] for p in over),
        "recall": round(sum(found[p] for p in over) / sum(planted[p] for p in over), 5),
        "recall_by_likeness": {f"{p:.2f}": [found[p], planted[p]] for p in sorted(planted)},
        "dropped_near": verified + wrong,
        "dropped_exact": exact,
        "precision": round(verified / max(1, verified + wrong), 5),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--records", type=int, default=10_000)
    arguments.add_argument("--near", type=int, help="records among which near duplicates are looked for")
    arguments.add_argument(
        "--texts", type=Path, nargs="+", help="JSON lines of real records that --near is made from"
    )
    arguments.add_argument("--processes", type=int, default=1, help="of the selection pass")
    arguments.add_argument("--one", nargs=2, metavar=("VARIANT", "FILE"), help="used by this script itself")
    arguments.add_argument("--out", type=Path, help="used by this script itself")
    options = arguments.parse_args()
    if options.near:
        if not options.texts:
            arguments.error("--near needs --texts")
        print(json.dumps(near_at_scale(options.near, options.texts, options.processes), indent=1))
        return
    if options.one:
        variant, path = options.one[0], Path(options.one[1])
        if variant == "datasets":
            facts = with_datasets(path)
        elif variant == "near":
            facts = selected(path, NEAR, options.out, processes=options.processes, evaluated=0)
        else:
            with tempfile.TemporaryDirectory() as out:
                facts = selected(path, VARIANTS[variant], Path(out), processes=1, evaluated=1000)
        print(json.dumps(facts))
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
