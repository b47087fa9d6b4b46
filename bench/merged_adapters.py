"""What merging adapters in bfloat16 does to losses, and what leaving them out does: `python bench/merged_adapters.py MODEL`.

MODEL: a folder (bench/pretrained.py makes one). Prints a JSON line for each size of random adapters: mean absolute differences of the
loss of a token of the text by which an export is verified, in nats. `engine`: base and adapters apart, `merged`: as an export holds
them, both in bfloat16; `exact`: merged, in float32; `rounded`: the merged bfloat16 weights, computed in float32.
"""

from __future__ import annotations

import copy
import json
import sys
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from sft_dist.config.model import LoraConfig
from sft_dist.model import adapters
from sft_dist.pipelines.evaluate.verify import _text

LORA = LoraConfig(rank=16, alpha=32.0)


@torch.no_grad()
def measure(base: Any, deviation: float) -> dict[str, float]:
    """Compare models with adapters whose second half has entries of this standard deviation."""
    ids = torch.from_numpy(_text(base.config.vocab_size).input_ids)
    apart = copy.deepcopy(base)
    adapters.add(apart, LORA, 0)
    tensors = {n: p for n, p in apart.named_parameters() if ".lora_" in n}
    for name, parameter in tensors.items():
        if "lora_B" in name:
            parameter.normal_(std=deviation)
        parameter.data = parameter.data.bfloat16()
    trained = {n: p.float() for n, p in tensors.items()}
    merged = {
        weight: adapters.merged(base.get_parameter(weight), {n: trained[n] for n in names}, LORA)
        for weight, names in adapters.trained_modules(trained, {}).items()
    }
    models = {"engine": apart, "base": base, "merged": copy.deepcopy(base)}
    models |= {"exact": copy.deepcopy(base).float(), "rounded": copy.deepcopy(base).float()}
    for weight, value in merged.items():
        models["merged"].get_parameter(weight).copy_(value)
        models["exact"].get_parameter(weight).copy_(value)
        models["rounded"].get_parameter(weight).copy_(value.bfloat16())
    losses = {
        name: cross_entropy(
            m(input_ids=ids[None], use_cache=False).logits[0, :-1].float(), ids[1:], reduction="none"
        )
        for name, m in models.items()
    }
    pairs = [
        ("engine", "merged"),
        ("engine", "exact"),
        ("rounded", "exact"),
        ("merged", "rounded"),
        ("engine", "base"),
    ]
    sizes = [
        float((v - base.get_parameter(w).float()).norm() / base.get_parameter(w).float().norm())
        for w, v in merged.items()
    ]
    return {"update": float(np.mean(sizes))} | {
        f"{a} - {b}": float((losses[a] - losses[b]).abs().mean()) for a, b in pairs
    }


if __name__ == "__main__":
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
    for std in (0.002, 0.005, 0.01, 0.03):
        print(json.dumps({"std": std} | {k: round(v, 4) for k, v in measure(model, std).items()}), flush=True)
