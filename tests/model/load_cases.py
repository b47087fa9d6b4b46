"""Load a model under ZeRO-3 on this rank and write its peak of private memory: `python load_cases.py MODEL OUT`.

Started by torchrun (test_load_memory.py). File pages that are mapped are the kernel's to drop, so they do not count.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import deepspeed  # before the baseline: what is imported later would count
import torch
import torch.distributed as dist
import transformers.models.llama.modeling_llama
from loading import load
from safetensors import safe_open

from sft_dist.train import zero


def private_bytes() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


class Peak(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes, self.stop = 0, False

    def run(self) -> None:
        while not self.stop:
            self.bytes = max(self.bytes, private_bytes())
            time.sleep(0.005)


def main(model: str, out: Path) -> None:
    zero.init_distributed(timeout_minutes=2)
    torch.set_num_threads(1)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    dist.barrier()
    before, peak = private_bytes(), Peak()
    peak.start()
    began = time.monotonic()
    module = load(model, zero_config=config).module
    seconds = time.monotonic() - began
    peak.stop = True
    peak.join()
    equal = True
    with safe_open(f"{model}/model.safetensors", framework="pt") as f:
        for name, parameter in module.hf.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                equal = equal and torch.equal(parameter.data, f.get_tensor(name))
    seen = {"bytes": peak.bytes - before, "seconds": seconds, "equal": equal}
    (out / f"rank-{dist.get_rank()}.json").write_text(json.dumps(seen))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    assert transformers.models.llama.modeling_llama.LlamaForCausalLM
    main(sys.argv[1], Path(sys.argv[2]))
