"""What the nodes handed in -> the table of the doctor: who is unfit, and what to do. No torch, no effects."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sft_dist.cluster.doctor.checks import Check, Level

SLOW_PAIR = 0.5  # of the median bandwidth
STEP = "training step"


def checks_of(part: Mapping[str, Any] | None, wait_s: float) -> list[Check]:
    """Return what a node found out about itself; a failed check when it said nothing within `wait_s`."""
    if part is None:
        remedy = "see whether the node is up (sinfo -N); exclude it: submit.sbatch=['--exclude=NODE']"
        return [Check(name="answer", level="fail", found=f"none within {wait_s:.0f} s", remedy=remedy)]
    return [Check(**c) for c in part["checks"]]


def compare_versions(parts: dict[int, dict[str, Any]]) -> None:
    """Add a failed check to nodes whose versions are not those of most."""
    for name in sorted({n for part in parts.values() for n in part["versions"]}):
        values = {i: part["versions"].get(name) for i, part in parts.items()}
        usual = statistics.mode(v for v in values.values() if v)
        for i, value in values.items():
            if value and value != usual:
                check = Check(
                    name=f"version of {name}",
                    level="fail",
                    found=f"{value}; others have {usual}",
                    remedy="use one environment or image on all nodes",
                )
                parts[i]["checks"].append(asdict(check))


def diagnose_steps(
    steps: Mapping[int, Mapping[str, Any]], leaders: Sequence[int], names: Sequence[str], logs: str
) -> dict[int, list[Check]]:
    """Return what the common step says of each node.

    Args:
        steps: How it ended, by index of the node; those that did not answer are missing.
        leaders: Indices of the nodes that started ranks, in the order of their node ranks.
        names: Of all nodes, by index.
        logs: Where the ranks' output is.
    """
    out: dict[int, list[Check]] = {i: [] for i in leaders}
    for i in set(leaders) - set(steps):
        remedy = "the node hung or died in the step; exclude it: submit.sbatch=['--exclude=NODE']"
        out[i].append(Check(name=STEP, level="fail", found="no answer", remedy=remedy))
    failed = {i: s for i, s in steps.items() if s["code"]}
    if failed:
        # the others lose their peers and follow within seconds
        first = min(failed, key=lambda i: failed[i]["time"])
        for i, step in failed.items():
            own = i == first
            found = step["error"] if own else f"ended with {names[first]}"
            remedy = f"output of all ranks: {logs}" if own else ""
            out[i].append(Check(name=STEP, level="fail" if own else "warn", found=found, remedy=remedy))
        return out
    results = {i: s["result"] for i, s in steps.items() if "result" in s}
    for i, result in results.items():
        found = (
            f"{result['step_s']:.2f} s for {result['tokens']:,} tokens a rank, "
            f"peak {result['memory_bytes'] / 2**30:.2f} GiB, loss {result['loss']:.3f}"
        )
        remedy = "" if result["finite"] else "the loss is not finite: a broken device, or weights that are"
        out[i].append(
            Check(name=STEP, level="pass" if result["finite"] else "fail", found=found, remedy=remedy)
        )
    for i, check in _bandwidths(results, leaders, names):
        out[i].append(check)
    return out


def _bandwidths(
    results: Mapping[int, Mapping[str, Any]], leaders: Sequence[int], names: Sequence[str]
) -> Iterator[tuple[int, Check]]:
    """Yield the all-reduce checks of each node: all ranks together, then the node's pairs."""
    pairs = {tuple(p["nodes"]): p for r in results.values() for p in r["pairs"]}
    # the upper quartile: one slow node among three spoils two of three pairs, and their median with them
    usual = sorted(p["gb_s"] for p in pairs.values())[3 * len(pairs) // 4] if pairs else 0.0
    for i, result in results.items():
        if whole := result["all"]:
            found = f"{whole['gb_s']:.2f} GB/s, {whole['latency_us']:.0f} us over {whole['ranks']} ranks ({result['backend']})"
            yield i, Check(name="all-reduce", level="pass", found=found)
        node = leaders.index(i)
        mine = {a if b == node else b: p for (a, b), p in pairs.items() if node in (a, b)}
        if not mine:
            continue
        slow = {other: p for other, p in mine.items() if p["gb_s"] < SLOW_PAIR * usual}
        shown = ", ".join(
            f"{names[leaders[other]]} {p['gb_s']:.2f} GB/s {p['latency_us']:.0f} us"
            for other, p in (slow or mine).items()
        )
        # a node that is slow with most is the slow one; its partners are not
        level: Level = "warn" if len(slow) * 2 > len(mine) else "pass"
        cure = "look at this node's cable, switch port and NCCL_IB_HCA; exclude it for now"
        yield i, Check(name="pairs", level=level, found=shown, remedy=cure if level == "warn" else "")
