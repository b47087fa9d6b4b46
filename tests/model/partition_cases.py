"""Models under ZeRO-3 beside whole ones: `python partition_cases.py FOLDER NAME,... TYPE:MODE,...`, by torchrun (test_partition.py).

FOLDER/loads/NAME is loaded both ways; of FOLDER/gradients/TYPE the gradients are compared (zero3_cases.py). Writes FOLDER/seen.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
import zero3_cases
from loading import load

from sft_dist.train import zero


def different(parts: Any, whole: Any) -> list[str]:
    """What two copies of a model do not have alike."""
    buffers = dict(whole.named_buffers())
    out = [
        n
        for n, b in parts.named_buffers()
        if b.dtype != buffers[n].dtype or not torch.equal(b, buffers.pop(n))
    ]
    weights = dict(whole.named_parameters())
    for name, parameter in parts.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            if parameter.dtype != weights[name].dtype or not torch.equal(
                parameter.data, weights.pop(name).data
            ):
                out.append(name)
    return out + [n for n in weights if not n.endswith("lm_head.weight")]  # a second name of a tied one


def main(folder: Path, loads: list[str], gradients: list[str]) -> None:
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
    }
    seen: dict[str, Any] = {"loads": {}, "gradients": {}}
    for name in loads:
        parts, whole = (
            load(folder / "loads" / name, dtype="bfloat16", zero_config=c).module.hf for c in (config, None)
        )
        assert all(hasattr(p, "ds_tensor") for p in parts.parameters())
        seen["loads"][name] = different(parts, whole)
    for case in gradients:
        name, _, mode = case.partition(":")
        seen["gradients"][case] = zero3_cases.largest_difference(folder / "gradients" / name, mode)
        print(case, seen["gradients"][case], flush=True)
    if dist.get_rank() == 0:
        (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(list(filter(None, names.split(","))) for names in sys.argv[2:]))
