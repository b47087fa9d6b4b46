"""`sft-dist doctor --prove`: kernels against their twins, stop and resume, waits, tokens a second and memory, on this very GPU.

Runs the benchmark that the repository has for a borrowed machine (bench/gpu.py) in a process of its own, five minutes at most, and
keeps its lines in one file: to send with a report, to go on from, and for `sft-dist estimate --like FILE`, which scales what
it calculates by how far that was off on this machine.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sft_dist.cluster.estimate.estimate import with_backward
from sft_dist.cluster.estimate.memory import Setup, Shape
from sft_dist.cluster.estimate.speed import micro_step
from sft_dist.core.errors import UserError
from sft_dist.core.process import resource
from sft_dist.pack.devices import find_device
from sft_dist.pipelines.train.planning import cost_of

MINUTES = 5.0
WRONG = 3.0  # error of a kernel over that of its slow twin in the same precision: more is no rounding


def prove(console: Console, out: Path, *, reduced: bool) -> int:
    """Measure, print a table, and return 0 where everything ran and was right.

    Args:
        console: Where the table goes.
        out: The file of lines; cases that are in it are passed over.
        reduced: Tiny shapes, as on a CPU.
    """
    command = [
        sys.executable,
        str(resource("bench") / "gpu.py"),
        "--minutes",
        str(MINUTES),
        "--out",
        str(out),
    ]
    quiet = {"PYTHONWARNINGS": "ignore::FutureWarning", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(
        [*command, *(["--reduced"] if reduced else [])],
        check=False,
        stdout=subprocess.PIPE,
        env={**os.environ, **quiet},
    )
    table, wrong = Table("case", "", "found"), done.returncode != 0
    for line in lines(out):
        bad = verdict(line)
        wrong |= bool(bad)
        table.add_row(line["case"], "[red]fail[/]" if bad else "[green]pass[/]", bad or _figures(line))
    console.print(table)
    console.print(f"{'NOT PROVEN' if wrong else 'proven'}; every figure stands in {out}", soft_wrap=True)
    return int(wrong)


def lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the last line of each case."""
    try:
        found = [json.loads(text) for text in file.read_text().splitlines() if text.endswith("}")]
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as what `sft-dist doctor --prove` writes ({error}); run it again"
        ) from None
    yield from {line["case"]: line for line in found if "case" in line}.values()


def verdict(line: Mapping[str, Any]) -> str:
    """Return what is wrong with a case, or an empty string."""
    if failed := line.get("failed"):
        return str(failed)
    if line["case"] == "attention":
        off = {n: b.get("error_over_dense") for n, b in line["backends"].items() if "failed" in b}
        off |= {n: e for n, b in line["backends"].items() if (e := b.get("error_over_dense") or 0.0) > WRONG}
        return f"attention backends that differ from their twin: {off}" if off else ""
    if line["case"] == "loss":
        off = max(
            a / max(b, 1e-6) for a, b in zip(line["ours"]["relative_errors"], line["plain"]["relative_errors"], strict=True)
        )  # fmt: skip
        return f"the loss differs from the plain one by {off:.1f} times its rounding" if off > WRONG else ""
    if line["case"] == "resume":
        resumed, again = line["weights_resumed_over_undisturbed"], line["weights_of_the_same_run_again"]
        return (
            f"continued weights differ by {resumed:.2g}, two equal runs by {again:.2g}"
            if resumed > 2 * again
            else ""
        )
    return ""


def scale(file: Path) -> float:
    """Return by how much longer a micro-step took on that machine than is calculated for its device.

    Raises:
        UserError: For a file without measured steps, or of a device that is not known.
    """
    found = {line["case"]: line for line in lines(file)}
    device = find_device(found.get("machine", {}).get("device", ""))
    steps = [line for line in found.values() if "micro_step_ms" in line]
    if device is None or not steps:
        raise UserError(
            f"{file} holds no step that was measured on a known GPU, so nothing can be scaled by it; run `sft-dist doctor --prove` there"
        )
    ratios = []
    for line in steps:
        setup, shape = Setup(**line["setup"]), Shape.of(line["shape"])
        taken = micro_step(
            shape, setup, with_backward(cost_of(line["shape"]), shape), device,
            tokens=line["tokens"], squares=line["squares"], targets=line["targets"], ranks_per_node=1,
        )  # fmt: skip
        ratios.append(line["micro_step_ms"] / 1000 / taken.micro_step)
    return statistics.median(ratios)


def _figures(line: Mapping[str, Any]) -> str:
    shown = ("device", "matmul_tflops", "memory_gb_s", "tokens_per_s", "mfu", "host_ms", "micro_step_ms", "peak_gib", "waits",
             "stall_s", "restored_s")  # fmt: skip
    return ", ".join(f"{name} {line[name]}" for name in shown if line.get(name) is not None)
