"""Run one launch's cases on this rank and write what rank 0 saw: `run_cases.py OUT.json MODEL SCRATCH CASE [CASE ...]`.

Started by torchrun (conftest.py), one launch a world size. A case is a name of the tables below and its arguments, joined
by colons.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cases
import cases_features
import cases_more
import torch
import torch.distributed as dist

from sft_dist.train import zero

CASES = {**cases.CASES, **cases_more.CASES, **cases_features.CASES}


def main(out: Path, model: str, scratch: Path, names: list[str]) -> None:
    """Run the cases in order."""
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for case in names:
        name, *args = case.split(":")
        results[case] = CASES[name](model, scratch, *args)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
