"""Every family loaded under ZeRO-3 and plainly: `python partition_cases.py MODELS OUT.json`, started by torchrun (test_partition.py)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from sft_dist.model.load import load_packed
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


def main(models: Path, out: Path) -> None:
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "bf16": {"enabled": True},
    }
    seen = {}
    for folder in sorted(models.iterdir()):
        parts, whole = (
            load_packed(
                str(folder), dtype="bfloat16", backend="auto", device="cpu", zero_config=c, gradient_checkpointing=False
            ).module.hf
            for c in (config, None)
        )  # fmt: skip
        assert all(hasattr(p, "ds_tensor") for p in parts.parameters())
        seen[folder.name] = different(parts, whole)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
