"""Run the cases of one launch on this rank and write what rank 0 saw: `run_cases.py OUT.json MODEL SCRATCH CASES.pickle`.

Started by torchrun (conftest.py).
"""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from sft_dist.train import zero


def main(out: Path, model: str, scratch: Path, cases: Path) -> None:
    """Run the cases in order."""
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    results: dict[str, Any] = {
        repr(case): case.run(model, scratch) for case in pickle.loads(cases.read_bytes())
    }
    if dist.get_rank() == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
